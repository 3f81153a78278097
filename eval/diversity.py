"""Diversity of a prompt's pictures, and low-level statistics of all of them, for instance before and after DPO.

    python eval/diversity.py --images out/drawn --vq weights/scenes-vq --out results/diversity.json

The folder is what eval/generate_images.py, or any generator with GenEval's layout, has written with two or more
pictures a prompt. The tokenizer encodes them again, so that folders of all models compare. A model that has collapsed
draws the same picture again and again, or pictures all of one kind. Printed, and written to --out, is one JSON:

    value, stderr          share of codes in which two pictures of a prompt differ, mean over all such pairs
    by_scale               the same for the codes of every scale
    rms                    root mean square difference of such two pictures, of values in [0, 1]
    usage_by_scale, perplexity_by_scale    codes that all pictures use, and exp(entropy) of them
    brightness, contrast, sharpness, colourfulness    means over all pictures, see unified/evaluation/diversity.py
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import json
import time
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from unified.arguments.fields import LABEL
from unified.arguments.parser import check_minimum, parse, run_main
from unified.evaluation.diversity import image_statistics, pair_differences
from unified.evaluation.geneval_files import Sample, read_folder, read_settings
from unified.evaluation.metrics import clustered_mean
from unified.files.images import image_to_pixels, read_image
from unified.files.results import prompts_digest, write_result
from unified.hardware.arguments import HardwareArguments
from unified.hardware.setup import set_up
from unified.image_tokenizer.loading import load_vq
from unified.image_tokenizer.losses import CodeUsage
from unified.image_tokenizer.model import VQModel
from unified.image_tokenizer.scales import scale_spans
from unified.reports.endings import end_evaluation


@dataclass
class DiversityArguments:
    """What is measured with which tokenizer."""

    images: str = field(metadata={"help": "folder in GenEval's layout, two or more pictures of any prompts"})
    vq: str = field(default="weights/scenes-vq", metadata={"help": "image tokenizer that encodes the pictures"})
    model: str | None = field(
        default=None, metadata={"help": "name of the generator; None: as settings.json says", LABEL: True}
    )
    batch_size: int = field(default=64, metadata={"help": "pictures read at once"})
    out: str | None = field(default=None, metadata={"help": "JSON to write, beside printing it"})

    def __post_init__(self) -> None:
        check_minimum(self, batch_size=1)


@torch.no_grad()
def encode(vq: VQModel, samples: list[Sample], batch_size: int) -> tuple[Tensor, Tensor]:
    """Pixel values (B, 3, S, S) and codes (B, L) of all pictures, on the CPU."""
    pixels, codes = [], []
    for start in tqdm(range(0, len(samples), batch_size), unit="batch"):
        batch = [
            read_image(sample.path, str(sample.path), exact=True) for sample in samples[start : start + batch_size]
        ]
        pixels.append(torch.stack([image_to_pixels(image, vq.config.image_size) for image in batch]))
        codes.append(vq.encode(pixels[-1].to(vq.device)).cpu())
    return torch.cat(pixels), torch.cat(codes)


def by_prompt(samples: list[Sample]) -> list[Tensor]:
    """The places of every prompt's pictures; ValueError where a prompt has fewer than two."""
    places = groupby(range(len(samples)), key=lambda place: samples[place].path.parent)
    groups = [torch.tensor(list(group)) for _, group in places]
    if len(groups[0]) < 2:
        raise ValueError(f"{samples[0].path.parent} has one picture; draw with --samples 2 or more")
    return groups


def measure(vq: VQModel, samples: list[Sample], groups: list[Tensor], batch_size: int) -> dict:
    """What `write_result` takes of all pictures; `groups` are the places of every prompt's."""
    pixels, codes = encode(vq, samples, batch_size)
    different = [pair_differences(codes[group]).float() for group in groups]
    value, stderr = clustered_mean([pairs.mean(dim=1).tolist() for pairs in different])
    spans = scale_spans(vq.config.patch_nums)
    usage = CodeUsage(vq.config.codebook_size, vq.config.patch_nums)
    usage.update(codes)
    statistics = {name: round(float(values.mean()), 4) for name, values in image_statistics(pixels).items()}
    return {
        "value": value,
        "stderr": stderr,
        "n": len(samples),
        "by_scale": [round(float(torch.cat(different)[:, start:stop].mean()), 4) for start, stop in spans],
        "rms": round(float(torch.cat([distances(pixels[group]) for group in groups]).mean()), 4),
        "usage_by_scale": [round(share, 4) for share in usage.usage().tolist()],
        "perplexity_by_scale": [round(number, 1) for number in usage.perplexity().tolist()],
        **statistics,
    }


def distances(pixels: Tensor) -> Tensor:
    """Root mean square difference of every two of N pictures (N, 3, S, S), of values in [0, 1]."""
    return torch.pdist(pixels.flatten(1)) / (2 * pixels[0].numel() ** 0.5)


def main() -> None:
    hardware, args = parse((HardwareArguments, DiversityArguments))
    set_up(hardware)
    started = time.perf_counter()
    samples = read_folder(args.images, plain=True)
    groups, vq = by_prompt(samples), load_vq(args.vq)
    found = measure(vq, samples, groups, args.batch_size)
    drawn = read_settings(args.images)
    made = {
        "config": {"images": args.images, "drawn": drawn},
        "tokenizer": vq.fingerprint(),
        "prompts_sha256": prompts_digest(dict.fromkeys(json.dumps(sample.metadata) for sample in samples)),
        "seed": drawn.get("seed"),
        "seconds": time.perf_counter() - started,
    }
    model = args.model or drawn.get("model") or args.images
    path = Path(args.out) if args.out else None
    end_evaluation(write_result(path, "diversity", model=model, **found, **made), path)


if __name__ == "__main__":
    run_main(main)
