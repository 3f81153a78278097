"""Runs of HF's `Trainer` that know their end: steps planned from the measured speed, a word on what was cut off."""

import json
import math
import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.scheduler import AcceleratedScheduler
from accelerate.utils import broadcast
from torch.optim.lr_scheduler import LambdaLR
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from unified.arguments.shipped_files import COMMAND
from unified.files.atomic import write_text
from unified.files.jsonl import read_object
from unified.files.records import PROGRESS
from unified.training.progress_bar import show_figures
from unified.training.step_plan import Speed, StepPlan


class PlannedEnd(TrainerCallback, ExportableState):
    """Ends a run, and its learning rate's schedule, within `minutes` of training; None: with its last step.

    After a few steps that warm up the steps are planned, and anew when the speed changes; rank 0's clock counts. A run
    that goes on has the time that is left, or all of it again where none is. `output_dir`/progress.json says how far
    the run has come, and in its first line what was cut off and the `command` that goes on.
    """

    def __init__(self, minutes: float | None, command: str = "") -> None:
        self.minutes, self.command = minutes, command
        self.plan: StepPlan | None = None
        self.speed = Speed()
        self.began = self.step_began = self.step_ended = 0.0
        self.used, self.allowed = 0.0, math.inf

    def state(self) -> dict[str, Any]:
        """Kept in a checkpoint's trainer_state.json."""
        plan = self.plan.state() if self.plan is not None else None
        return {"args": {"minutes": self.minutes, "command": self.command}, "attributes": {"kept": plan}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up the plan where the checkpoint left it, and let the schedule follow it."""
        stored: Any = state.stateful_callbacks  # HF makes its list a dict
        kept = stored.setdefault(type(self).__name__, self.state())["attributes"].get("kept")
        step, total = state.global_step, state.max_steps
        self.plan = StepPlan.restored(kept, step, total) if kept and step else StepPlan(total, total, step, step)
        self.began = self.step_ended = time.monotonic()
        self.used, self.speed = self.plan.seconds, Speed()
        self.allowed = self.plan.go_on(step, self.minutes)
        state.max_steps = self.plan.end
        if self.minutes is not None or self.plan.at(step) != step:
            follow(kwargs["lr_scheduler"], self.plan)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A step's time begins."""
        self.step_began = time.monotonic()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Measure, plan, and stop at the end."""
        plan, step, now = self.known(), state.global_step, time.monotonic()
        self.speed.add(now - self.step_began, self.step_began - self.step_ended)
        self.step_ended, plan.seconds = now, self.used + now - self.began
        if self.minutes is None:
            return
        seconds = torch.tensor([self.speed.seconds_per_step(), self.allowed - (now - self.began)], device=args.device)
        rate, left = broadcast(seconds).tolist()  # all must stop at the same step
        if (self.speed.known() or left <= rate) and plan.measured(step, rate, left):
            state.max_steps = plan.end
            told = f"{plan.end} of {plan.max_steps} steps, {rate:.3g} s each, {max(0.0, left) / 60:.3g} minutes left"
            if plan.is_news() and state.is_world_process_zero:
                tqdm.write(f"planned: {told}", sys.stderr)
        if step >= plan.end and step < plan.max_steps:
            control.should_save = control.should_training_stop = True
            control.should_evaluate = args.eval_strategy != "no"

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Say how far the run has come, for whoever finds it killed."""
        self.write(args, state)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Say how it has ended."""
        self.write(args, state)
        told = self.known().sentence(state.global_step)
        if told and state.is_world_process_zero:
            tqdm.write(f"{told} {self.going_on(state)}".rstrip(), sys.stderr)

    def going_on(self, state: TrainerState) -> str:
        """The command that goes on, for a run that was cut off."""
        cut = self.known().ending(state.global_step) == "cut"
        return f"Go on with: {self.command}" if cut and self.command else ""

    def write(self, args: TrainingArguments, state: TrainerState) -> None:
        """The record; one process writes."""
        plan, step = self.known(), state.global_step
        if not state.is_world_process_zero:
            return
        record: dict[str, Any] = {"said": f"{plan.sentence(step)} {self.going_on(state)}".strip()}
        record["ending"] = plan.ending(step)
        record |= {"steps": step, "planned_steps": plan.end, "max_steps": plan.max_steps}
        record |= {"schedule_share": plan.at(step) / max(1, plan.max_steps), "seconds": plan.seconds}
        record |= {"seconds_per_step": plan.seconds_per_step, "minutes_given": self.minutes, "command": self.command}
        write_text(Path(str(args.output_dir)) / PROGRESS, json.dumps(record, indent=1) + "\n")

    def known(self) -> StepPlan:
        """The plan, which there is from the beginning of a training."""
        assert self.plan is not None, "the training has not begun"
        return self.plan


def cut_off(folder: Path) -> bool:
    """Whether the training that left progress.json in `folder`, if one did, had not come to its end."""
    path = folder / PROGRESS
    return path.is_file() and read_object(path)["ending"] == "cut"


def know_the_end(trainer: Trainer, minutes: float | None, command: str = "") -> PlannedEnd:
    """Give a trainer its planned end, and a bar that shows it where it has a bar."""
    planned = PlannedEnd(minutes, command)
    trainer.add_callback(planned)
    show_figures(trainer)
    return planned


def command_to_go_on(argv: Sequence[str]) -> str:
    """The command that a script was given, or the `unified run` that was typed, as one that resumes."""
    typed = os.environ.get(COMMAND)
    words = shlex.split(typed) if typed else argv
    resumes = any(word.split("=")[0] == "--resume" for word in words)
    return shlex.join([*words, *([] if resumes else ["--resume", "True"])]) + (
        "" if typed else " (launched as before)"
    )


def follow(scheduler: Any, plan: StepPlan) -> None:
    """Let a schedule's rates be those of the plan's positions; ValueError for one that is no function of the step."""
    inner = scheduler.scheduler if isinstance(scheduler, AcceleratedScheduler) else scheduler
    if not isinstance(inner, LambdaLR):
        raise ValueError(
            f"lr_scheduler_type makes a {type(inner).__name__}, whose end cannot be planned; use linear, cosine, "
            "constant_with_warmup or another one that is a function of the step"
        )
    inner.lr_lambdas = [planned_rate(rate, plan) for rate in inner.lr_lambdas]


def planned_rate(rate: Callable[[int], float], plan: StepPlan) -> Callable[[int], float]:
    """`rate` at the plan's position; a function, of which torch keeps no state in a checkpoint."""
    return lambda step: rate(plan.at(step))  # type: ignore[arg-type]  # HF's take fractions of steps too
