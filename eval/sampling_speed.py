"""Seconds per image: scale by scale on one cache, against the same backbone sampling as many codes one by one.

    python eval/sampling_speed.py --model weights/scenes-smollm2 --out results/speed.json
    python eval/sampling_speed.py --codes 85 680 2240 --repeats 2 --out results/speed_by_codes.json

The second line draws with random weights of a small backbone (--layers, --hidden_size, --intermediate_size, --heads,
--key_heads), whose images have so many codes; on two cores it takes some minutes. All ways in one run, in turns,
medians of --repeats. The raster twin is the same backbone with the same union vocabulary and weights, run by Hugging
Face's own `generate` with its sampling restricted to image ids; its codes are no picture (it was not trained so), but
cost what such a model's cost, less an adapter's updates, which are left out. Decoding to pixels is counted on neither
side.

Printed, and written to --out, is one JSON with, for each number of codes and each of --batch_sizes:

scales, scales_guided, raster   seconds an image
faster_than_raster              raster / scales
products                        seconds an image that `scales` spends in matrix products, convolutions and attention,
                                each timed by itself in a run of its own
times_products                  scales / products
kernels, host_waits             of a whole batch: operations that compute or copy, and those whose results the host
                                has to have before it goes on (on a CPU, too, as an accelerator would see them)

The value is `scales` at the first number of codes and the first of --batch_sizes, n the runs.
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, LogitsProcessorList

from unified import UnifiedConfig, UnifiedForCausalLM, VQConfig
from unified.arguments.needs import Needs, WithNeeds
from unified.arguments.parser import check_minimum, parse, run_main
from unified.checkpoints.load_options import LoadOptions
from unified.files.results import prompts_digest, write_result
from unified.hardware.arguments import HardwareArguments
from unified.hardware.device import best_device
from unified.hardware.operations import Operations
from unified.hardware.setup import products, set_up
from unified.inference.text_to_image import image_prompts
from unified.models.image_sampling import ImageSampling
from unified.models.text_decoding import AllowedIds
from unified.reports.endings import end_evaluation

PATCH_NUMS = {  # Scenes', VAR's at 256 pixels and at 512 (arXiv 2404.02905, its code's `patch_nums`)
    85: (1, 2, 4, 8),
    680: (1, 2, 3, 4, 5, 6, 8, 10, 13, 16),
    2240: (1, 2, 3, 4, 6, 9, 13, 18, 24, 32),
}
TEXT_IDS, CODEBOOK, CODE_DIM = 8192, 4096, 32  # VAR's codebook; a small LLM's number of text ids
PROMPT_IDS, NEGATIVE_IDS = 20, 12  # of a random backbone, which has no chat template
RANDOM = "layers hidden_size intermediate_size heads key_heads"


@dataclass
class SpeedArguments(LoadOptions, WithNeeds):
    """What is timed."""

    NEEDS = (
        Needs(RANDOM, lambda args: args.codes, "a random backbone needs --codes", "codes"),
        Needs("model prompt base quantize", lambda args: not args.codes, "--codes draws with random weights", "codes"),
    )

    model: str = field(default="weights/scenes-smollm2", metadata={"help": "checkpoint or adapter"})
    prompt: str = field(default="a photo of a red apple", metadata={"help": "drawn again and again"})
    codes: list[int] = field(
        default_factory=list,
        metadata={
            "help": f"in place of a model: random weights, images of so many codes ({', '.join(map(str, PATCH_NUMS))})"
        },
    )
    layers: int = field(default=3, metadata={"help": "of a random backbone"})
    hidden_size: int = field(default=576, metadata={"help": "of a random backbone; SmolLM2-135M's"})
    intermediate_size: int = field(default=1536, metadata={"help": "of a random backbone"})
    heads: int = field(default=9, metadata={"help": "of a random backbone"})
    key_heads: int = field(default=3, metadata={"help": "of a random backbone"})
    batch_sizes: list[int] = field(default_factory=lambda: [1, 8], metadata={"help": "images drawn at once"})
    repeats: int = field(default=5, metadata={"help": "runs per setting, of which the median counts"})
    raster_repeats: int = field(default=1, metadata={"help": "the same code by code; 0 leaves it out"})
    out: str | None = field(default=None, metadata={"help": "JSON to write, beside printing it"})

    def __post_init__(self) -> None:
        check_minimum(self, repeats=1, raster_repeats=0, layers=1)
        if min(self.batch_sizes) < 1:
            raise ValueError(f"--batch_sizes {min(self.batch_sizes)}; give at least 1")
        unknown = set(self.codes) - PATCH_NUMS.keys()
        if unknown:
            raise ValueError(f"--codes {min(unknown)}: scales are known of {', '.join(map(str, PATCH_NUMS))} codes")
        if self.hidden_size % self.heads or self.heads % self.key_heads:
            raise ValueError(
                f"--hidden_size {self.hidden_size} --heads {self.heads} --key_heads {self.key_heads}: each has to be "
                "a multiple of the next"
            )


@dataclass
class Drawn:
    """A model and what it draws: `prompt` (1, T) with its image start token, `negative` (1, n) without."""

    model: UnifiedForCausalLM
    prompt: Tensor
    negative: Tensor

    @classmethod
    def of_checkpoint(cls, args: SpeedArguments) -> "Drawn":
        """The model of --model and its --prompt."""
        model, processor = args.load(args.model)
        prompt, _ = image_prompts(model, processor, [args.prompt])
        return cls(model, prompt, torch.tensor([processor.unconditional_ids()]))

    @classmethod
    def random(cls, args: SpeedArguments, codes: int) -> "Drawn":
        """A Llama of random weights, with the scales of so many codes."""
        boi, eoi, image_pad = range(TEXT_IDS, TEXT_IDS + 3)
        scales, offset = PATCH_NUMS[codes], TEXT_IDS + 64
        backbone = LlamaConfig(
            vocab_size=offset + CODEBOOK, num_hidden_layers=args.layers, hidden_size=args.hidden_size,
            intermediate_size=args.intermediate_size, num_attention_heads=args.heads,
            num_key_value_heads=args.key_heads, max_position_embeddings=2 * codes + 256, tie_word_embeddings=True,
        )  # fmt: skip
        tokenizer = VQConfig(
            image_size=8 * scales[-1], channels=(32, 32), patch_nums=scales, codebook_size=CODEBOOK, code_dim=CODE_DIM
        )
        torch.manual_seed(0)
        config = UnifiedConfig(
            text_config=backbone, vq_config=tokenizer, boi_token_id=boi, eoi_token_id=eoi,
            image_pad_token_id=image_pad, image_token_offset=offset,
        )  # fmt: skip
        model = UnifiedForCausalLM(config).to(best_device()).eval()
        ids = torch.arange(3, 3 + PROMPT_IDS)[None]
        return cls(model, torch.cat([ids, torch.tensor([[boi]])], dim=1).to(model.device), ids[:, :NEGATIVE_IDS])

    def by_scales(self, batch: int, sampling: ImageSampling) -> object:
        """A batch of images."""
        return self.model.generate(
            self.prompt.expand(batch, -1), attention_mask=torch.ones_like(self.prompt).expand(batch, -1),
            image_sampling=sampling, negative_prompt_ids=self.negative, max_new_tokens=0,
        )  # fmt: skip

    def by_codes(self) -> Callable[[int, int], object]:
        """A function that writes `length` codes a row of a `batch`, one by one."""
        twin = raster_twin(self.model)
        only_images = LogitsProcessorList([AllowedIds(self.model.config.vocabulary.image_ids)])
        adapters = [layer for layer in twin.modules() if isinstance(layer, BaseTunerLayer)]

        def draw(batch: int, length: int) -> object:
            for layer in adapters:  # image positions are unknown to the twin
                layer.enable_adapters(False)
            try:
                return twin.generate(
                    self.prompt.expand(batch, -1), attention_mask=torch.ones_like(self.prompt).expand(batch, -1),
                    max_new_tokens=length, min_new_tokens=length, do_sample=True, top_k=0,
                    logits_processor=only_images,
                )  # fmt: skip
            finally:
                for layer in adapters:
                    layer.enable_adapters(True)

        return draw


def raster_twin(model: UnifiedForCausalLM) -> torch.nn.Module:
    """The backbone with the union's matrix as an ordinary causal LM."""
    with torch.device("meta"):
        twin = AutoModelForCausalLM.from_config(model.config.text_config)
    setattr(twin, twin.base_model_prefix, model.model.language_model)  # an adapter's layers and all
    twin.set_output_embeddings(model.lm_head)
    twin.generation_config = GenerationConfig(pad_token_id=0)
    return twin.eval()


def seconds(draw: Callable[[], object]) -> float:
    """Wall time of one batch."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    draw()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(drawn: Drawn, batch: int, repeats: int, raster_repeats: int) -> dict[str, float | int]:
    """All figures of one model and batch size."""
    plain, guided = ImageSampling(), ImageSampling(guidance_scale=3.0)
    by_codes, length = drawn.by_codes(), drawn.model.config.image_length
    ways: dict[str, tuple[int, Callable[[], object]]] = {
        "scales": (repeats, lambda: drawn.by_scales(batch, plain)),
        "scales_guided": (repeats, lambda: drawn.by_scales(batch, guided)),
        "raster": (raster_repeats, lambda: by_codes(batch, length)),
    }
    for sampling in (plain, guided):  # warms up
        drawn.by_scales(batch, sampling)
    by_codes(batch, min(length, 8))
    times: dict[str, list[float]] = {}
    for run in range(max(repeats, raster_repeats)):
        for name, (runs, way) in ways.items():
            if run < runs:
                times.setdefault(name, []).append(seconds(way) / batch)
    found: dict[str, float | int] = {name: round(statistics.median(values), 5) for name, values in times.items()}
    if "raster" in found:
        found["faster_than_raster"] = round(found["raster"] / found["scales"], 2)
    with Operations() as operations:
        drawn.by_scales(batch, plain)
    found["products"] = round(operations.product_seconds / batch, 5)
    found["times_products"] = round(found["scales"] * batch / operations.product_seconds, 3)
    return found | {"kernels": operations.kernels, "host_waits": len(operations.waits)}


def main() -> None:
    hardware, args = parse((HardwareArguments, SpeedArguments))
    set_up(hardware)
    started = time.perf_counter()
    found: dict[str, dict[str, dict[str, float | int]]] = {}
    for codes in args.codes or [0]:
        drawn = Drawn.random(args, codes) if codes else Drawn.of_checkpoint(args)
        with products():
            by_batch = {
                f"batch_{batch}": measure(drawn, batch, args.repeats, args.raster_repeats)
                for batch in args.batch_sizes
            }
        found[f"codes_{drawn.model.config.image_length}"] = by_batch
    value = next(iter(found.values()))[f"batch_{args.batch_sizes[0]}"]["scales"]
    unused = ("model", "prompt") if args.codes else ("model", *RANDOM.split())
    config = {name: setting for name, setting in asdict(args).items() if name not in (*unused, "out")}
    config |= {"device": str(drawn.model.device), "threads": torch.get_num_threads(), "dtype": str(drawn.model.dtype)}
    details = {"stderr": None, "tokenizer": drawn.model.config.vq_fingerprint or None, "seed": None}
    details |= {"prompts_sha256": None if args.codes else prompts_digest([args.prompt]), **found}
    details["seconds"] = time.perf_counter() - started
    path, name = Path(args.out) if args.out else None, "random" if args.codes else args.model
    end_evaluation(write_result(path, "seconds_per_image", value, args.repeats, name, config, **details), path)


if __name__ == "__main__":
    run_main(main)
