"""eval/fid.py on small pictures, with the mean colour and its spread in place of Inception's features."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_script
from PIL import Image
from torch import Tensor, nn

from unified.data.rows import ROW_SCHEMA

SCRIPT = "eval/fid.py"


class Colours(nn.Module):
    """Features (B, 4): mean red, green and blue, and the spread."""

    asked: list[str | None] = []

    @classmethod
    def load(cls, path: str | None) -> "Colours":
        cls.asked.append(path)
        return cls()

    def forward(self, images: Tensor) -> Tensor:
        values = images.float().flatten(1, 2) / 255
        return torch.cat([values.mean(dim=1), values.std(dim=(1, 2))[:, None]], dim=1)


@pytest.fixture
def fid(
    run_script: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable:
    """The record that a run prints; for a `status` of 2 the line it fails with."""
    monkeypatch.setattr(load_script(SCRIPT), "Inception", Colours)

    def run(*arguments: object, status: int = 0) -> dict | str:
        assert run_script(SCRIPT, *arguments) == status
        printed = capsys.readouterr()
        return json.loads(printed.out) if status == 0 else printed.err.splitlines()[-1]

    return run


def write(folder: Path, count: int, seed: int, brighter: int = 0, side: int = 16) -> Path:
    generator = np.random.default_rng(seed)
    for number in range(count):
        path = folder / f"{number:05d}" / "samples" / "0000.png"
        path.parent.mkdir(parents=True)
        values = generator.integers(0, 156, (side, side, 3)) * generator.random(3) + brighter
        Image.fromarray(values.astype(np.uint8)).save(path)
    return folder


def test_equal_folders_have_no_distance_and_others_have(fid: Callable, tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 12, seed=0), write(tmp_path / "b", 12, seed=1)
    bright = write(tmp_path / "bright", 12, seed=0, brighter=90)
    same = fid("--a", a, "--b", a, "--inception", "file.pth")
    assert same["metric"] == "fid" and same["value"] == pytest.approx(0, abs=1e-4) and same["n"] == 12
    assert Colours.asked[-1] == "file.pth"
    near, far = fid("--a", a, "--b", b)["value"], fid("--a", a, "--b", bright)["value"]
    assert 0 < near < far and far == pytest.approx(3 * (90 / 255) ** 2, rel=0.01)
    assert fid("--a", b, "--b", a, "--batch_size", 5)["value"] == pytest.approx(near, rel=1e-3)


def test_the_result_says_whose_pictures_they_are(fid: Callable, tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 4, seed=0), write(tmp_path / "b", 6, seed=1)
    made = {"model": "out/image-generator", "vq_fingerprint": "feed", "prompts_sha256": "beef", "seed": 7}
    (a / "settings.json").write_text(json.dumps(made))
    record = fid("--a", a, "--b", b, "--out", tmp_path / "results" / "fid.json")
    assert record == json.loads((tmp_path / "results" / "fid.json").read_text())
    assert record["model"] == "out/image-generator" and record["n"] == 4 and record["stderr"] is None
    assert (record["tokenizer"], record["prompts_sha256"], record["seed"]) == ("feed", "beef", 7)
    assert record["config"] == {"b": str(b), "image_size": 0, "n_a": 4, "n_b": 6}
    assert fid("--a", a, "--b", b, "--n", 3)["config"]["n_b"] == 3


def test_parquet_is_read_too(fid: Callable, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    a = write(tmp_path / "a", 3, seed=0)
    images = [[{"bytes": path.read_bytes(), "path": None}] for path in sorted(a.rglob("*.png"))]
    rows = [{"messages": [], "images": image, "metadata": "{}", "source": "test"} for image in images]
    (tmp_path / "b").mkdir()
    pq.write_table(pa.Table.from_pylist(rows, schema=ROW_SCHEMA), tmp_path / "b" / "0.parquet")
    assert fid("--a", a, "--b", tmp_path / "b")["value"] == pytest.approx(0, abs=1e-4)


def test_two_sizes_are_an_error_unless_brought_to_one(fid: Callable, tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 4, seed=0), write(tmp_path / "b", 4, seed=0, side=24)
    line = fid("--a", a, "--b", b, status=2)
    assert "b/00000/samples/0000.png is 24 x 24, the first one of --a 16 x 16; give --image_size" in line
    assert fid("--a", a, "--b", b, "--image_size", 8)["config"]["image_size"] == 8


def test_what_cannot_be_compared_is_named(fid: Callable, tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", 4, seed=0), write(tmp_path / "b", 4, seed=1)
    assert "holds 4 pictures" in fid("--a", a, "--b", b, "--n", 5, status=2)
    assert "is not a folder" in fid("--a", a, "--b", tmp_path / "nothing", status=2)
    broken = b / "00002" / "samples" / "0000.png"
    broken.write_bytes(broken.read_bytes()[:100])
    assert f"{broken} cannot be read" in fid("--a", a, "--b", b, status=2)
    assert "1 pictures have no covariance" in fid("--a", a, "--b", a, "--n", 1, status=2)


def test_absent_weights_are_one_line(
    run_script: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    a = write(tmp_path / "a", 2, seed=0)
    for extra, words in (((), "give --inception FILE"), (("--inception", tmp_path / "x.pth"), "are not a file")):
        assert run_script(SCRIPT, "--a", a, "--b", a, *extra) == 2
        error = capsys.readouterr().err
        assert error.splitlines()[-1].startswith("error: ") and words in error and "Traceback" not in error
