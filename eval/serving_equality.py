"""Whether a picture is the same alone and in a server's batches: both ways, and every code that differs traced.

    python eval/serving_equality.py --precision float32 --count 1000 --records out/equal.jsonl --out results/equal.json
    python eval/serving_equality.py --precision bf16 --count 200 --records out/bf16.jsonl --out results/bf16.json

Pictures of many prompts, each with its own seed, go through the engine of `unified serve`, --chunk at a time, with and
without guidance, at temperatures 1 and 0.7; then each is drawn by `generate` alone. Where codes differ, those of the
first scale that does are traced: all at once (no cache) the logits of the picture drawn alone are computed again, with
the noise of its seed, and `margins` are by how much, in nats, its code beat the one that the batch drew. Later scales
have other inputs then, and are not compared.

--records keeps a line for each picture as it is done; called again, the script goes on behind the last.

Printed, and written to --out, is one JSON: the value is the share of pictures that are equal to the bit, n how many
there are; of the codes compared, how many differ; the largest margin, and how many reach --margin.
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import json
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unified import ImageSampling, UnifiedForCausalLM, UnifiedProcessor
from unified.arguments.parser import check_minimum, parse, run_main
from unified.checkpoints.load_options import LoadOptions
from unified.files.jsonl import read_lines
from unified.files.results import prompts_digest, share_stderr, write_result
from unified.hardware.arguments import HardwareArguments
from unified.hardware.setup import products, record, set_up
from unified.image_tokenizer.scales import scale_spans
from unified.inference.text_to_image import generate_codes, image_prompts
from unified.models.sampling import apply_guidance, ramped_guidance_scale
from unified.reports.endings import end_evaluation
from unified.scenes.prompts import sample_prompts
from unified.scenes.rendering import CLASSES, COLOURS
from unified.serving.engine import Engine, EngineLimits
from unified.serving.jobs import Event, Failed, Finished, Job, WholeImage

PROMPTS = 200  # different ones
SETTINGS = (
    ImageSampling(),
    ImageSampling(temperature=0.7, guidance_scale=3.0),
    ImageSampling(temperature=0.7),
    ImageSampling(guidance_scale=3.0),
)


@dataclass
class EqualityArguments(LoadOptions):
    """What is compared."""

    model: str = field(default="weights/scenes-smollm2", metadata={"help": "checkpoint or adapter"})
    count: int = field(default=1000, metadata={"help": "pictures"})
    seed: int = field(default=0, metadata={"help": "of the prompts and of the first picture"})
    max_batch: int = field(default=16, metadata={"help": "pictures that are worked on together"})
    chunk: int = field(default=48, metadata={"help": "pictures that are handed to the engine together"})
    margin: float = field(default=1e-4, metadata={"help": "in nats: what two codes may be apart and still be turned"})
    records: str | None = field(default=None, metadata={"help": "JSONL of what is done; goes on from there"})
    out: str | None = field(default=None, metadata={"help": "JSON to write, beside printing it"})

    def __post_init__(self) -> None:
        check_minimum(self, count=1, seed=0, max_batch=1, chunk=1)


@dataclass(frozen=True)
class Picture:
    """The `number`-th picture."""

    number: int
    seed: int
    prompt: str
    sampling: ImageSampling


def batched(
    model: UnifiedForCausalLM, processor: UnifiedProcessor, engine: Engine, few: list[Picture]
) -> list[Tensor]:
    """Codes (L,) of pictures that the engine draws together. Raises RuntimeError where it cannot."""
    jobs = []
    for picture in few:
        ids, _ = image_prompts(model, processor, [picture.prompt])
        jobs.append(Job(ids[0].tolist(), engine.no_codes, frozenset(), picture.seed, picture.sampling, seconds=1e6))
    codes: dict[int, Tensor] = {}
    ended, failed = threading.Semaphore(0), list[Failed]()

    def hear(number: int, event: Event) -> None:
        if isinstance(event, WholeImage):
            codes[number] = event.codes
        if isinstance(event, Failed):
            failed.append(event)
        if isinstance(event, Finished | Failed):
            ended.release()

    engine.submit(jobs, hear)
    for _ in jobs:
        ended.acquire()
    if failed:
        raise RuntimeError(failed[0].message)
    return [codes[number] for number in range(len(few))]


def alone(model: UnifiedForCausalLM, processor: UnifiedProcessor, picture: Picture) -> Tensor:
    """Codes (L,) of a picture that is drawn by itself."""
    generator = torch.Generator(model.device).manual_seed(picture.seed)
    with products():
        return generate_codes(model, processor, [picture.prompt], picture.sampling, generator)[0].cpu()


def compared(
    model: UnifiedForCausalLM, processor: UnifiedProcessor, picture: Picture, one: Tensor, other: Tensor
) -> dict[str, Any]:
    """A picture's record: `one` is drawn alone, `other` in a batch, both (L,)."""
    found: dict[str, Any] = {"number": picture.number, "seed": picture.seed, "prompt": picture.prompt}
    found |= {"temperature": picture.sampling.temperature, "guidance_scale": picture.sampling.guidance_scale}
    differs = one != other
    if not differs.any():
        return found | {"scale": None, "compared": len(one), "differing": 0, "margins": []}
    spans = scale_spans(model.config.patch_nums)
    scale = next(k for k, (start, stop) in enumerate(spans) if differs[start:stop].any())
    start, stop = spans[scale]
    scores = sampled_scores(model, processor, picture, one, scale)
    chosen, drawn = (scores.gather(1, codes[start:stop, None])[:, 0] for codes in (one, other))
    margins = (chosen - drawn)[differs[start:stop]]
    return found | {"scale": scale, "compared": stop, "differing": len(margins), "margins": margins.tolist()}


@torch.no_grad()
def sampled_scores(
    model: UnifiedForCausalLM, processor: UnifiedProcessor, picture: Picture, codes: Tensor, scale: int
) -> Tensor:
    """What `generate` takes the largest of at one scale of a picture of `codes` (L,): (n, codebook_size), in nats."""
    prompt, _ = image_prompts(model, processor, [picture.prompt])
    unconditional = torch.tensor([[*processor.unconditional_ids(), model.config.boi_token_id]])
    start, stop = scale_spans(model.config.patch_nums)[scale]
    logits = code_logits(model, prompt.cpu(), codes)[start:stop]
    if picture.sampling.guidance_scale != 1:
        strength = ramped_guidance_scale(picture.sampling.guidance_scale, scale, len(model.config.patch_nums))
        logits = apply_guidance(logits, code_logits(model, unconditional, codes)[start:stop], strength)
    generator = torch.Generator(model.device).manual_seed(picture.seed)
    for begin, end in scale_spans(model.config.patch_nums)[: scale + 1]:
        noise = torch.empty(end - begin, logits.shape[1], device=model.device).exponential_(1, generator=generator)
    return (logits / picture.sampling.temperature).log_softmax(-1) - noise.log().cpu()


def code_logits(model: UnifiedForCausalLM, prompt: Tensor, codes: Tensor) -> Tensor:
    """Logits (L, codebook_size) of an image of `codes` (L,) behind a prompt (1, T), all scales at once."""
    vocabulary = model.config.vocabulary
    ids = torch.cat([prompt, vocabulary.codes_to_ids(codes[None])], dim=1)
    with products():
        logits = model(input_ids=ids.to(model.device)).logits[0]
    rows = slice(vocabulary.image_ids.start, vocabulary.image_ids.stop)
    return logits[prompt.shape[1] - 1 : -1, rows].float().cpu()


def pictures(args: EqualityArguments) -> list[Picture]:
    """All that are to be compared."""
    sampled = sample_prompts(min(args.count, PROMPTS), args.seed, "train", [], tuple(CLASSES), tuple(COLOURS), [5, 6])
    return [
        Picture(i, args.seed + i, sampled[i % len(sampled)]["prompt"], SETTINGS[i % len(SETTINGS)])
        for i in range(args.count)
    ]


def identity(args: EqualityArguments) -> dict[str, Any]:
    """The first line of --records: what its pictures depend on."""
    settings = {name: getattr(args, name) for name in ("model", "seed", "max_batch")}
    return settings | {"precision": record()["precision"]}


def begun(args: EqualityArguments) -> list[dict[str, Any]]:
    """Records of an earlier run. Raises ValueError where they are of other settings."""
    path = Path(args.records) if args.records else None
    if path is None or not path.exists():
        return []
    lines = [line for _, line in read_lines(path)]
    if lines[0] != identity(args):
        raise ValueError(f"--records {path} is of {lines[0]}, not of {identity(args)}; give another file")
    return lines[1 : args.count + 1]


def compare_all(
    args: EqualityArguments, model: UnifiedForCausalLM, processor: UnifiedProcessor
) -> list[dict[str, Any]]:
    """Records of all pictures, those of an earlier run first."""
    records = begun(args)
    left = pictures(args)[len(records) :]
    path = Path(args.records) if args.records else None
    if path is not None and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(identity(args)) + "\n", encoding="utf-8")
    with Engine(model, processor, EngineLimits(args.max_batch, args.chunk), products) as engine:
        for start in range(0, len(left), args.chunk):
            few = left[start : start + args.chunk]
            others = batched(model, processor, engine, few)
            for picture, other in zip(few, others, strict=True):
                records.append(compared(model, processor, picture, alone(model, processor, picture), other))
                if path is not None:
                    with path.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(records[-1]) + "\n")
    return records


def main() -> None:
    hardware, args = parse((HardwareArguments, EqualityArguments))
    set_up(hardware)
    started = time.perf_counter()
    model, processor = args.load(args.model)
    records = compare_all(args, model, processor)
    margins = [margin for line in records for margin in line["margins"]]
    equal = sum(line["scale"] is None for line in records) / len(records)
    config = {name: setting for name, setting in asdict(args).items() if name not in ("model", "out", "records")}
    config |= {"device": str(model.device), "threads": torch.get_num_threads(), "dtype": str(model.dtype)}
    details = {
        "codes_compared": sum(line["compared"] for line in records),
        "codes_differing": len(margins),
        "largest_margin": max(margins, default=None),
        "margins_too_large": sum(abs(margin) >= args.margin for margin in margins),
        "differing": [line for line in records if line["margins"]][:100],
    }
    path, digest = Path(args.out) if args.out else None, prompts_digest([line["prompt"] for line in records])
    result = write_result(
        path, "pictures_equal", equal, len(records), args.model, config, stderr=share_stderr(equal, len(records)),
        tokenizer=model.config.vq_fingerprint, prompts_sha256=digest, seed=args.seed,
        seconds=time.perf_counter() - started, **details,
    )  # fmt: skip
    end_evaluation(result, path)


if __name__ == "__main__":
    run_main(main)
