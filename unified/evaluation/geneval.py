"""GenEval on a folder of images (Ghosh et al. 2023, arXiv:2310.11513): detections, verdicts, and the score as JSON."""

import dataclasses
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from unified.arguments.fields import LABEL
from unified.evaluation.detections import DetectionArguments, DetectionLog, Detections
from unified.evaluation.geneval_files import Sample, check_image, read_folder, read_prompts, read_settings
from unified.evaluation.metrics import GenevalRules, geneval_objects, geneval_summary, geneval_verdict
from unified.files.atomic import write_text
from unified.files.images import OPENER_VERSION, read_image
from unified.files.results import prompts_digest, write_result


@dataclass
class GenevalArguments:
    """What is scored, and where the score goes."""

    images: str = field(metadata={"help": "folder in GenEval's layout"})
    out: str = field(metadata={"help": "JSON for the score"})
    prompts: str | None = field(
        default=None, metadata={"help": "the prompt set the folder must be made from; None: trust its metadata.jsonl"}
    )
    images_per_prompt: int | None = field(
        default=None, metadata={"help": "images every prompt must have; None: as settings.json or the first one says"}
    )
    model: str | None = field(
        default=None,
        metadata={"help": "name of the generator; None: as settings.json says, else the folder", LABEL: True},
    )
    detections: str | None = field(default=None, metadata={"help": "None: IMAGES/detections.jsonl"})
    results: str | None = field(default=None, metadata={"help": "None: IMAGES/results.jsonl"})

    def __post_init__(self) -> None:
        if self.images_per_prompt is not None and self.images_per_prompt < 1:
            raise ValueError(f"images_per_prompt={self.images_per_prompt} must be at least 1; GenEval asks for 4")


def score_folder(args: GenevalArguments, detection: DetectionArguments, rules: GenevalRules) -> dict[str, Any]:
    """Score every image of a folder; the result, which is written to `args.out`.

    Raises ValueError as `read_folder` and `check_classes`, and for detections that another detector has made.
    """
    started, folder = time.monotonic(), Path(args.images)
    samples = read_folder(folder, args.images_per_prompt, read_prompts(args.prompts) if args.prompts else None)
    check_classes(samples, detection)
    identity, settings = detection.identity(), read_settings(folder)
    made_by = identity | {"opener": OPENER_VERSION}
    log = DetectionLog(Path(args.detections or folder / "detections.jsonl"), made_by)
    found = detect(samples, log, detection)
    records = [record(sample, detections, rules) for sample, detections in zip(samples, found, strict=True)]
    results = Path(args.results or folder / "results.jsonl")
    write_text(results, "".join(json.dumps(record) + "\n" for record in records))
    config = {"rules": dataclasses.asdict(rules), "detector": identity, "generation": settings}
    model = args.model or settings.get("model", args.images)
    return score(Path(args.out), model, config, records, results=str(results), seconds=time.monotonic() - started)


def check_classes(samples: Sequence[Sample], detection: DetectionArguments) -> None:
    """Raise ValueError for a class that the detector never finds: its prompts would all be wrong."""
    known = set(detection.class_names())
    for sample in samples:
        for clause in sample.metadata.get("include", []) + sample.metadata.get("exclude", []):
            if clause["class"] not in known:
                raise ValueError(
                    f"{sample.path.parents[1] / 'metadata.jsonl'} asks for {clause['class']!r}, which --detector "
                    f"{detection.detector} does not know; take another detector, or prompts without it "
                    "(eval/write_prompts.py --renderable)"
                )


def detect(samples: Sequence[Sample], log: DetectionLog, detection: DetectionArguments) -> list[Detections]:
    """Detections of every image; the detector is loaded only if one is missing.

    Batches are the same whether or not a run was stopped, so that it gives the same numbers to the last bit.
    """
    with tqdm(samples, desc="checking", unit="image") as bar:
        digests = [check_image(sample.path) for sample in bar]
    size, detector = detection.detect_batch_size, None
    with tqdm(total=len(samples), desc="detecting", unit="image") as bar:
        for start in range(0, len(samples), size):
            batch, sums = samples[start : start + size], digests[start : start + size]
            names = [sample.name for sample in batch]
            if not all(map(log.has, names, sums)):
                detector = detector or detection.load()
                log.add(
                    names,
                    sums,
                    detector.detect([read_image(sample.path, str(sample.path), exact=True) for sample in batch]),
                )
            bar.update(len(batch))
    return [log.found(sample.name) for sample in samples]


def record(sample: Sample, detections: Detections, rules: GenevalRules) -> dict[str, Any]:
    """An image's line in results.jsonl, with GenEval's own keys; `details` are the boxes that count."""
    correct, reason = geneval_verdict(sample.metadata, detections, rules)
    objects = geneval_objects(sample.metadata["tag"], detections, rules)
    return {
        "filename": str(sample.path),
        "tag": sample.metadata["tag"],
        "prompt": sample.metadata["prompt"],
        "correct": correct,
        "reason": reason,
        "metadata": json.dumps(sample.metadata),
        "details": json.dumps({name: [list(box[:5]) for box in boxes] for name, boxes in objects.items()}),
    }


def score(
    out: Path, model: str, config: dict[str, Any], records: Sequence[dict[str, Any]], **details: Any
) -> dict[str, Any]:
    """The result, written to `out`; tokenizer and seed are those that `config["generation"]` tells of."""
    summary = geneval_summary(records)
    prompts = dict.fromkeys(record["metadata"] for record in records)
    value, count, stderr = (summary.pop(key) for key in ("overall", "images", "stderr"))
    made = {"tokenizer": config["generation"].get("vq_fingerprint"), "seed": config["generation"].get("seed")}
    made |= {"stderr": stderr, "prompts_sha256": prompts_digest(prompts)}
    return write_result(out, "geneval_overall", value, count, model, config, **made, **details, **summary)


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    rows = [("", "correct", "+-", "images", "prompts")]
    for tag, task in result["tasks"].items():
        rows.append((tag, *shares(task["value"], task["stderr"]), str(task["images"]), str(task["prompts"])))
    counts = (str(result["n"]), str(result["prompts"]))
    rows.append(("overall (mean of tasks)", *shares(result["value"], result["stderr"]), *counts))
    for key in ("correct_images", "correct_prompts"):
        rows.append((key.replace("_", " "), *shares(result[key], result[f"{key}_stderr"]), *counts))
    return "".join(
        f"{name:<24}{value:>9}{error:>9}{images:>8}{prompts:>9}\n" for name, value, error, images, prompts in rows
    )


def shares(value: float, stderr: float | None) -> tuple[str, str]:
    """Both as text; a single prompt has no standard error."""
    return f"{value:.4f}", "" if stderr is None else f"{stderr:.4f}"
