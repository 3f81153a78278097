"""recipes/train_vq.py on a toy: two steps, resuming, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from endings import check_ending, check_plot, tracked_images
from PIL import Image
from safetensors.torch import load_file

from unified import VQModel
from unified.files.images import OPENER_VERSION

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    pixels = torch.randint(0, 256, (12, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for number, image in enumerate(pixels):
        Image.fromarray(image.numpy()).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture
def train(run_script, monkeypatch):
    """Run the recipe in this process, which saves the imports; returns its exit status."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    config = ROOT / "recipes/configs/tiny_vq.yaml"

    def run(images, out, *arguments):
        common = ["--config", config, "--data_dir", images, "--output_dir", out]
        return run_script("recipes/train_vq.py", *common, *arguments)

    return run


@pytest.fixture
def refuse(train, capfd):
    """Run the recipe, which must end with status 2 and one line that has all `words`."""

    def run(images, out, *arguments, words):
        assert train(images, out, *arguments) == 2
        line = capfd.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ") and all(word in line for word in words), line

    return run


def records(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(images, tmp_path_factory):
    """The recipe's whole run in a process of its own, on one thread, which gives the same sums every time."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    command = [sys.executable, "recipes/train_vq.py", "--config", "recipes/configs/tiny_vq.yaml"]
    command += ["--data_dir", str(images), "--output_dir", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    check_ending(result.stderr, out, "PSNR in dB")
    assert "PSNR in dB=" in result.stderr  # on the bar
    return out


def test_two_steps_leave_a_tokenizer_logs_a_grid_and_a_checkpoint(trained):
    model = VQModel.from_pretrained(trained)
    codes = model.encode(torch.zeros(1, 3, 16, 16))
    assert codes.shape == (1, 5) and model.decode(codes).shape == (1, 3, 16, 16)
    merged = {key: value for record in records(trained) for key, value in record.items()}
    expected = {"train/l1", "train/l2", "train/vq", "usage/scale_1", "perplexity/scale_0", "images_per_second"}
    assert expected | {"eval/psnr", "eval/psnr_scale_0", "eval/psnr_scale_1"} <= merged.keys()
    assert merged["eval/psnr"] == merged["eval/psnr_scale_1"]
    with Image.open(trained / "grids" / "0000002.png") as grid:
        assert grid.size == (4 * 16, 2 * 16)
    assert [path.name for path in trained.glob("checkpoint-*")] == ["checkpoint-0000002"]
    assert json.loads((trained / "run.json").read_text())["made_of"]["opener"] == OPENER_VERSION
    assert tracked_images(trained / "tensorboard") == {"reconstructions": [2]}
    check_plot(trained, panels=3)


def test_a_resumed_run_is_the_uninterrupted_run(images, trained, train, tmp_path):
    out = tmp_path / "halves"
    assert train(images, out, "--max_minutes", 1e-9) == 0
    assert [path.name for path in out.glob("checkpoint-*")] == ["checkpoint-0000001"]
    assert train(images, out, "--resume") == 0
    whole, halves = load_file(trained / "model.safetensors"), load_file(out / "model.safetensors")
    assert whole.keys() == halves.keys()
    for name, value in whole.items():
        torch.testing.assert_close(halves[name], value, rtol=0, atol=0, msg=name)


def test_the_discriminator_joins_and_the_average_can_be_off(images, train, tmp_path):
    arguments = ["--gan_weight", 0.5, "--gan_start_step", 1, "--gan_base_channels", 8, "--ema_decay", 0]
    assert train(images, tmp_path / "gan", *arguments) == 0
    first, second = (record for record in records(tmp_path / "gan") if "train/loss" in record)
    assert "train/critic" not in first and second["train/critic"] > 0 and second["train/gan_balance"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--bacth_size", "3"], ["bacth_size", "batch_size"]),
        (["--lpips_weight", "1.0"], ["lpips_path", "lpips_weight"]),
        (["--data_dir", "/nowhere"], ["/nowhere", "not a folder"]),
        (["--patch_nums", "1", "3"], ["patch_nums", "2x2"]),
        (["--eval_images", "50"], ["eval_images", "50", "12"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(refuse, images, tmp_path, arguments, words):
    refuse(images, tmp_path / "bad", *arguments, words=words)
    assert not list((tmp_path / "bad").glob("checkpoint-*"))


def test_an_unknown_key_of_a_file_is_refused(refuse, images, tmp_path):
    (tmp_path / "bad.yaml").write_text("codebok_size: 8\n")
    refuse(images, tmp_path / "x", "--config", tmp_path / "bad.yaml", words=["codebok_size", "codebook_size"])


def test_a_finished_run_is_not_overwritten(refuse, images, trained):
    refuse(images, trained, words=["checkpoint-0000002", "--resume"])
