"""Training throughput: seconds, images and positions per step, and the share of the machine's GEMM rate.

FLOP are counted by torch as the step runs (products and attention, forward and backward), so that operations which an
adapter or frozen weights save do not count. After every step, GEMMs of the backbone's shapes are timed in the
training's precision, as the upper bound of a step. Counted steps are not timed and run layers eagerly: torch would
stop compiling layers that it first meets while counting.
"""

import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from unified.files.results import write_result
from unified.hardware.operations import CPU_ATTENTION
from unified.models.modeling import UnifiedForCausalLM

WARM_UP = 3
GEMM_SECONDS = 0.1


def wait_for(device: torch.device) -> None:
    """Synchronize `device`."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def gemm_rate(rows: int, inner: int, outer: int, dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of (rows, inner) x (inner, outer) products, repeated for `GEMM_SECONDS`."""
    left, right = torch.randn(rows, inner, device=device).to(dtype), torch.randn(outer, inner, device=device).to(dtype)
    nn.functional.linear(left, right)
    wait_for(device)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < GEMM_SECONDS:
        nn.functional.linear(left, right)
        wait_for(device)
        count += 1
    return 2 * rows * inner * outer * count / (time.perf_counter() - start)


@dataclass
class StepStats:
    """Measurements of one step on this process."""

    images: float = 0.0
    positions: int = 0
    seconds: float | None = None  # of timed steps
    flop: int | None = None  # of counted steps


@dataclass
class ThroughputCallback(TrainerCallback):
    """Measures `steps` steps after `WARM_UP` ones, half of them timed and half counted, and stops the training.

    Writes `folder`/speed.json, whose value is images per second on this process. `name` is the trained model's.
    """

    core: UnifiedForCausalLM
    name: str
    folder: Path
    steps: int
    dtype: torch.dtype  # compute dtype of the training, which `accelerate launch` may have set
    step_stats: list[StepStats] = field(default_factory=list)
    gemms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.core.register_forward_pre_hook(self.count_inputs, with_kwargs=True)
        self.counter: FlopCounterMode | None = None
        self.counting = ExitStack()
        self.started = self.last = time.perf_counter()

    def count_inputs(self, module: nn.Module, args: tuple[Any, ...], inputs: dict[str, Any]) -> None:
        """Count the trained images and the backbone's positions of a forward pass."""
        labels: Tensor | None = inputs.get("labels")
        if labels is None or not self.step_stats:
            return
        images = self.core.config.vocabulary.is_image(labels).sum() / self.core.config.image_length
        kept = inputs.get("keep_positions")
        positions = inputs["attention_mask"].sum() if kept is None else (kept >= 0).sum()
        self.step_stats[-1].images += float(images)
        self.step_stats[-1].positions += int(positions)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.step_stats.append(StepStats())
        if len(self.step_stats) > WARM_UP and len(self.step_stats) % 2:
            self.counting.enter_context(torch.compiler.set_stance("force_eager"))
            self.counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
            self.counting.enter_context(self.counter)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        wait_for(args.device)
        stats = self.step_stats[-1]
        if self.counter is not None:
            self.counting.close()
            stats.flop, self.counter = self.counter.get_total_flops(), None
        else:
            stats.seconds = time.perf_counter() - self.last
        self.gemms.append(self.gemm_rate(args, max(1, stats.positions // args.gradient_accumulation_steps)))
        self.last = time.perf_counter()
        if len(self.step_stats) == WARM_UP + self.steps:
            control.should_training_stop = True
            if state.is_world_process_zero:
                self.write(args)

    def gemm_rate(self, args: TrainingArguments, rows: int) -> float:
        """FLOP/s of the backbone's widest GEMM with `rows` rows, in the training's precision."""
        config = self.core.config.text_config
        return gemm_rate(rows, config.hidden_size, config.intermediate_size, self.dtype, args.device)

    def write(self, args: TrainingArguments) -> dict[str, Any]:
        """Write and return the result."""
        steps = self.step_stats[WARM_UP:]
        timed, counted = [w for w in steps if w.seconds is not None], [w for w in steps if w.flop is not None]
        seconds = sum(w.seconds or 0.0 for w in timed)
        positions = sum(w.positions for w in timed)
        flop = positions * sum(w.flop or 0 for w in counted) / max(1, sum(w.positions for w in counted))
        rate, gemm = flop / seconds, statistics.median(self.gemms[WARM_UP:])
        details = {"step_seconds": statistics.median(w.seconds or 0.0 for w in timed)}
        details |= {"positions_per_second": positions / seconds, "gflops": rate / 1e9, "gemm_gflops": gemm / 1e9}
        batch, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
        config: dict[str, Any] = {"batch": batch, "accumulation": accumulated}
        config |= {"dtype": str(self.dtype), "device": str(args.device), "threads": torch.get_num_threads()}
        return write_result(
            self.folder / "speed.json",
            "images_per_second",
            sum(w.images for w in timed) / seconds,
            len(timed),
            self.name,
            config,
            stderr=None,
            tokenizer=self.core.config.vq_fingerprint,
            prompts_sha256=None,
            seed=args.seed,
            seconds=time.perf_counter() - self.started,
            share_of_gemm=rate / gemm,
            **details,
        )
