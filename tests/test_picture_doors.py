"""Every kind of picture through every door that opens files: what viewers show, and damage named alike."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from picture_doors import SIDE, Doors, adobe_rgb, kinds, picture, stored, suffix
from PIL import Image

from unified.files.images import image_to_uint8, read_image
from unified.image_tokenizer.image_dataset import PixelDataset, open_images
from unified.serving.pictures import read_bytes

FILES = kinds()
BY_PIL = ("chat, PIL", "detectors, PIL", "processor")  # which get no file, whose damage Pillow alone can see


@pytest.fixture(scope="module")
def doors(tmp_path_factory: pytest.TempPathFactory) -> Doors:
    return Doors(tmp_path_factory.mktemp("doors"))


@pytest.mark.parametrize("kind", FILES)
def test_every_door_sees_what_viewers_show(kind: str, doors: Doors, tmp_path: Path) -> None:
    data, shown = FILES[kind]
    path = tmp_path / f"picture.{suffix(kind)}"
    path.write_bytes(data)
    wanted = image_to_uint8(shown, SIDE).numpy().astype(int)
    off = {name: float(np.abs(see(path).astype(int) - wanted).mean()) for name, see in doors.all.items()}
    assert max(off.values()) < 6, off
    assert len(set(off.values())) == 1, off  # one opener: the same pixels behind every door


def test_a_file_that_is_no_srgb_shows_other_numbers_than_it_holds() -> None:
    held = np.asarray(Image.open(io.BytesIO(FILES["Adobe RGB"][0])).convert("RGB"), int)
    assert np.abs(held - np.asarray(picture(), int)).max() > 30 and len(adobe_rgb()) > 400


def zeroed(data: bytes) -> bytes:
    return data[: len(data) * 3 // 4].ljust(len(data), b"\0")


@pytest.mark.parametrize(
    "harm", [zeroed, lambda data: data[:-20], lambda data: b"", lambda data: b"no picture at all"]
)
@pytest.mark.parametrize("form", ["PNG", "JPEG"])
def test_damage_is_named_at_every_door(
    form: str, harm: Callable[[bytes], bytes], doors: Doors, tmp_path: Path
) -> None:
    noise = Image.merge("RGB", [Image.effect_noise((96, 96), 90) for _ in range(3)])
    path = tmp_path / f"picture.{form.lower()}"
    path.write_bytes(harm(stored(noise, form)))
    for name, see in doors.all.items():
        if name not in BY_PIL:
            with pytest.raises(ValueError, match=r"picture\.|1 rows are .*unreadable"):
                see(path)


@pytest.mark.parametrize("kind", [kind for kind in FILES if suffix(kind) in ("png", "jpg", "webp", "gif")])
def test_a_server_sees_the_same(kind: str) -> None:
    data, _ = FILES[kind]
    served = np.asarray(read_bytes(data, "messages.0", 2**20))
    assert (served == np.asarray(read_image(data, "x"))).all()


def test_what_is_no_file_in_a_folder_is_named_at_the_doors_of_folders(
    doors: Doors, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "a.png").write_bytes(FILES["PNG"][0])
    (tmp_path / "folder.png").mkdir()
    os.symlink(tmp_path / "gone.png", tmp_path / "dead.png")
    os.mkfifo(tmp_path / "pipe.png")
    images = open_images(str(tmp_path))
    pictures = doors.fid.Pictures(str(tmp_path), doors.fid.FidArguments(str(tmp_path), str(tmp_path), image_size=SIDE))
    for look in (lambda: PixelDataset(images, SIDE, 1.0), lambda: PixelDataset(images, SIDE, 0.0), pictures.check):
        with pytest.raises(ValueError, match=r"2 of 3 images") as error:
            look()
        assert "dead.png cannot be read (No such file" in str(error.value) and "a pipe" in str(error.value)
    assert len(PixelDataset(images, SIDE, 1.0, max_bad=2)) == 1


def test_pictures_beside_a_parquet_are_found_and_lost_ones_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(FILES["PNG"][0])
    column = [{"path": "a.png"}, {"path": "gone.png"}, {"bytes": None}, {"bytes": b"", "path": "b.png"}]
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    (tmp_path / "shards").mkdir()
    for name, rows in (("image", column), ("images", [[one, None] for one in column])):
        table = pa.table({name: pa.array(rows, kind if name == "image" else pa.list_(kind))})
        pq.write_table(table, tmp_path / "shards" / "0.parquet")
        (tmp_path / "shards" / "a.png").unlink(missing_ok=True)
        with pytest.raises(ValueError, match=r"(\d) of \1 images") as error:
            PixelDataset(open_images(str(tmp_path / "shards")), SIDE, 1.0)
        assert "a.png (image 0 of " in str(error.value)
        (tmp_path / "shards" / "a.png").write_bytes(FILES["PNG"][0])
        found = open_images(str(tmp_path / "shards"))
        assert len(PixelDataset(found, SIDE, 1.0, max_bad=len(found) - 2)) == 2  # beside the file, and of the folder
