"""Fit the two thresholds of `--detector coco` to the verdicts of GenEval's original tool on the same images.

    python eval/calibrate_geneval.py --detections out/geneval/detections.jsonl --original results.jsonl \\
        --rules out/coco_rules.json --out results/calibration.json
    python eval/geneval.py --config out/coco_rules.json --images out/geneval --detector coco --out results/geneval.json

GenEval's thresholds, 0.3 and 0.9 for counting, belong to the scores of mmdet's weights; those of the Hugging Face
checkpoint differ. `results.jsonl` is what djghosh13/geneval's evaluate_images.py wrote for a folder of images on a
machine where it could be built, `detections.jsonl` what eval/geneval.py wrote for the same folder. Images are matched
by `00000/samples/0000.png`, wherever the folder lay.

Half of every task's prompts fits: of all thresholds from --lowest to --highest the one that agrees best with
`--against verdicts` (share of images with equal verdicts) or `--against detections` (mean overlap of the number of
objects of every class, which says more per image; equally good ones: the nearest to the published). The other half
gives the result: agreement and score per task before and after. --rules is a file of flags for eval/geneval.py.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from tqdm import tqdm

from unified.arguments.parser import parse, run_main
from unified.evaluation.detections import Detections
from unified.evaluation.metrics import (
    GenevalRules,
    check_geneval_metadata,
    clustered_mean,
    geneval_objects,
    geneval_verdict,
)
from unified.files.atomic import write_text
from unified.files.jsonl import read_lines
from unified.files.results import prompts_digest, write_result
from unified.reports.endings import end_evaluation


@dataclass
class CalibrationArguments:
    """What is compared, and where thresholds and result go."""

    detections: str = field(metadata={"help": "JSONL of ours, written by eval/geneval.py --detector coco"})
    original: str = field(metadata={"help": "results.jsonl of the original tool for the same images"})
    rules: str = field(metadata={"help": "file for the fitted thresholds, to be given to eval/geneval.py --config"})
    out: str = field(metadata={"help": "JSON for the agreement"})
    against: Literal["verdicts", "detections"] = field(
        default="verdicts", metadata={"help": "verdicts: the score itself; detections: for few images"}
    )
    lowest: float = field(
        default=0.06, metadata={"help": "lowest threshold tried; the detector keeps scores from .05"}
    )
    highest: float = field(default=0.98, metadata={"help": "highest threshold tried"})
    step: float = field(default=0.01, metadata={"help": "distance of the thresholds tried"})
    seed: int = field(default=0, metadata={"help": "seed of the split into halves"})

    def __post_init__(self) -> None:
        if not 0 <= self.lowest <= self.highest <= 1 or self.step <= 0:
            raise ValueError(
                f"thresholds from {self.lowest} to {self.highest} in steps of {self.step} are none; "
                "give 0 <= lowest <= highest <= 1 and a step above 0"
            )


class Case(NamedTuple):
    """One image: its prompt, our detections, and the original tool's verdict and counts."""

    metadata: dict[str, Any]
    detections: Detections
    correct: bool
    counts: Counter[str]

    @property
    def prompt(self) -> str:
        return json.dumps(self.metadata, sort_keys=True)


Agreement = Callable[[Case, GenevalRules], float]


def same_verdict(case: Case, rules: GenevalRules) -> float:
    """1 where both tools' verdicts on an image are equal, else 0."""
    return float(geneval_verdict(case.metadata, case.detections, rules)[0] == case.correct)


def same_objects(case: Case, rules: GenevalRules) -> float:
    """Objects of a class that both found, over those that either found: 1 where every class has the same number."""
    found = geneval_objects(case.metadata["tag"], case.detections, rules)
    counts = Counter({name: len(boxes) for name, boxes in found.items()})
    either = (counts | case.counts).total()
    return (counts & case.counts).total() / either if either else 1.0


AGREEMENTS: dict[str, Agreement] = {"verdicts": same_verdict, "detections": same_objects}
# tasks a threshold decides about: the counting task has its own
FIELDS: dict[str, Callable[[str], bool]] = {
    "score_threshold": lambda tag: tag != "counting",
    "counting_threshold": lambda tag: tag == "counting",
}


def main() -> None:
    (args,) = parse((CalibrationArguments,))
    started = time.monotonic()
    cases = read_cases(args.detections, args.original)
    fitted, held_out = split(cases, args.seed)
    rules = fit(fitted, thresholds(args), AGREEMENTS[args.against])
    write_rules(Path(args.rules), rules)
    tasks = sorted({case.metadata["tag"] for case in held_out})
    report = {tag: compare([case for case in held_out if case.metadata["tag"] == tag], rules) for tag in tasks}
    overall = compare(held_out, rules)
    config = {**asdict(args), "before": asdict(GenevalRules()), "after": asdict(rules)}
    prompts = dict.fromkeys(json.dumps(case.metadata) for case in cases)
    details = {"tokenizer": None, "prompts_sha256": prompts_digest(prompts), "seed": args.seed}
    details |= {"fitted_images": len(fitted), "held_out": overall, "tasks": report}
    details |= overall[args.against]["after"] | {"n": overall["images"], "seconds": time.monotonic() - started}
    metric = f"geneval_agreement_{args.against}"
    end_evaluation(write_result(Path(args.out), metric, model="coco", config=config, **details), Path(args.out))


def read_cases(detections: str, original: str) -> list[Case]:
    """Images that both tools have seen. Raises ValueError where one of them has not seen an image of the other's."""
    for path in (detections, original):
        if not Path(path).is_file():
            raise ValueError(f"{path} is not a file; see --help for what writes it")
    ours = [line for _, line in read_lines(detections) if "detections" in line]  # the first line says who detected
    found = {image_of(line, detections): line["detections"] for line in ours}
    cases: dict[str, Case] = {}
    for _, line in read_lines(original):
        image = image_of(line, original)
        if image in cases:
            raise ValueError(f"{original} has {image} twice; give the results of one folder")
        cases[image] = read_case(line, found.get(image, {}), original)
    for image in sorted(found.keys() ^ cases.keys()):
        where = original if image in found else detections
        raise ValueError(f"{where} lacks {image}; run both tools over the same whole folder of images")
    if not cases:
        raise ValueError(f"{original} has no images; give the original tool's results.jsonl")
    return [cases[image] for image in sorted(cases)]


def image_of(line: dict[str, Any], path: str) -> str:
    """`00000/samples/0000.png` of the file a line of `path` speaks of, whatever folder it lay in."""
    if not isinstance(line.get("filename"), str):
        raise ValueError(f"{path} has a line without `filename`: {line!r:.80}; see --help for what writes it")
    return "/".join(PurePosixPath(line["filename"].replace("\\", "/")).parts[-3:])


def read_case(line: dict[str, Any], detections: Detections, original: str) -> Case:
    """A line of the original tool's results; it writes `metadata` and `details` as JSON within the JSON."""
    try:
        metadata = json.loads(line["metadata"])
        check_geneval_metadata(metadata)
        counts = Counter({name: len(boxes) for name, boxes in json.loads(line["details"]).items()})
        return Case(metadata, detections, bool(line["correct"]), counts)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{original}: {line['filename']} has no usable metadata, correct and details ({error!r}); "
            "give what evaluate_images.py wrote"
        ) from None


def split(cases: Sequence[Case], seed: int) -> tuple[list[Case], list[Case]]:
    """Two halves with every other prompt of each task, in an order that `seed` decides.

    A prompt's images stay in one half: they are correlated, and would inflate the score of the other half.
    """
    prompts: dict[str, list[str]] = {}
    for case in cases:
        prompts.setdefault(case.metadata["tag"], []).append(case.prompt)
    fitting: set[str] = set()
    for tag in sorted(prompts):
        shuffled = sorted(set(prompts[tag]))
        random.Random(f"{seed} {tag}").shuffle(shuffled)
        if len(shuffled) < 2:
            raise ValueError(f"task {tag!r} has one prompt; calibration needs two or more, better 50")
        fitting.update(shuffled[::2])
    halves: tuple[list[Case], list[Case]] = ([], [])
    for case in cases:
        halves[case.prompt not in fitting].append(case)
    return halves


def thresholds(args: CalibrationArguments) -> list[float]:
    """Those that are tried, besides the published ones."""
    steps = int((args.highest - args.lowest) / args.step + 1e-6)
    return [round(args.lowest + number * args.step, 6) for number in range(steps + 1)]


def fit(cases: Sequence[Case], candidates: Iterable[float], agreement: Agreement) -> GenevalRules:
    """The published rules with the thresholds that agree best; without images of its tasks one stays as it is."""
    rules = GenevalRules()
    for name, decides in FIELDS.items():
        published, concerned = asdict(rules)[name], [case for case in cases if decides(case.metadata["tag"])]
        if not concerned:
            continue
        # the nearest to the published first, so that of equally good ones it is taken
        tried = sorted({published, *candidates}, key=lambda threshold: (abs(threshold - published), threshold))
        agreements = {
            threshold: sum(agreement(case, replace(rules, **{name: threshold})) for case in concerned)
            for threshold in tqdm(tried, desc=name, unit="threshold")
        }
        rules = replace(rules, **{name: max(agreements, key=agreements.__getitem__)})
    return rules


def compare(cases: Sequence[Case], rules: GenevalRules) -> dict[str, Any]:
    """Agreement by both measures and the share of correct images, with the published rules and with `rules`."""
    published = GenevalRules()
    report: dict[str, Any] = {"images": len(cases), "prompts": len({case.prompt for case in cases})}
    for name, agreement in AGREEMENTS.items():
        before, after = ([agreement(case, r) for case in cases] for r in (published, rules))
        gains = [new - old for old, new in zip(before, after, strict=True)]
        report[name] = {"before": mean(cases, before), "after": mean(cases, after), "gain": mean(cases, gains)}
    verdicts = ([geneval_verdict(case.metadata, case.detections, r)[0] for case in cases] for r in (published, rules))
    before, after = (mean(cases, list(map(float, correct))) for correct in verdicts)
    original = mean(cases, [float(case.correct) for case in cases])
    return report | {"correct_images": {"original": original, "before": before, "after": after}}


def mean(cases: Sequence[Case], values: Sequence[float]) -> dict[str, float | None]:
    """Mean of a value per image, and its standard error, which counts a prompt's images as one cluster."""
    prompts: dict[str, list[float]] = {}
    for case, value in zip(cases, values, strict=True):
        prompts.setdefault(case.prompt, []).append(value)
    value, stderr = clustered_mean(prompts.values())
    return {"value": round(value, 4), "stderr": None if stderr is None else round(stderr, 4)}


def write_rules(path: Path, rules: GenevalRules) -> None:
    """The thresholds as flags of eval/geneval.py, written atomically; JSON is YAML too, so --config takes it."""
    write_text(path, json.dumps({name: asdict(rules)[name] for name in FIELDS}, indent=1) + "\n")


if __name__ == "__main__":
    run_main(main)
