"""Atomic writes: complete files or none, and no temporary files after a failure."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from unified.files.atomic import atomic_path, check_not_exists, new_files, new_folder, replace_folder, write_text
from unified.files.images import image_format, write_image


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_appears_at_the_end_and_folders_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    with atomic_path(path) as partial:
        partial.write_text("one")
        assert not path.exists() and partial.parent == path.parent and partial.suffix == ".partial"
    write_text(path, "two é")
    assert path.read_bytes() == "two é".encode() and names(path.parent) == ["b.txt"]


def test_a_failure_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "b.txt"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError
    assert path.read_text() == "old" and names(tmp_path) == ["b.txt"]


def test_many_may_write_one_file_at_once(tmp_path: Path) -> None:
    texts = [str(number) * 100_000 for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_text(tmp_path / "x", text), texts * 4))
    assert (tmp_path / "x").read_text() in texts and names(tmp_path) == ["x"]


def test_a_folder_appears_at_the_end_or_not(tmp_path: Path) -> None:
    out = tmp_path / "a" / "model"
    (tmp_path / "a" / "model.partial").mkdir(parents=True)
    (tmp_path / "a" / "model.partial" / "left").touch()  # by a kill
    with new_folder(out) as partial:
        (partial / "weights").touch()
        assert not out.exists()
    assert names(out) == ["weights"] and names(out.parent) == ["model"]
    with pytest.raises(OSError), new_folder(out) as partial:
        (partial / "other").touch()
    with pytest.raises(ZeroDivisionError), new_folder(out, replace=True) as partial:
        raise ZeroDivisionError
    assert names(out) == ["weights"] and names(out.parent) == ["model"]
    with new_folder(out, replace=True) as partial:
        (partial / "other").touch()
    assert names(out) == ["other"] and names(out.parent) == ["model"]
    with pytest.raises(ValueError, match="exists already; give --out a new folder"):
        check_not_exists(out)
    (tmp_path / "done").mkdir()
    replace_folder(tmp_path / "done", out)
    assert names(out) == [] and names(tmp_path) == ["a"]


def test_files_join_others_at_the_end_or_not(tmp_path: Path) -> None:
    (tmp_path / "log").touch()
    with pytest.raises(ZeroDivisionError), new_files(tmp_path) as folder:
        (folder / "weights").touch()
        raise ZeroDivisionError
    assert names(tmp_path) == ["log"]
    with new_files(tmp_path) as folder:
        (folder / "weights").touch()
        assert not (tmp_path / "weights").exists()
    assert names(tmp_path) == ["log", "weights"]


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("a.JPG", "JPEG"), ("a.webp", "WEBP")])
def test_an_image_has_the_format_of_its_suffix(tmp_path: Path, name: str, kind: str) -> None:
    write_image(Image.new("RGB", (4, 4)), tmp_path / "new" / name)
    assert names(tmp_path / "new") == [name]
    with Image.open(tmp_path / "new" / name) as image:
        assert image.format == kind


@pytest.mark.parametrize("name", ["a", "a.txt", "a.cur"])  # Pillow reads the last one only
def test_an_image_without_a_format_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="has no image format that Pillow writes; use the suffix .png"):
        image_format(tmp_path / name)
