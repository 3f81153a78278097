"""Training loop of small vision models: a model and its moving average, schedule, checkpoints and log.

Trainings that HF's Trainer does not support (image tokenizer, detector) subclass `AveragedRun` and implement `step`.
"""

import json
import math
import shutil
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from tqdm import tqdm
from transformers import PreTrainedModel

from unified.files.atomic import new_files, replace_folder, write_text
from unified.files.jsonl import read_object
from unified.hardware.memory import one_line_when_full, sizes_of
from unified.training.finite import FiniteSteps, check_steps
from unified.training.hardware_choice import write_record
from unified.training.loss_plots import OF_AVERAGED, plot_history, read_log
from unified.training.other_ranks import one_line_when_others_end
from unified.training.run_folder import check_folder, checkpoints_of, locked, step_of
from unified.training.run_record import RunRecord, begin
from unified.training.run_state import check_states, read_accelerators_files, read_modules, write_modules
from unified.training.step_plan import Speed, StepPlan
from unified.training.tokenizer_arguments import AveragedTrainingArguments

PLAN = "plan.json"  # of a checkpoint
LOG = "log.jsonl"


class AveragedRun(ABC):
    """State of a run: weights, their average, optimizer, sums for the log, timers."""

    def __init__(
        self,
        accelerator: Accelerator,
        model: PreTrainedModel,
        args: Any,  # a subclass of AveragedTrainingArguments
        final_learning_rate: float = 0.0,
        checkpoints_kept: int = 1,
    ) -> None:
        self.accelerator, self.args = accelerator, args
        self.final_learning_rate, self.checkpoints_kept = final_learning_rate, checkpoints_kept
        self.core: Any = model.to(accelerator.device, memory_format=torch.channels_last).train()
        self.averaging = AveragedModel(self.core, multi_avg_fn=self.move_average)
        self.averaging.n_averaged += 1  # the initial weights are the first
        self.average: Any = self.averaging.module.requires_grad_(False).eval()
        optimizer = torch.optim.AdamW(parameter_groups(model, args.weight_decay), betas=(0.9, 0.95), fused=True)
        self.model, self.optimizer = accelerator.prepare(self.core, optimizer)
        self.trained = [(self.core, self.optimizer)]  # in the order in which accelerate has prepared them
        self.kept: dict[str, nn.Module] = {"average": self.average}  # in checkpoints, besides
        self.plan, self.speed = StepPlan(args.max_steps, args.max_steps), Speed()
        self.record: RunRecord | None = None
        self.sums: dict[str, Tensor] = {}
        self.scores: dict[str, float] = {}  # newest figures of evaluation, for the bar and the run's end
        self.finite, self.current_step = FiniteSteps(accelerator), 0
        self.window_start, self.window_steps = time.monotonic(), 0

    def train(self, batches: Iterable[Any], first_step: int) -> None:
        """Train on `batches`, which start with that of `first_step`; log, evaluate and save."""
        hidden = not self.accelerator.is_main_process
        allowed = self.plan.go_on(first_step, self.args.max_minutes)
        trains = self.plan.end > first_step
        with tqdm(total=self.plan.end, initial=first_step, unit="step", disable=hidden) as bar:
            done = self.loop(batches, first_step, allowed, bar) if trains else first_step
        if trains:
            check_steps(done, first_step)
        if said := self.plan.sentence(done):
            self.accelerator.print(said, file=sys.stderr)

    def loop(self, batches: Iterable[Any], first_step: int, allowed: float, bar: tqdm) -> int:
        """The steps of `train` in the seconds `allowed`; returns how many were done."""
        args, used, done = self.args, self.plan.seconds, first_step
        ended = began = time.monotonic()
        for step, batch in enumerate(batches, start=first_step):
            step_began, self.current_step = time.monotonic(), step
            with one_line_when_full(lambda: sizes_of(self.core, self.optimizer), self.lighter()):
                self.step(step, batch)
            self.speed.add(time.monotonic() - step_began, step_began - ended)
            self.window_steps += 1
            done, ended = step + 1, time.monotonic()
            self.plan.seconds = used + ended - began
            self.plan_steps(done, allowed - (ended - began))
            bar.total = self.plan.end
            bar.update()
            last = done >= self.plan.end
            if last or any(done % steps == 0 for steps in (args.log_steps, args.eval_steps, args.save_steps)):
                trained = nn.ModuleList(model for model, _ in self.trained)
                self.finite.check(trained, done, self.rows_of, self.after_divergence())
            if done % args.log_steps == 0 or last:
                postfix = self.log_training(done)
            self.report(done, last)
            if done % args.log_steps == 0 or last:
                bar.set_postfix(postfix | {name: f"{value:.4g}" for name, value in self.scores.items()})
            if done % args.save_steps == 0 or last:
                self.save(done)
            if last:
                break
        return done

    def plan_steps(self, done: int, seconds_left: float) -> None:
        """Plan the steps that fit into the time left, by rank 0's speed: all must leave the loop at the same step."""
        if self.args.max_minutes is None:
            return
        seconds = torch.tensor([self.speed.seconds_per_step(), seconds_left], device=self.accelerator.device)
        rate, left = broadcast(seconds).tolist()
        planned = (self.speed.known() or left <= rate) and self.plan.measured(done, rate, left)
        if planned and self.plan.is_news() and self.accelerator.is_main_process:
            tqdm.write(f"planned: {self.plan.end} of {self.plan.max_steps} steps", sys.stderr)

    def lighter(self) -> tuple[str, str]:
        """Settings that would take less memory."""
        return f"batch_size below {self.args.batch_size}", "fewer channels"

    def position(self, step: int) -> float:
        """Where in the schedule of max_steps a step stands: at `step`, unless fewer steps are planned."""
        return self.plan.at(step)

    def after_divergence(self) -> str:
        """What is left of a run that has diverged, and what to change."""
        kept = checkpoints_of(self.args.output_dir)
        left = f"the last good checkpoint is {kept[-1]}" if kept else "before any checkpoint"
        return f"stopped, {left}; lower learning_rate {self.args.learning_rate:g}, or look at these rows"

    def rows_of(self, step: int) -> list[str]:
        """Names of what `step` was trained on, over all processes."""
        return [f"those of seed {self.args.seed}"]

    @abstractmethod
    def step(self, step: int, batch: Any) -> None:
        """One optimizer step."""

    @abstractmethod
    def report(self, done: int, last: bool) -> None:
        """Evaluate if it is due at step `done`."""

    def update(self, loss: Tensor) -> None:
        """Backward, clip, optimizer; `set_learning_rate` comes before the loss, `update_average` after."""
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.core.parameters(), self.args.max_grad_norm)
        self.finite.add(self.current_step, loss, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def set_learning_rate(self, step: int) -> None:
        """Set the step's learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.position(step), self.args, self.final_learning_rate)

    def generator(self, step: int) -> torch.Generator:
        """CPU generator of a step and process: a resumed run gets the same random numbers as an uninterrupted one."""
        seed = (self.args.seed << 40) + (step << 12) + self.accelerator.process_index
        return torch.Generator().manual_seed(seed % 2**64)  # a date's is beyond

    def update_average(self) -> None:
        """Update the averaged weights."""
        self.averaging.update_parameters(self.core)

    def move_average(self, average: Any, weights: Any, _: Any) -> None:
        """What `AveragedModel` calls: the decay is smaller in early steps, to forget the random initialization."""
        count = int(self.averaging.n_averaged)  # on the CPU; the one that is given is on the device, to be waited for
        decay = min(self.args.ema_decay, count / (count + 9)) if self.args.ema_decay > 0 else 0.0
        get_ema_multi_avg_fn(decay)(average, weights, count)

    def add(self, **terms: Tensor) -> None:
        """Sum terms on the device; only `log_training` waits for them."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()

    def log_training(self, done: int, **more: float) -> dict[str, str]:
        """Log the mean terms since the last call, `more`, and the speed; returns the progress bar's postfix."""
        seconds = time.monotonic() - self.window_start
        images = self.window_steps * self.args.batch_size * self.accelerator.num_processes
        record = {f"train/{name}": float(value) / self.window_steps for name, value in self.sums.items()} | more
        rate = learning_rate(self.position(done - 1), self.args, self.final_learning_rate)
        record |= {"learning_rate": rate, "images_per_second": images / seconds}
        self.write(done, record)
        self.sums, self.window_steps, self.window_start = {}, 0, time.monotonic()
        return {"loss": f"{record['train/loss']:.4f}", "image/s": f"{record['images_per_second']:.0f}"}

    def write(self, done: int, record: dict[str, float]) -> None:
        """Write one line of log.jsonl, and the same values to accelerate's trackers."""
        self.accelerator.log(record, step=done)
        if self.accelerator.is_main_process:
            with Path(self.args.output_dir, LOG).open("a", encoding="utf-8") as log:
                log.write(json.dumps({"step": done} | record) + "\n")

    def save(self, done: int) -> None:
        """Write checkpoint-<step> atomically, and delete the oldest beyond `checkpoints_kept`."""
        folder = Path(self.args.output_dir)
        partial, final = folder / "unfinished-checkpoint", folder / f"checkpoint-{done:07d}"
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            write_modules(partial, self.kept)
            if self.record is not None:
                self.record.steps = done
                self.record.write(partial)
            write_record(partial)
            write_text(partial / PLAN, json.dumps(self.plan.state()))
            replace_folder(partial, final)
            for old in checkpoints_of(folder)[: -self.checkpoints_kept]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def run(self, record: RunRecord, checkpoint: Path | None, batches: Callable[[int], Iterable[Any]]) -> bool:
        """Train from the beginning or from `checkpoint`, and save the result; False where that was done before.

        `batches(step)` are those from a step on. Raises ValueError where `record` is not the checkpoint's.
        """
        folder = Path(self.args.output_dir)
        changes, finished = begin(record, folder, checkpoint, self.args.allow_changed)
        if finished:
            return False
        with one_line_when_others_end(), locked(folder, new=not self.args.resume):
            self.record = record
            first_step = self.load(checkpoint)
            self.renew({change["name"] for change in changes})
            self.train(batches(first_step), first_step)
            self.finish()
        return True

    def renew(self, changed: set[str]) -> None:
        """Give the optimizers of a checkpoint what has `changed`; the learning rate is set in every step."""
        if "weight_decay" in changed:
            self.optimizer.param_groups[0]["weight_decay"] = self.args.weight_decay

    def load(self, checkpoint: Path | None) -> int:
        """Continue from `checkpoint`, the same on all processes as `begin` has checked; returns the first step."""
        Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
        if checkpoint is None:  # what a run that was killed before its first checkpoint logged is not this one's
            if self.accelerator.is_main_process:
                Path(self.args.output_dir, LOG).unlink(missing_ok=True)
            return 0
        step = step_of(checkpoint)
        check_states(checkpoint)
        read_accelerators_files(checkpoint, self.accelerator, self.trained)
        read_modules(checkpoint, self.kept)
        self.averaging.n_averaged.fill_(step + 1)  # not stored: every step adds one
        if (checkpoint / PLAN).is_file():  # checkpoints from before there were plans have none
            kept = read_object(checkpoint / PLAN)
            self.plan = StepPlan.restored(kept, step, self.args.max_steps)
        else:
            self.plan.step, self.plan.position = step, float(step)
        self.accelerator.print(f"resumed from {checkpoint}")
        return step

    def finish(self) -> None:
        """Save the averaged weights for `from_pretrained`."""
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            with new_files(self.args.output_dir) as folder:
                self.average.to(memory_format=torch.contiguous_format).save_pretrained(folder)
                write_record(folder)
                if self.record is not None:
                    self.record.write(folder, self.plan.end if self.plan.ending(self.plan.end) != "cut" else None)
            plot_history(read_log(Path(self.args.output_dir, LOG)), OF_AVERAGED, Path(self.args.output_dir))


def learning_rate(step: float, args: AveragedTrainingArguments, final: float) -> float:
    """Linear warm-up, then a cosine down to `final` at max_steps."""
    warm = min(1.0, (step + 1) / max(args.warmup_steps, 1))
    progress = max(0, step - args.warmup_steps) / max(args.max_steps - args.warmup_steps, 1)
    cosine = 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
    return warm * (final + (args.learning_rate - final) * cosine)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for convolution weights only, not for norms, biases and codebook."""
    kernels = [p for p in model.parameters() if p.ndim == 4]
    others = [p for p in model.parameters() if p.ndim != 4]
    return [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def newest_checkpoint(args: AveragedTrainingArguments) -> Path | None:
    """Checkpoint to resume from; raises ValueError if a new run would overwrite an old one's."""
    found = checkpoints_of(args.output_dir)
    newest = found[-1] if found else None
    check_folder(args.output_dir, args.resume, newest)
    return newest
