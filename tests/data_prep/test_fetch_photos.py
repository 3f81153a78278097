"""data_prep/fetch_photos.py on a tree as Debian's packages leave it, and where there is none."""

import json
from pathlib import Path

import pytest
from PIL import Image

from unified.image_tokenizer.image_dataset import open_images

SCRIPT = "data_prep/fetch_photos.py"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    stamps = tmp_path / "share" / "tuxpaint" / "stamps"
    texts = {
        "animals/cat.png": "A cat.\nde.utf8=Eine Katze.\n",
        "animals/cat_mirror.png": "A cat.\n",
        "animals/cartoon/dog.png": "A dog.\n",
        "symbols/one.png": "1\n",
        "food/nothing.png": None,
        "food/pie.png": "A pie.\n",
    }
    for name, text in texts.items():
        path = stamps / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGBA", (20, 30), (255, 0, 0, 0)).save(path)
        if text:
            path.with_suffix(".txt").write_text(text, encoding="utf-8")
    nature = tmp_path / "share" / "backgrounds" / "mate" / "nature"
    nature.mkdir(parents=True)
    Image.new("RGB", (40, 30)).save(nature / "LadyBird.jpg")
    return tmp_path / "share"


def test_photographs_with_their_captions_are_taken_and_drawings_are_not(run_script, tree, tmp_path, capsys) -> None:
    out = tmp_path / "photos"
    assert run_script(SCRIPT, "--out", out, "--tree", tree) == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(out), "pictures": 3}
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [
        {"file_name": "animals-cat.png", "text": "a cat"},
        {"file_name": "food-pie.png", "text": "a pie"},
        {"file_name": "nature-LadyBird.jpg", "text": "lady bird"},
    ]
    assert len(open_images(str(out))) == 3
    assert run_script("data_prep/convert_captions.py", "--images", out, "--out", tmp_path / "rows.jsonl") == 0


def test_a_tree_without_the_packages_and_a_folder_that_exists_are_refused(run_script, tree, tmp_path, capsys) -> None:
    assert run_script(SCRIPT, "--out", tmp_path / "new", "--tree", tmp_path / "nowhere") == 2
    assert "nowhere holds none of tuxpaint-stamps-default, mate-backgrounds; give" in capsys.readouterr().err
    assert run_script(SCRIPT, "--out", tmp_path, "--tree", tree) == 2
    assert "exists already; give --out" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_where_there_is_no_debian_the_command_is_named(run_script, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run_script(SCRIPT, "--out", tmp_path / "new") == 2
    assert "apt-get download tuxpaint-stamps-default mate-backgrounds failed (" in capsys.readouterr().err
