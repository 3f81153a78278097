"""Peak memory of a preference step: log-probs as TRL's DPOTrainer computes them here, against logits of all positions.

    python eval/dpo_memory.py --model out/scenes-base --pairs 8 --out results/dpo_memory.json

Each way runs forward and backward of DPO's loss on the same pairs of random pictures in a process of its own; all
weights but the image tokenizer's are trained, and the reference's log-probs are given. What counts is the peak above
what lay in memory before the step: on the GPU what torch has allocated, on the CPU (Linux) what the process had
resident. Printed, and written to --out, is one JSON:

    value                  GiB of the step with TRL's log-probs, which come tile by tile
    logits                 GiB of the step that computes the (B, T, V) logits, as one would write it down
    logits_alone           GiB of that one tensor in float32
    losses                 of both ways: the same number up to rounding
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from trl.trainer.utils import add_fused_lm_head

from unified import UnifiedForCausalLM, UnifiedProcessor
from unified.arguments.fields import arg_of
from unified.arguments.parser import check_minimum, parse, run_main
from unified.checkpoints.load_options import LoadOptions
from unified.checkpoints.loading import resolve_base_checkpoint
from unified.data.preferences import PairCollator
from unified.files.results import write_result
from unified.hardware.arguments import HardwareArguments
from unified.hardware.device import best_device
from unified.hardware.setup import set_up
from unified.models.processing import IGNORE_INDEX
from unified.reports.endings import end_evaluation

WAYS = ("fused", "logits")
BETA = 0.1


@dataclass
class MemoryArguments:
    """Whose step is measured, and on how much."""

    model: str = field(default="out/scenes-base", metadata={"help": "checkpoint, or an adapter, whose base is taken"})
    base: str | None = arg_of(LoadOptions, "base")
    pairs: int = field(default=8, metadata={"help": "pairs of a step, twice as many rows"})
    prompt: str = field(default="a photo of a red apple", metadata={"help": "of all pairs"})
    bf16: bool | None = field(default=None, metadata={"help": "autocast; None: where training on this machine does"})
    way: Literal["fused", "logits"] | None = field(
        default=None, metadata={"help": "measure this one alone, in this process"}
    )
    out: str | None = field(default=None, metadata={"help": "JSON to write, beside printing it"})

    def __post_init__(self) -> None:
        check_minimum(self, pairs=1)


def random_pairs(processor: UnifiedProcessor, model: UnifiedForCausalLM, args: MemoryArguments) -> dict[str, Tensor]:
    """A collated batch."""
    generator = torch.Generator().manual_seed(0)
    shape = (args.pairs, 2, processor.image_length)
    codes = torch.randint(model.config.vq_config.codebook_size, shape, generator=generator).tolist()
    answer = [{"role": "assistant", "content": [{"type": "image"}]}]
    asked = {"messages": [{"role": "user", "content": args.prompt}], "chosen": answer, "rejected": answer, "codes": []}
    pairs = [asked | {"chosen_codes": [better], "rejected_codes": [worse]} for better, worse in codes]
    return PairCollator(processor, model.config.text_config.max_position_embeddings)(pairs)


def log_probs(model: UnifiedForCausalLM, batch: dict[str, Tensor], way: str) -> Tensor:
    """Summed log-prob of every answer, (2 * pairs,), chosen ones first."""
    mask = batch["completion_mask"][:, 1:]
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")} | {"use_cache": False}
    if way == "fused":
        labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, IGNORE_INDEX)
        found = model(**inputs, labels=labels, fused_lm_head=True).log_probs
        return found[:, -mask.shape[1] :].sum(dim=1)
    scores = model(**inputs).logits[:, :-1].float().log_softmax(dim=-1)
    return (scores.gather(2, batch["input_ids"][:, 1:, None]).squeeze(2) * mask).sum(dim=1)


def resident(device: torch.device, peak: bool) -> int:
    """Bytes in use on `device` now, or at most since the last `start_over`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) if peak else torch.cuda.memory_allocated(device)
    status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    line = next(line for line in status if line.startswith("VmHWM:" if peak else "VmRSS:"))
    return int(line.split()[1]) * 1024


def start_over(device: torch.device) -> None:
    """Forget the peak so far."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def measure(args: MemoryArguments, way: str) -> dict[str, float]:
    """One step: GiB above what was there before, loss, and the GiB of the logits alone."""
    device = torch.device(best_device())
    if device.type != "cuda" and sys.platform != "linux":
        raise ValueError(f"memory of {device.type} on {sys.platform} is not known here; run it on Linux or with CUDA")
    source = resolve_base_checkpoint(args.model, args.base)
    model = UnifiedForCausalLM.from_pretrained(source, dtype="float32").to(device).train()
    processor = UnifiedProcessor.from_pretrained(source)
    model.requires_grad_(True).model.vq_model.requires_grad_(False)
    if way == "fused":
        add_fused_lm_head(model, outputs=("log_probs", "entropy", "mean_logits", "is_top1"))  # as DPOTrainer does
    batch = {name: value.to(device) for name, value in random_pairs(processor, model, args).items()}
    start_over(device)
    before = resident(device, peak=False)
    with torch.autocast(device.type, torch.bfloat16, enabled=args.bf16):
        chosen, rejected = log_probs(model, batch, way).chunk(2)
    reference = (chosen - rejected).detach() / 2  # any fixed number
    loss = -torch.nn.functional.logsigmoid(BETA * (chosen - rejected - reference)).mean()
    loss.backward()
    gib = (resident(device, peak=True) - before) / 2**30
    rows, width = batch["input_ids"].shape
    logits = rows * width * len(model.get_output_embeddings().weight) * 4 / 2**30
    return {"gib": gib, "loss": loss.item(), "rows": rows, "width": width, "logits_gib": logits}


def measure_in_subprocess(args: MemoryArguments, way: str) -> dict[str, float]:
    """`measure` in a process of its own."""
    flags = {"model": args.model, "pairs": args.pairs, "prompt": args.prompt, "bf16": args.bf16, "way": way}
    flags |= {} if args.base is None else {"base": args.base}
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    done = subprocess.run([sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, encoding="utf-8")
    if done.returncode:
        sys.exit(done.returncode)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    hardware, args = parse((HardwareArguments, MemoryArguments))
    choice = set_up(hardware, training=True)
    if choice.device != "cuda" and sys.platform != "linux":
        raise ValueError(f"peak memory of a step is not told by {sys.platform}; run this on Linux or on a CUDA GPU")
    args.bf16 = choice.precision == "bf16" if args.bf16 is None else args.bf16
    if args.way:
        print(json.dumps(measure(args, args.way)))
        return
    started = time.perf_counter()
    fused, logits = (measure_in_subprocess(args, way) for way in WAYS)
    found = {
        "logits": logits["gib"],
        "logits_alone": logits["logits_gib"],
        "losses": [fused["loss"], logits["loss"]],
        "rows": fused["rows"],
        "width": fused["width"],
    }
    made = {"stderr": None, "tokenizer": None, "prompts_sha256": None, "seed": 0}
    made["seconds"] = time.perf_counter() - started
    path = Path(args.out) if args.out else None
    config = {name: value for name, value in asdict(args).items() if name not in ("out", "way")}
    end_evaluation(write_result(path, "dpo_step_gib", fused["gib"], 1, args.model, config, **made, **found), path)


if __name__ == "__main__":
    run_main(main)
