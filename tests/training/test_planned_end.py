"""Runs whose steps are planned, by a clock that is made up: their schedule, their bar, what they say of their end."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import ProgressCallback

from unified.training import planned_end
from unified.training.planned_end import command_to_go_on, follow, know_the_end
from unified.training.progress_bar import TimeLeft
from unified.training.step_plan import StepPlan

STEPS = 40


class Numbers(Dataset):
    """So many items as the run has steps, a batch each."""

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": torch.ones(2)}


class Mean(nn.Module):
    """The least that HF trains."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.layer(x).mean()}


class Stop(TrainerCallback):
    """Breaks the run, as a kill would, behind the checkpoint of a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_save(self, args: object, state: SimpleNamespace, *rest: object, **kwargs: object) -> None:
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Trainer]:
    """Train with steps of `seconds` each by the clock; two ticks of it, begin and end, make a step."""

    def run(
        minutes: float | None, seconds: float, *more: TrainerCallback, resume: bool = False, **settings
    ) -> Trainer:
        ticks = itertools.count()
        clock = SimpleNamespace(monotonic=lambda: next(ticks) * seconds / 2)
        monkeypatch.setattr(planned_end, "time", clock)
        options = {"learning_rate": 1.0, "logging_steps": 1, "save_steps": 5, "report_to": "none", "optim": "sgd"}
        options |= {"per_device_train_batch_size": 1, "use_cpu": True, "max_steps": STEPS, "max_grad_norm": 0.0}
        args = TrainingArguments(output_dir=str(tmp_path), **{**options, **settings})
        trainer = Trainer(Mean(), args, train_dataset=Numbers())
        know_the_end(trainer, minutes, "run --resume True")
        for callback in more:
            trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=resume)
        return trainer

    return run


def rates(trainer: Trainer) -> list[float]:
    return [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]


def progress(folder: Path) -> dict:
    return json.loads((folder / "progress.json").read_text())


def test_a_run_ends_with_its_time_and_its_schedule_with_the_run(
    train: Callable[..., Trainer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer = train(20.5, 60.0)  # a step a minute
    assert trainer.state.global_step == trainer.state.max_steps == 20
    found = rates(trainer)
    assert found[:2] == [1.0, 1 - 1 / STEPS]  # as if all steps were to come
    falls = [before - after for before, after in itertools.pairwise(found[4:])]
    assert falls == pytest.approx([falls[0]] * len(falls)) and found[-1] < 0.06
    assert (tmp_path / "checkpoint-20").is_dir()
    told = progress(tmp_path)
    assert told["ending"] == "shortened" and (told["steps"], told["max_steps"]) == (20, STEPS)
    assert list(told)[0] == "said" and told["said"].startswith("Shortened: 20 of 40 steps in the 20.5 minutes")
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if line.startswith("planned: 20 of 40 steps, 60 s each, ")]
    assert any(line.startswith("Shortened: 20 of 40 steps") and "Go on with" not in line for line in lines)


def test_with_time_enough_nothing_changes(train: Callable[..., Trainer], tmp_path: Path) -> None:
    limited, free = rates(train(1000.0, 60.0)), rates(train(None, 60.0))
    assert limited == free and len(free) == STEPS
    assert progress(tmp_path)["ending"] == "whole" and progress(tmp_path)["said"] == ""


def test_a_run_that_was_killed_says_so_and_goes_on_with_the_time_that_is_left(
    train: Callable[..., Trainer], tmp_path: Path
) -> None:
    whole = rates(train(20.5, 60.0))
    with pytest.raises(KeyboardInterrupt):
        train(20.5, 60.0, Stop(10))
    told = progress(tmp_path)
    assert told["ending"] == "cut" and told["said"].startswith("Cut off after 10 of 40 steps in the 20.5 minutes")
    assert told["said"].endswith("half-trained. Go on with: run --resume True") and 0 < told["schedule_share"] < 1
    for step in (15, 20):  # of the first run
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    trainer = train(20.5, 60.0, resume=True)
    assert trainer.state.global_step == 20 and rates(trainer) == pytest.approx(whole, abs=0.06)
    assert progress(tmp_path)["ending"] == "shortened"


def test_a_checkpoint_from_before_there_were_plans_opens(train: Callable[..., Trainer], tmp_path: Path) -> None:
    whole = rates(train(None, 60.0))
    state = tmp_path / "checkpoint-20/trainer_state.json"
    values = json.loads(state.read_text())
    del values["stateful_callbacks"]["PlannedEnd"]
    state.write_text(json.dumps(values))
    for step in range(25, 45, 5):
        shutil.rmtree(tmp_path / f"checkpoint-{step}")
    assert rates(train(None, 60.0, resume=True)) == whole


def test_the_bar_counts_the_steps_that_are_planned(train: Callable[..., Trainer]) -> None:
    totals: list[int] = []

    class Watch(TrainerCallback):
        def on_log(self, *rest: object, **kwargs: object) -> None:
            bars = [one for one in trainer_callbacks if isinstance(one, ProgressCallback)]
            assert [type(one) for one in bars] == [TimeLeft]
            totals.extend(one.training_bar.total for one in bars if one.training_bar is not None)

    trainer_callbacks: list[TrainerCallback] = []
    add = Trainer.add_callback

    def remember(self: Trainer, callback: TrainerCallback | type[TrainerCallback]) -> None:
        add(self, callback)
        trainer_callbacks[:] = self.callback_handler.callbacks

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "add_callback", remember)
        train(20.5, 60.0, Watch(), disable_tqdm=False)
    assert totals[0] == STEPS and totals[-1] == 20


def test_a_schedule_without_an_end_is_refused() -> None:
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(torch.optim.SGD(Mean().parameters()))
    with pytest.raises(ValueError, match="lr_scheduler_type makes a ReduceLROnPlateau, whose end cannot be planned"):
        follow(plateau, StepPlan(1, 1))


def test_the_command_that_goes_on_resumes() -> None:
    assert command_to_go_on(["sft.py", "--model", "a b"]) == "sft.py --model 'a b' --resume True (launched as before)"
    assert command_to_go_on(["sft.py", "--resume"]) == "sft.py --resume (launched as before)"
