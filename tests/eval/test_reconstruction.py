"""eval/reconstruction.py on a random tokenizer: what it prints agrees with the tokenizer, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_script
from PIL import Image
from torch import nn

from unified import VQModel
from unified.evaluation.metrics import psnr
from unified.files.images import image_to_pixels
from unified.image_tokenizer.losses import LPIPS

SCRIPT = "eval/reconstruction.py"
Measure = Callable[..., dict | str]


class Colours(nn.Module):
    """Mean red, green and blue (B, 3) in place of Inception's features."""

    @classmethod
    def load(cls, path: str | None) -> "Colours":
        return cls()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean(dim=(1, 2)) / 255


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder, generator = tmp_path / "images", np.random.default_rng(0)
    folder.mkdir()
    for number in range(7):
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def lively_vq(tiny_vq: VQModel, tmp_path: Path) -> VQModel:
    """Tokenizer on disk in `tmp_path / "vq"` whose codes differ from image to image."""
    torch.nn.init.normal_(tiny_vq.quantizer.embedding.weight)
    tiny_vq.save_pretrained(tmp_path / "vq")
    return tiny_vq


@pytest.fixture
def measure(
    lively_vq: VQModel, images: Path, tmp_path: Path, run_script: Callable, capsys: pytest.CaptureFixture[str]
) -> Measure:
    """The record that a run on all images prints; for a `status` of 2 the line it fails with."""

    def run(*arguments: object, status: int = 0) -> dict | str:
        common = ["--vq", tmp_path / "vq", "--images", images, "--n", 0, "--batch_size", 3]
        assert run_script(SCRIPT, *common, *arguments) == status
        printed = capsys.readouterr()
        return json.loads(printed.out) if status == 0 else printed.err.splitlines()[-1]

    return run


def pixels(folder: Path) -> torch.Tensor:
    return torch.stack([image_to_pixels(Image.open(path), 16) for path in sorted(folder.glob("*.png"))])


def test_the_numbers_are_the_tokenizers(measure: Measure, lively_vq: VQModel, images: Path, tmp_path: Path) -> None:
    record = measure("--out", tmp_path / "result.json")
    assert record == json.loads((tmp_path / "result.json").read_text())
    real = pixels(images)
    codes = lively_vq.encode(real)
    scores = psnr(lively_vq.decode(codes), real)
    assert record["metric"] == "psnr" and record["n"] == 7 and record["tokenizer"] == lively_vq.fingerprint()
    assert record["value"] == record["psnr_by_scale"][-1] == pytest.approx(float(scores.mean()), abs=1e-3)
    assert record["stderr"] == pytest.approx(float(scores.std() / 7**0.5), abs=1e-3)
    assert record["usage_by_scale"][0] == pytest.approx(len(codes[:, 0].unique()) / 32, abs=1e-4)
    assert record["codes_used"] == pytest.approx(len(codes.unique()) / 32, abs=1e-4)
    assert len(record["perplexity_by_scale"]) == 2 and -1 <= record["ssim"] < 1
    assert "rfid" not in record and "lpips" not in record
    assert record["seed"] is record["prompts_sha256"] is None and record["seconds"] >= 0


def test_batches_do_not_matter_and_n_takes_the_first(measure: Measure, lively_vq: VQModel, images: Path) -> None:
    whole, one_by_one = measure(), measure("--batch_size", 1)
    for name in ("value", "ssim", "usage_by_scale", "codes_used"):
        assert whole[name] == pytest.approx(one_by_one[name], abs=2e-3)
    real = pixels(images)[:2]
    expected = float(psnr(lively_vq.decode(lively_vq.encode(real)), real).mean())
    assert measure("--n", 2)["value"] == pytest.approx(expected, abs=1e-3)


def test_ssim_knows_equal_pictures() -> None:
    real = torch.rand(2, 3, 16, 16) * 2 - 1
    ssim = load_script(SCRIPT).ssim
    torch.testing.assert_close(ssim(real, real), torch.ones(2))
    inverted, shifted = ssim(-real, real), ssim((real + 0.1).clamp(-1, 1), real)
    assert (inverted < 0.2).all() and (shifted > 0.8).all()


def test_rfid_and_lpips_on_demand(measure: Measure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_script(SCRIPT), "Inception", Colours)
    torch.manual_seed(0)
    torch.save(LPIPS().state_dict(), tmp_path / "vgg.pth")
    monkeypatch.setattr(LPIPS, "forward", lambda self, a, b: (a - b).abs().flatten(1).mean(dim=1))
    record = measure("--rfid", "--lpips", tmp_path / "vgg.pth")
    assert record["rfid"] > 0 and 0 < record["lpips"] < 2


def test_the_grid_has_a_row_for_each_scale(measure: Measure, lively_vq: VQModel, images: Path, tmp_path: Path) -> None:
    measure("--grid", tmp_path / "new" / "grid.png", "--grid_images", 5)
    grid = np.asarray(Image.open(tmp_path / "new" / "grid.png")).reshape(3, 16, 5, 16, 3)
    third = np.asarray(Image.open(images / "2.png"))
    assert (grid[0, :, 2] == third).all()
    stages = lively_vq.decode_by_scale(lively_vq.encode(pixels(images)[2:3]))
    for row, stage in zip(grid[1:, :, 2], stages, strict=True):
        assert np.abs(row - (stage[0].permute(1, 2, 0).numpy() + 1) * 127.5).max() <= 1


def test_the_last_scale_is_the_picture(lively_vq: VQModel, images: Path) -> None:
    codes = lively_vq.encode(pixels(images))
    coarse, fine = lively_vq.decode_by_scale(codes)
    torch.testing.assert_close(fine, lively_vq.decode(codes))
    changed = torch.cat([codes[:, :1], codes[:, 1:].flip(0)], dim=1)
    torch.testing.assert_close(lively_vq.decode_by_scale(changed)[0], coarse)
    assert coarse.shape == fine.shape and fine.abs().max() <= 1


def test_bad_input_is_one_line(
    measure: Measure, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    assert "give --inception FILE" in measure("--rfid", status=2)
    assert "are not a file" in measure("--rfid", "--inception", tmp_path / "none.pth", status=2)
    assert "none.pth is not a file" in measure("--lpips", tmp_path / "none.pth", status=2)
    assert "holds 7 images" in measure("--n", 8, status=2)
    assert "end it with .png" in measure("--grid", "grid.jpg", status=2)
    assert "holds no tokenizer" in measure("--vq", images, status=2)
    (images / "4.png").write_bytes((images / "4.png").read_bytes()[:80])
    assert f"{images / '4.png'} cannot be read" in measure(status=2)
