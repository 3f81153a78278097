"""Seconds per image: scale by scale on one cache, against the same backbone writing as many codes one by one.

python eval/sampling_speed.py --model out/demo/demo_sft

Both in one run, in turns, medians of --repeats. The raster twin is the same backbone with the same union vocabulary
and weights, run by Hugging Face's own `generate` with its sampling restricted to image ids; what it writes is no
picture (it was not trained so), but costs what such a model costs. Decoding to pixels is counted on neither side.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, LogitsProcessorList

from unified import UnifiedForCausalLM, UnifiedProcessor
from unified.arguments import parse, run_main
from unified.drawing import draw_codes
from unified.generation import ImageSampling, OnlyIds
from unified.loading import load


@dataclass
class SpeedArguments:
    """What is timed."""

    model: str = field(default="out/demo/demo_sft", metadata={"help": "checkpoint or adapter"})
    prompt: str = field(default="a photo of a red apple", metadata={"help": "drawn again and again"})
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8], metadata={"help": "images drawn at once"})
    repeats: int = field(default=5, metadata={"help": "runs per setting, of which the median counts"})


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
    only_images = LogitsProcessorList([OnlyIds(vocabulary.image_ids)])
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


def main() -> None:
    (args,) = parse((SpeedArguments,))
    model, processor = load(args.model)
    guided = ImageSampling(guidance=3.0)
    ways = {
        "scales": lambda batch: draw_codes(model, processor, [args.prompt] * batch, ImageSampling()),
        "scales_guided": lambda batch: draw_codes(model, processor, [args.prompt] * batch, guided),
        "raster": raster(model, processor, args.prompt),
    }
    codes = model.config.image_length
    report: dict[str, object] = {"metric": "seconds_per_image", "model": args.model, "codes": codes}
    for batch in args.batch_sizes:
        times: dict[str, list[float]] = {name: [] for name in ways}
        for run in range(args.repeats + 1):
            for name, way in ways.items():
                taken = seconds(way, batch)
                if run:  # the first round warms up
                    times[name].append(taken)
        medians = {name: statistics.median(values) / batch for name, values in times.items()}
        report[f"batch_{batch}"] = {name: round(value, 4) for name, value in medians.items()}
    print(json.dumps(report))


if __name__ == "__main__":
    run_main(main)
