"""An order by length is the same on all ranks and in a run that goes on inside an epoch."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import load_file
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler

from unified.training.length_order import LengthOrder

LENGTHS = [3, 90, 5, 41, 77, 12, 8, 64, 30, 21, 55, 4] * 8


def order(epoch: float, seed: int = 0) -> list[int]:
    """The order of an epoch, whatever torch's global generator is at."""
    torch.rand(int(torch.randint(1, 9, ())))
    sampler = LengthOrder(LengthGroupedSampler(4, lengths=LENGTHS), seed)
    sampler.on_epoch_begin(TrainingArguments(use_cpu=True), TrainerState(epoch=epoch), TrainerControl())
    return list(sampler)


def test_the_order_is_a_function_of_seed_and_epoch() -> None:
    assert sorted(order(0)) == [*range(len(LENGTHS))]
    assert order(1) == order(1.5) != order(0)
    assert order(0, seed=1) != order(0)


@pytest.mark.parametrize("strategy", ["group_by_length", "batch_rebalance"])
def test_a_run_goes_on_inside_an_epoch(
    strategy: str,
    run_script: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    toy_checkpoint: Path,
    toy_rows: Callable[[str], Path],
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    given = ["--config", ROOT / "recipes/configs/tiny.yaml", "--model", toy_checkpoint, "--max_steps", 6]
    given += ["--train_files", toy_rows("dddddaaatttt"), "--save_steps", 1, "--train_sampling_strategy", strategy]
    whole = tmp_path / "whole"
    assert run_script("recipes/sft.py", *given, "--output_dir", whole) == 0
    expected = load_file(whole / "model.safetensors")
    for step in (1, 4, 5):  # of three in an epoch
        out = tmp_path / f"from{step}"
        shutil.copytree(whole / f"checkpoint-{step}", out / f"checkpoint-{step}")
        assert run_script("recipes/sft.py", *given, "--output_dir", out, "--resume", "True") == 0
        losses = [
            [entry["loss"] for entry in json.loads((folder / "trainer_state.json").read_text())["log_history"][:-1]]
            for folder in (whole, out)
        ]
        assert losses[0] == losses[1], step
        assert all(torch.equal(value, expected[name]) for name, value in load_file(out / "model.safetensors").items())
