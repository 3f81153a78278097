"""Ceiling and false-positive rate of a detector's GenEval scores: verdicts on Scenes with right and wrong captions.

    python eval/detector_ceiling.py --detector scenes --out results/ceiling.json
    python eval/detector_ceiling.py --detector scenes --vq weights/scenes-vq --layout tidy --split heldout \\
        --out results/ceiling_tidy_heldout.json

Scenes are rendered, with --vq also reconstructed by the image tokenizer, and scored three times each: against their
own caption (the ceiling: a perfect generator scores no more), against another scene's of the same task (`shuffled`),
and against one that is wrong in a single thing, the colour, the count, the relation, one object (`near_miss`). Passing
either of these is a false positive, which a generator gets for nothing. Published rules. Prints one JSON whose value
is the ceiling, of reconstructions if there is a tokenizer, and a table to stderr.
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image
from tqdm import tqdm

from unified.arguments.parser import parse, run_main
from unified.evaluation.detections import DetectionArguments, Detections, Detector
from unified.files.results import prompts_digest, write_result
from unified.hardware.arguments import HardwareArguments
from unified.hardware.setup import set_up
from unified.image_tokenizer.loading import load_vq
from unified.reports.endings import end_evaluation
from unified.scenes.detector_ceilings import reconstructions, summary, wrong_captions
from unified.scenes.prompts import near_miss
from unified.scenes.rendering import Scene, draw_scene, sample_scene, tags_of
from unified.scenes.tidy_layout import tidy

SHARE_AND_ERROR = (("", "overall"), ("_stderr", "stderr"))


@dataclass
class CeilingArguments:
    """Which scenes are scored."""

    out: str | None = field(default=None, metadata={"help": "JSON for the result, beside printing it"})
    scenes: int = field(default=100, metadata={"help": "scenes of every task"})
    layout: Literal["free", "tidy"] = field(default="free", metadata={"help": "as data_prep/render_scenes.py has it"})
    split: Literal["train", "heldout"] = field(default="train", metadata={"help": "the same; heldout has four tasks"})
    vq: str | None = field(default=None, metadata={"help": "image tokenizer that also reconstructs the scenes"})
    seed: int = field(default=0, metadata={"help": "another seed gives other scenes"})

    def __post_init__(self) -> None:
        if self.scenes < 2 or self.seed < 0:
            raise ValueError(f"scenes={self.scenes}, seed={self.seed}: give at least 2 scenes and no negative seed")


def main() -> None:
    hardware, args, detection = parse((HardwareArguments, CeilingArguments, DetectionArguments))
    set_up(hardware)
    started, scenes = time.monotonic(), sample(args)
    pictures = {"renders": [draw_scene(scene) for scene in scenes]}
    vq = None if args.vq is None else load_vq(args.vq)
    if vq is not None:
        pictures["reconstructions"] = reconstructions(vq, pictures["renders"])
    detector, captions = detection.load(), captions_of(scenes, args.seed)
    scored = {name: score(captions, detect(detector, images, detection)) for name, images in pictures.items()}
    config = asdict(args) | {"detector": detection.identity()}
    del config["out"]
    best = scored[list(scored)[-1]]["own"]
    details = {"stderr": best["stderr"], "tokenizer": vq and vq.fingerprint(), "seed": args.seed}
    details |= {"prompts_sha256": prompts_digest(map(json.dumps, captions["own"]))}
    details |= {"overall": overall(scored)} | {name: by_task(kinds) for name, kinds in scored.items()}
    details["seconds"] = time.monotonic() - started
    path = Path(args.out) if args.out else None
    result = write_result(
        path, "detector_ceiling", best["overall"], len(scenes), detection.detector, config, **details
    )
    sys.stderr.write("".join(map(table, scored, scored.values())))
    end_evaluation(result, path)


def sample(args: CeilingArguments) -> list[Scene]:
    """As many scenes of every task."""
    rng = np.random.default_rng(args.seed)
    scenes = [sample_scene(tag, rng, split=args.split) for tag in tags_of(args.split) for _ in range(args.scenes)]
    return [tidy(scene) for scene in scenes] if args.layout == "tidy" else scenes


def captions_of(scenes: Sequence[Scene], seed: int) -> dict[str, list[dict[str, Any]]]:
    """For every scene its own caption's metadata, another scene's, and one that is wrong in one thing."""
    rng = np.random.default_rng(seed)
    own = [scene.metadata for scene in scenes]
    near = [near_miss(metadata, rng) for metadata in own]
    return {"own": own, "shuffled": wrong_captions(scenes, seed), "near_miss": near}


def detect(detector: Detector, images: Sequence[Image.Image], detection: DetectionArguments) -> list[Detections]:
    """Detections of every image."""
    found: list[Detections] = []
    for start in tqdm(range(0, len(images), detection.detect_batch_size), desc="detecting", unit="batch"):
        found += detector.detect(images[start : start + detection.detect_batch_size])
    return found


def score(captions: dict[str, list[dict[str, Any]]], found: Sequence[Detections]) -> dict[str, Any]:
    """`geneval_summary` of every kind of caption."""
    return {kind: summary(metadata, found) for kind, metadata in captions.items()}


def overall(scored: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Shares of captions that pass, with standard errors, of every kind of picture and caption."""
    return {
        name: {f"{kind}{suffix}": scores[key] for kind, scores in kinds.items() for suffix, key in SHARE_AND_ERROR}
        for name, kinds in scored.items()
    }


def by_task(kinds: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Shares of captions that pass, of every task and kind of caption."""
    tasks = kinds["own"]["tasks"]
    return {tag: {kind: scores["tasks"][tag]["value"] for kind, scores in kinds.items()} for tag in tasks}


def table(name: str, kinds: dict[str, Any]) -> str:
    """Shares of captions that pass, for people."""
    rows = by_task(kinds) | {"overall": {kind: scores["overall"] for kind, scores in kinds.items()}}
    lines = [f"{name:<24}" + "".join(f"{kind:>11}" for kind in kinds)]
    lines += [f"{tag:<24}" + "".join(f"{value:>11.4f}" for value in shares.values()) for tag, shares in rows.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    run_main(main)
