"""Trainings that stop at the first loss or gradient norm that is not finite, and name the step and its rows.

Nothing is saved from that step on, so the newest checkpoint is the last good one. All ranks stop together.
"""

import math
from collections.abc import Callable, Mapping, Sequence, Sized
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.scheduler import AcceleratedScheduler
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import get_last_checkpoint

from unified.models.modeling import UnifiedForCausalLM
from unified.training.length_order import LengthOrder

ROWS = "row_indices"  # of a batch, until the trainer takes it out
SHOWN = 8  # rows that are named


class WithRows:
    """A collator whose batches say which rows of the data set they are made of, where examples have an `index`."""

    def __init__(self, collator: Callable[..., Any]) -> None:
        self.collator = collator

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> Any:
        batch = self.collator(examples)
        if all("index" in example for example in examples):
            batch[ROWS] = torch.tensor([example["index"] for example in examples])
        return batch


class FiniteTrainer(Trainer):
    """HF's `Trainer`, or in front of one of TRL's, that stops at a loss, norm or weight that is not finite.

    `name_rows` turns indices of rows into names for the error. The loss is looked at once a step, before the optimizer
    moves anything (DeepSpeed's engine moves it earlier); HF's filter, which hides such losses, is switched off.
    fp16's gradient scaler skips steps of infinite gradients, which therefore count only when it cannot scale less.

    Raises FloatingPointError on every rank.
    """

    name_rows: Callable[[Sequence[int]], list[str]] = staticmethod(lambda rows: [f"row {row}" for row in rows])
    describe: Callable[[Path], None] = staticmethod(lambda folder: None)  # adds to a folder what its weights are

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.args.logging_nan_inf_filter = False
        self.step_rows: list[Tensor] = []
        self.step_losses: list[Tensor] = []
        self.renewed: list[str] = []  # settings of the optimizer that a resumed run has anew

    def get_train_dataloader(self) -> DataLoader:
        """HF's, whose batches say what rows they are made of."""
        collator: Any = self.data_collator
        self.data_collator = WithRows(collator)
        try:
            return super().get_train_dataloader()
        finally:
            self.data_collator = collator

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        """HF's; an order by lengths is a function of seed and epoch, as the others are."""
        sampler = super()._get_train_sampler(*args, **kwargs)
        if isinstance(sampler, LengthGroupedSampler):
            sampler = LengthOrder(sampler, self.args.seed if self.args.data_seed is None else self.args.data_seed)
            self.add_callback(sampler)
        return sampler

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """HF's batches of one step, whose rows are remembered."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        self.step_rows = [batch.pop(ROWS) for batch in batches if ROWS in batch]
        self.step_losses = []
        return batches, items

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """HF's, whose loss is remembered."""
        loss = super().training_step(*args, **kwargs)
        self.step_losses.append(loss)
        return loss

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """HF's norm, between the last backward and the optimizer's step: both are looked at here."""
        norm = super()._get_grad_norm(model, grad_norm)
        self.stop_unless_finite(norm)
        return norm

    def stop_unless_finite(self, norm: Any) -> None:
        """Raise FloatingPointError if a rank's loss of this step, or its gradient norm, is not finite."""
        losses = torch.stack([loss.detach().float() for loss in self.step_losses])
        flag = (~losses.isfinite()).any() | ~self.is_legal(norm)
        if not self.accelerator.reduce(flag.float(), reduction="sum").item():
            return
        kept = self.saved()
        own = [float(loss) for loss in losses]
        found = gather_object([(own, [rows.tolist() for rows in self.step_rows])])
        values = [value for values, _ in found for value in values]
        bad = [math.isfinite(value) for value in values].count(False)
        rows = [
            row
            for values, batches in found
            for value, batch in zip(values, batches, strict=False)
            if not bad or not math.isfinite(value)
            for row in batch
        ]
        shown = next((value for value in values if not math.isfinite(value)), sum(values))
        raise FloatingPointError(
            f"step {self.state.global_step + 1}: loss {shown:.5g}, gradient norm {number(norm)}; "
            f"{said_of_rows(self.name_rows(rows[:SHOWN]), len(rows))}; stopped, {kept}; "
            f"lower learning_rate {self.args.learning_rate:g}, or look at these rows"
        )

    def is_legal(self, norm: Any) -> Tensor:
        """Whether a gradient norm is finite, or is one that fp16's scaler will skip."""
        device = self.accelerator.device
        if norm is None or (self.is_deepspeed_enabled and self.accelerator.mixed_precision == "fp16"):
            return torch.ones((), dtype=torch.bool, device=device)
        value = norm.full_tensor() if isinstance(norm, DTensor) else torch.as_tensor(norm)
        finite = (value.isfinite() & (value >= 0)).to(device)  # DeepSpeed says -1 for what is not finite
        scaler = self.accelerator.scaler
        if scaler is not None and scaler.is_enabled() and not finite:
            return torch.tensor(scaler.get_scale() > 1, device=device)
        return finite

    def saved(self) -> str:
        """What is left of the run."""
        folder = Path(str(self.args.output_dir))
        last = get_last_checkpoint(str(folder)) if folder.is_dir() else None
        return f"the last good checkpoint is {last}" if last else "before any checkpoint"

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """HF's; nothing where the checkpoint has all steps, of which HF would train one more."""
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """HF's; of whole models by `from_pretrained`, which knows how files name and split weights.

        HF's leaves out names that it does not find, of experts, which then were those that the run began with.
        """
        into = self.model if model is None else model
        if not isinstance(into, UnifiedForCausalLM) or self.is_fsdp_enabled:
            return super()._load_from_checkpoint(resume_from_checkpoint, model)
        stored = UnifiedForCausalLM.from_pretrained(resume_from_checkpoint, dtype="auto")
        into.load_state_dict(stored.state_dict(), strict=False)  # rows of their own are taken out of whole matrices

    def _load_best_model(self) -> None:
        """HF's; of whole models as `_load_from_checkpoint`."""
        best = self.state.best_model_checkpoint
        engine = self.is_deepspeed_enabled or self.is_fsdp_enabled
        if best is None or engine or not isinstance(self.model, UnifiedForCausalLM):
            return super()._load_best_model()
        self._load_from_checkpoint(best)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """HF's; what was allowed to change comes from the arguments, not from the optimizer's state."""
        optimizer: Any = self.optimizer  # HF's type allows none
        settings = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and self.renewed:
            self.renew(settings)

    def renew(self, settings: list[dict[str, Any]]) -> None:
        """Put the optimizer's `settings` a group in place of the checkpoint's, the rate at the schedule's place."""
        scheduler: Any = self.lr_scheduler
        optimizer: Any = self.optimizer
        inner = scheduler.scheduler if isinstance(scheduler, AcceleratedScheduler) else scheduler
        if self.is_deepspeed_enabled or not isinstance(inner, LambdaLR):
            raise ValueError(f"allow_changed {self.renewed[0]} works without DeepSpeed, and for schedules of the step")
        inner.base_lrs = [group["initial_lr"] for group in settings]
        rates = [base * rate(inner.last_epoch) for base, rate in zip(inner.base_lrs, inner.lr_lambdas, strict=True)]
        for group, new, rate in zip(optimizer.param_groups, settings, rates, strict=True):
            group.update(new | {"lr": rate})
        inner._last_lr = rates

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """HF's; raises FloatingPointError instead of saving weights that are not finite."""
        model: Any = self.model  # HF's type allows none
        spoilt = not_finite(model, self.accelerator)
        if spoilt:
            raise FloatingPointError(
                f"step {self.state.global_step}: weights are not finite ({spoilt}); stopped, {self.saved()}; "
                f"lower learning_rate {self.args.learning_rate:g}"
            )
        super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """HF's, which writes weights; and says what they are."""
        super()._save(output_dir, state_dict)
        if self.args.should_save and state_dict != {}:  # DeepSpeed's, of weights that are in its own files alone
            self.describe(Path(output_dir or str(self.args.output_dir)))

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Not HF's nor TRL's: `describe` writes ours."""

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """HF's; raises FloatingPointError for a loss that is not finite."""
        metrics = super().evaluate(*args, **kwargs)
        for name, value in metrics.items():
            if name.endswith("_loss") and not math.isfinite(value):
                raise FloatingPointError(
                    f"step {self.state.global_step}: {name} is {value} in evaluation; stopped, {self.saved()}; lower "
                    f"learning_rate {self.args.learning_rate:g}, or look at eval_files"
                )
        return metrics


class FiniteSteps:
    """The first step of a loop whose loss or gradient norm was not finite, kept on the device.

    `add` never waits for the device; `check` does, and is called where the loop waits anyway and before it saves.
    """

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.first = torch.full((), -1, dtype=torch.long, device=accelerator.device)
        self.values = torch.zeros(2, device=accelerator.device)

    def add(self, step: int, loss: Tensor, norm: Tensor | None = None) -> None:
        """One more loss of `step`, and the gradient norm before clipping, where there is one."""
        loss = loss.detach().float()
        pair = torch.stack([loss, torch.zeros_like(loss) if self.skips() or norm is None else norm.detach().float()])
        new = (self.first < 0) & ~pair.isfinite().all()
        self.first = torch.where(new, step, self.first)
        self.values = torch.where(new, pair, self.values)

    def skips(self) -> bool:
        """Whether steps of infinite gradients are skipped, as fp16's scaler does."""
        return self.accelerator.scaler is not None and self.accelerator.scaler.is_enabled()

    def check(self, model: nn.Module, done: int, name_rows: Callable[[int], list[str]], remedy: str) -> None:
        """Raise FloatingPointError on all ranks for the first bad step, or for weights that are not finite.

        `name_rows(step)` names what a step was made of; `remedy` ends the sentence.
        """
        steps = self.accelerator.gather(self.first[None]).tolist()
        bad = [step for step in steps if step >= 0]
        if bad:
            loss, norm = self.accelerator.gather(self.values[None])[steps.index(min(bad))].tolist()
            rows = name_rows(min(bad))
            raise FloatingPointError(
                f"step {min(bad) + 1}: loss {loss:.5g}, gradient norm {norm:.5g}; "
                f"{said_of_rows(rows[:SHOWN], len(rows))}; {remedy}"
            )
        spoilt = not_finite(model, self.accelerator)
        if spoilt:
            raise FloatingPointError(f"step {done}: weights are not finite ({spoilt}); {remedy}")


def not_finite(model: nn.Module, accelerator: Accelerator) -> str:
    """How many of the trained tensors hold a value that is not finite, on any rank; empty for none."""
    trained = [p.detach() for p in model.parameters() if p.requires_grad]
    local = [p.to_local() if isinstance(p, DTensor) else p for p in trained]
    flags = [(~torch.isfinite(p).all()).to(accelerator.device) for p in local]
    if not flags:
        return ""
    bad = accelerator.reduce(torch.stack(flags).float(), reduction="sum")
    count = int((bad > 0).sum())
    return f"{count} of {len(flags)} tensors" if count else ""


def said_of_rows(names: Sequence[str], count: int) -> str:
    """Rows for an error, the first ones by name."""
    more = f" and {count - len(names)} more" if count > len(names) else ""
    return f"its rows are {', '.join(names)}{more}" if names else "its rows are not known"


def number(norm: Any) -> str:
    """A norm for people."""
    if norm is None:
        return "unknown"
    value = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    return "not finite" if value < 0 else f"{value:.5g}"


def check_batches(trainer: Trainer) -> None:
    """Raise ValueError where so few rows are there that the only batch is dropped."""
    args, data = trainer.args, trainer.train_dataset
    if args.dataloader_drop_last and isinstance(data, Sized):
        needed = args.per_device_train_batch_size * args.world_size
        if len(data) < needed:
            raise ValueError(
                f"not one step can be trained: {len(data)} rows are fewer than a batch of {needed}, which "
                "dataloader_drop_last drops; set it to False"
            )


def check_steps(done: int, before: int, remedy: str = "give max_steps or num_train_epochs above 0") -> None:
    """Raise ValueError for a training that came to its end without any step, and would leave a model as it began."""
    if done <= before:
        raise ValueError(f"not one step was trained after step {before}, so nothing is saved; {remedy}")
