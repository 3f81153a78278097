"""Averaged weights: what they are after every step, what a checkpoint holds of them, and runs that go on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import Tensor

from unified import VQConfig, VQModel
from unified.training.averaged_training import AveragedRun, newest_checkpoint
from unified.training.loss_plots import read_log
from unified.training.tokenizer_arguments import AveragedTrainingArguments


class Run(AveragedRun):
    """Trains a tokenizer towards zero; keeps its weights after every step."""

    seen: list[list[Tensor]]

    def step(self, step: int, batch: Any) -> None:
        self.set_learning_rate(step)
        loss = torch.stack([weight.square().sum() for weight in self.core.parameters()]).sum()
        self.update(loss)
        self.add(loss=loss)
        self.update_average()
        self.seen.append([weight.detach().clone() for weight in self.core.parameters()])

    def report(self, done: int, last: bool) -> None: ...


def run(out: Path, decay: float = 0.4, max_steps: int = 5) -> Run:
    torch.manual_seed(0)
    model = VQModel(VQConfig(channels=(32, 32), image_size=16, patch_nums=(1, 2), codebook_size=8, code_dim=4))
    args = AveragedTrainingArguments(output_dir=str(out), ema_decay=decay, max_steps=max_steps, save_steps=2)
    made = Run(Accelerator(cpu=True), model, args)
    made.seen = []
    return made


def averaged(start: list[Tensor], steps: list[list[Tensor]], decay: float) -> list[Tensor]:
    """The average by its definition: step n counts for 1 - min(decay, n / (n + 9)) of it, without a decay for all."""
    for number, weights in enumerate(steps, start=1):
        kept = min(decay, number / (number + 9)) if decay else 0.0
        start = [torch.lerp(old, new, 1 - kept) for old, new in zip(start, weights, strict=True)]
    return start


@pytest.mark.parametrize("decay", [0.0, 0.15, 0.9])
def test_the_average_warms_up_from_the_first_weights(tmp_path: Path, decay: float) -> None:
    one = run(tmp_path, decay)
    start = [weight.detach().clone() for weight in one.core.parameters()]
    one.load(None)
    one.train(range(5), 0)
    expected = averaged(start, one.seen, decay)
    for found, weight in zip(one.average.parameters(), expected, strict=True):
        torch.testing.assert_close(found, weight, rtol=0, atol=0)
        assert not found.requires_grad


def test_a_run_goes_on_from_a_checkpoint_that_holds_the_averaged_model_alone(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole")
    whole.load(None)
    whole.train(range(5), 0)
    first = run(tmp_path / "halves")
    first.load(None)
    first.train(range(2), 0)
    checkpoint = tmp_path / "halves/checkpoint-0000002"
    kept = load_file(checkpoint / "average.safetensors")
    assert kept.keys() == first.average.state_dict().keys()  # as before torch's AveragedModel made it
    second = run(tmp_path / "halves")
    assert second.load(checkpoint) == 2
    second.train(range(2, 5), 2)
    for found, weight in zip(second.average.parameters(), whole.average.parameters(), strict=True):
        torch.testing.assert_close(found, weight, rtol=0, atol=0)


def test_folders_that_somebody_keeps_beside_the_checkpoints_stay(tmp_path: Path) -> None:
    kept = [tmp_path / name for name in ("checkpoint-0000003-keep", "checkpoint-best", "checkpoint-")]
    for folder in kept:
        folder.mkdir()
    one = run(tmp_path)
    assert newest_checkpoint(replace(one.args, resume=True)) is None
    one.load(None)
    one.train(range(5), 0)
    newest = tmp_path / "checkpoint-0000005"
    assert {*tmp_path.glob("checkpoint-*")} == {*kept, newest}
    assert newest_checkpoint(replace(one.args, resume=True)) == newest and one.load(newest) == 5
    assert f"the last good checkpoint is {newest};" in one.after_divergence()


@pytest.mark.parametrize("seed", [0, 20261130, 2**32 - 1])
def test_every_seed_has_random_numbers_of_its_own_a_step(tmp_path: Path, seed: int) -> None:
    one = run(tmp_path)
    one.args.seed = seed
    drawn = {step: torch.rand((), generator=one.generator(step)).item() for step in range(3)}
    assert len({*drawn.values()}) == 3
    one.args.seed = 7
    assert one.generator(3).initial_seed() == (7 << 40) + (3 << 12)  # what runs of 0.1.0 go on with


def test_a_seed_is_one_of_numpys() -> None:
    with pytest.raises(ValueError, match=r"seed 4\.29497e\+09 is not in \[0, "):
        AveragedTrainingArguments(seed=2**32)


def test_a_run_that_begins_logs_from_its_first_step(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_text('{"step": 99, "train/loss": 1}\n')  # killed before its first checkpoint
    one = run(tmp_path)
    one.args.log_steps = 2
    one.load(None)
    one.train(range(5), 0)
    assert [entry["step"] for entry in read_log(tmp_path / "log.jsonl")] == [2, 4, 5]
