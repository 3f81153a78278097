"""recipes/train_detector.py on a toy: two steps, resuming, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from endings import check_ending, check_plot
from safetensors.torch import load_file

from unified import VQConfig, VQModel
from unified.evaluation.detector import SceneDetector

ROOT = Path(__file__).parents[2]
CONFIG = ["--config", "recipes/configs/smollm2_scenes/detector.yaml"]
TOY = "--channels 8 8 --num_blocks 1 1 --batch_size 16 --max_steps 2 --warmup_steps 1 --save_steps 1 --log_steps 1"
SCENES = ["--eval_scenes", "4", "--ceiling_scenes", "4"]


@pytest.fixture(scope="module")
def vq(tmp_path_factory) -> Path:
    """Folder of a random tokenizer for 64 pixels."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("vq")
    VQModel(VQConfig(channels=(32, 32), patch_nums=(1, 8), codebook_size=32, code_dim=4)).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(vq, tmp_path_factory) -> Path:
    """The recipe's whole run in a process of its own, on one thread, which gives the same sums every time."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    command = [sys.executable, "recipes/train_detector.py", *CONFIG, *TOY.split(), *SCENES]
    command += ["--vq", str(vq), "--output_dir", str(out)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1])["metric"] == "detector_ceilings"
    check_ending(result.stderr, out, "GenEval's score of rendered scenes")
    return out


def test_two_steps_leave_a_detector_a_log_a_checkpoint_and_ceilings(trained: Path) -> None:
    SceneDetector.from_pretrained(trained)
    records = [json.loads(line) for line in (trained / "log.jsonl").read_text().splitlines()]
    merged = {key for record in records for key in record}
    assert {"train/class_loss", "train/colour_loss", "train/box_loss", "images_per_second"} <= merged
    assert {"eval/renders", "eval/reconstructions_wrong_caption"} <= merged
    assert [path.name for path in trained.glob("checkpoint-*")] == ["checkpoint-0000002"]
    report = json.loads((trained / "ceilings.json").read_text())
    assert report["n"] == report["reconstructions"]["images"] == 24 and report["value"] == report["renders"]["overall"]
    assert report["tokenizer"] == report["config"]["vq_fingerprint"] and report["stderr"] is not None
    assert not list(trained.glob("unfinished*"))
    check_plot(trained, panels=2)


def test_a_resumed_run_is_the_uninterrupted_run(
    run_script, capfd, monkeypatch, vq: Path, trained: Path, tmp_path: Path
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    out = tmp_path / "halves"
    given = [*CONFIG, *TOY.split(), *SCENES, "--vq", vq, "--output_dir", out]
    for arguments in (["--max_minutes", 1e-9], ["--resume"]):
        assert run_script("recipes/train_detector.py", *given, *arguments) == 0
    printed = capfd.readouterr().out
    assert "resumed from" in printed and "checkpoint-0000001" in printed
    whole, halves = (load_file(folder / "model.safetensors") for folder in (trained, out))
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--vq", "/nowhere"], ["/nowhere", "recipes/train_vq.py"]),
        (["--batch_size", "4"], ["batch_size 4", "16"]),
        (["--chanels", "8"], ["chanels", "channels"]),
        (["--num_blocks", "1"], ["num_blocks [1]", "two numbers"]),
    ],
)
def test_bad_input_is_one_line_and_status_2(run_script, capfd, vq, tmp_path, arguments, words) -> None:
    assert run_script("recipes/train_detector.py", *CONFIG, "--vq", vq, "--output_dir", tmp_path, *arguments) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and all(word in line for word in words), line


def test_a_tokenizer_of_another_size_is_refused(run_script, capfd, vq_dir: Path) -> None:
    assert run_script("recipes/train_detector.py", *CONFIG, "--vq", vq_dir) == 2
    assert "16 pixels, Scenes have 64" in capfd.readouterr().err


def test_a_finished_run_is_not_overwritten(run_script, capfd, vq: Path, trained: Path) -> None:
    assert run_script("recipes/train_detector.py", *CONFIG, "--vq", vq, "--output_dir", trained) == 2
    assert "checkpoint-0000002" in capfd.readouterr().err
