"""How fast a training is: seconds, pictures and positions a step, and its share of the machine's matrix products.

Operations are counted by torch as the step runs them (products and attention, forward and backward), so that what an
adapter or frozen weights spare is not claimed. Next to every step, products of the backbone's own shapes are timed in
the training's precision: what the step would reach if it did nothing else. Steps that are counted are not timed, and
run layers as they are written: compiled ones would be left uncompiled from then on if torch met them while counting.
"""

import statistics
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from unified.files.results import write_result
from unified.models.modeling import UnifiedForCausalLM

WARM_UP = 3
_FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
CPU_ATTENTION = {  # torch counts that for CUDA alone; of shapes
    _FORWARD: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value),
    _BACKWARD: lambda gradient, query, key, value, *_, **__: sdpa_backward_flop_count(gradient, query, key, value),
}
GEMM_SECONDS = 0.1


def wait_for(device: torch.device) -> None:
    """Return once all that was asked of `device` is done."""
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
class Work:
    """What one step did on this process."""

    images: float = 0.0
    positions: int = 0
    seconds: float | None = None  # of a timed step
    flop: int | None = None  # of a counted one


@dataclass
class ThroughputCallback(TrainerCallback):
    """Measures `steps` steps after a few that warm up, half of them timed and half counted, and ends the training.

    `folder`/speed.json is the record; its value is images a second on this process. `name` says what is trained.
    """

    core: UnifiedForCausalLM
    name: str
    folder: Path
    steps: int
    dtype: torch.dtype  # of the training's products, which `accelerate launch` may have set
    work: list[Work] = field(default_factory=list)
    gemms: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.core.register_forward_pre_hook(self.see, with_kwargs=True)
        self.counter: FlopCounterMode | None = None
        self.counting = ExitStack()
        self.started = self.last = time.perf_counter()

    def see(self, module: nn.Module, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        """Count what a pass is given: images that are learnt, positions that the backbone runs."""
        labels: Tensor | None = given.get("labels")
        if labels is None or not self.work:
            return
        images = self.core.config.vocabulary.is_image(labels).sum() / self.core.config.image_length
        kept = given.get("keep_positions")
        real = given["attention_mask"].sum() if kept is None else (kept >= 0).sum()
        self.work[-1].images += float(images)
        self.work[-1].positions += int(real)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.work.append(Work())
        if len(self.work) > WARM_UP and len(self.work) % 2:
            self.counting.enter_context(torch.compiler.set_stance("force_eager"))
            self.counter = FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION)
            self.counting.enter_context(self.counter)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        wait_for(args.device)
        done = self.work[-1]
        if self.counter is not None:
            self.counting.close()
            done.flop, self.counter = self.counter.get_total_flops(), None
        else:
            done.seconds = time.perf_counter() - self.last
        self.gemms.append(self.products(args, max(1, done.positions // args.gradient_accumulation_steps)))
        self.last = time.perf_counter()
        if len(self.work) == WARM_UP + self.steps:
            control.should_training_stop = True
            if state.is_world_process_zero:
                self.write(args)

    def products(self, args: TrainingArguments, rows: int) -> float:
        """FLOP/s of the backbone's widest products at so many rows, in the training's precision."""
        config = self.core.config.text_config
        return gemm_rate(rows, config.hidden_size, config.intermediate_size, self.dtype, args.device)

    def write(self, args: TrainingArguments) -> dict[str, Any]:
        """Write and return the record."""
        steps = self.work[WARM_UP:]
        timed, counted = [w for w in steps if w.seconds is not None], [w for w in steps if w.flop is not None]
        seconds = sum(w.seconds or 0.0 for w in timed)
        positions = sum(w.positions for w in timed)
        flop = positions * sum(w.flop or 0 for w in counted) / max(1, sum(w.positions for w in counted))
        rate, gemm = flop / seconds, statistics.median(self.gemms[WARM_UP:])
        found = {"step_seconds": statistics.median(w.seconds or 0.0 for w in timed)}
        found |= {"positions_per_second": positions / seconds, "gflops": rate / 1e9, "gemm_gflops": gemm / 1e9}
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
            **found,
        )
