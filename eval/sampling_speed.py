"""Seconds per image: scale by scale on one cache, against the same backbone sampling as many codes one by one.

    python eval/sampling_speed.py --model weights/scenes-smollm2 --out results/speed.json

Both in one run, in turns, medians of --repeats. The raster twin is the same backbone with the same union vocabulary
and weights, run by Hugging Face's own `generate` with its sampling restricted to image ids; its codes are no
picture (it was not trained so), but costs what such a model costs. Decoding to pixels is counted on neither side.

Printed, and written to --out, is one JSON: the value is that of `scales` at the first of --batch_sizes, n the runs;
`batch_8` has all ways at 8 images at once.
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessorList

from unified import UnifiedForCausalLM, UnifiedProcessor
from unified.arguments.parser import check_minimum, parse, run_main
from unified.checkpoints.loading import load
from unified.files.results import prompts_digest, write_result
from unified.hardware.arguments import HardwareArguments
from unified.hardware.setup import products, set_up
from unified.inference.text_to_image import generate_codes
from unified.models.image_sampling import ImageSampling
from unified.models.text_decoding import AllowedIds
from unified.reports.endings import end_evaluation


@dataclass
class SpeedArguments:
    """What is timed."""

    model: str = field(default="weights/scenes-smollm2", metadata={"help": "checkpoint or adapter"})
    prompt: str = field(default="a photo of a red apple", metadata={"help": "drawn again and again"})
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8], metadata={"help": "images drawn at once"})
    repeats: int = field(default=5, metadata={"help": "runs per setting, of which the median counts"})
    out: str | None = field(default=None, metadata={"help": "JSON to write, beside printing it"})

    def __post_init__(self) -> None:
        check_minimum(self, repeats=1)
        if min(self.batch_sizes) < 1:
            raise ValueError(f"--batch_sizes {min(self.batch_sizes)}; give at least 1")


def raster_twin(model: UnifiedForCausalLM) -> torch.nn.Module:
    """The backbone with the union's matrix as an ordinary causal LM."""
    with torch.device("meta"):
        twin = AutoModelForCausalLM.from_config(model.config.text_config)
    twin.base_model.load_state_dict(model.model.language_model.state_dict(), assign=True)
    twin.lm_head = model.lm_head
    # buffers that are not saved (RoPE's frequencies) have to come from the backbone itself
    twin.model = model.model.language_model
    twin.generation_config = GenerationConfig(pad_token_id=0)
    return twin.eval()


def raster(model: UnifiedForCausalLM, processor: UnifiedProcessor, prompt: str) -> Callable[[int], object]:
    """A function that writes one image's number of codes a row, code by code."""
    twin, vocabulary = raster_twin(model), model.config.vocabulary
    chat = [{"role": "user", "content": prompt}]
    ids = torch.tensor([[*processor.prompt_ids(chat), vocabulary.boi_token_id]])
    only_images = LogitsProcessorList([AllowedIds(vocabulary.image_ids)])
    length = model.config.image_length
    return lambda batch: twin.generate(
        ids.expand(batch, -1).to(model.device),
        max_new_tokens=length,
        min_new_tokens=length,
        do_sample=True,
        top_k=0,
        logits_processor=only_images,
    )


def seconds(draw: Callable[[int], object], batch: int) -> float:
    """Wall time of one batch."""
    start = time.perf_counter()
    draw(batch)
    return time.perf_counter() - start


def medians(ways: dict[str, Callable[[int], object]], batch: int, repeats: int) -> dict[str, float]:
    """Seconds per image of every way, in turns."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in range(repeats + 1):
        for name, way in ways.items():
            taken = seconds(way, batch)
            if run:  # the first round warms up
                times[name].append(taken)
    return {name: round(statistics.median(values) / batch, 4) for name, values in times.items()}


def main() -> None:
    hardware, args = parse((HardwareArguments, SpeedArguments))
    set_up(hardware)
    started = time.perf_counter()
    model, processor = load(args.model)
    guided = ImageSampling(guidance_scale=3.0)
    ways = {
        "scales": lambda batch: generate_codes(model, processor, [args.prompt] * batch, ImageSampling()),
        "scales_guided": lambda batch: generate_codes(model, processor, [args.prompt] * batch, guided),
        "raster": raster(model, processor, args.prompt),
    }
    with products():
        found = {f"batch_{batch}": medians(ways, batch, args.repeats) for batch in args.batch_sizes}
    value = found[f"batch_{args.batch_sizes[0]}"]["scales"]
    config = {name: setting for name, setting in asdict(args).items() if name not in ("model", "out")}
    config |= {"device": str(model.device), "threads": torch.get_num_threads(), "dtype": str(model.dtype)}
    details = {"stderr": None, "tokenizer": model.config.vq_fingerprint, "seed": None}
    details |= {"prompts_sha256": prompts_digest([args.prompt]), "codes": model.config.image_length, **found}
    details["seconds"] = time.perf_counter() - started
    path = Path(args.out) if args.out else None
    end_evaluation(write_result(path, "seconds_per_image", value, args.repeats, args.model, config, **details), path)


if __name__ == "__main__":
    run_main(main)
