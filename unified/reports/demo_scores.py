"""What a demo measures: new objects by the nearest known image, known ones by GenEval's rules, before and after."""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState

from unified.evaluation.detections import DetectionArguments, scenes_folder
from unified.evaluation.geneval import GenevalArguments
from unified.evaluation.geneval import score_folder as score_known
from unified.evaluation.image_folder import GenerateArguments, generate_folder
from unified.evaluation.metrics import GenevalRules, clustered_mean
from unified.files.jsonl import read_lines
from unified.hardware.setup import products
from unified.reports.demo import AFTER, BEFORE, Demo
from unified.reports.page import Score
from unified.scenes.nearest_object_score import NearestArguments
from unified.scenes.nearest_object_score import score_folder as score_new
from unified.scenes.prompts import sample_prompts, write_prompts
from unified.scenes.rendering import CLASSES, COLOURS

DETECTOR = "scenes"
NAMES = {"new": "New objects", "known": "Known objects"}
GROUPS = {"taught": "{} in its pictures", "tasks": "{}"}  # of a result, and how their rows are named


def scored(demo: Demo) -> list[str]:
    """What is measured: known objects, and new ones where there are any."""
    if not demo.args.heldout_prompts:
        return []
    return [*["new"] * (demo.args.repeat > 0), "known"]


def write_heldout_prompts(demo: Demo) -> None:
    """Prompts for combinations that no training scene shows."""
    args = demo.args
    classes, colours = args.classes or tuple(CLASSES), args.colours or tuple(COLOURS)
    prompts = sample_prompts(args.heldout_prompts, args.seed, "heldout", classes=classes, colours=colours)
    write_prompts(demo.out / "known.jsonl", prompts)


def draw(demo: Demo, what: str, when: str) -> None:
    """An image for each prompt of what is measured."""
    args, (model, processor) = demo.args, demo.load(when)
    folder, prompts = demo.out / when / what, demo.out / f"{what}.jsonl"
    told = GenerateArguments(
        str(demo.model_of(when)),
        str(prompts),
        str(folder),
        samples=1,
        seed=args.seed,
        **args.sampling_settings(),
    )
    with products():
        generate_folder(told, PartialState(cpu=model.device.type != "cuda"), model, processor)


def score(demo: Demo, what: str, when: str) -> None:
    """Judge these images."""
    images, out = str(demo.out / when / what), str(result_file(demo, what, when))
    if what == "new":
        score_new(NearestArguments(images, str(demo.out / "objects"), out, demo.args.vq))
    else:
        score_known(GenevalArguments(images, out), DetectionArguments(DETECTOR), GenevalRules())


def result_file(demo: Demo, what: str, when: str) -> Path:
    """Where a score is."""
    return demo.out / when / f"{what}.json"


def results(demo: Demo, what: str) -> dict[str, dict[str, Any]]:
    """Scores that are there, before and after."""
    files = {when: result_file(demo, what, when) for when in (BEFORE, AFTER)}
    return {when: json.loads(file.read_text(encoding="utf-8")) for when, file in files.items() if file.is_file()}


def ceilings(what: str, result: Mapping[str, Any]) -> dict[str, float]:
    """What true images get, by the name of a result's part; of the whole it is named ""."""
    if what == "new":
        return {"": result["ceiling"]["reconstructions"]}
    true = json.loads((scenes_folder(DETECTOR) / "ceilings.json").read_text(encoding="utf-8"))["reconstructions"]
    tasks = {name: true["tasks"][name]["value"] for name in result["tasks"]}
    return {"": sum(tasks.values()) / len(tasks)} | tasks


def rows(name: str, found: Sequence[Mapping[str, Any]], limits: Mapping[str, float]) -> list[Score]:
    """A result of every version as rows of a table: its value, then its groups."""
    newest = found[-1]
    shares = [(result["value"], result["stderr"]) for result in found]
    table = [Score(name, shares, newest["n"], limits[""])]
    for group, wording in GROUPS.items():
        for key, part in newest.get(group, {}).items():
            count = part["n"] if "n" in part else part["images"]
            shares = [(result[group][key]["value"], result[group][key]["stderr"]) for result in found]
            table.append(Score(wording.format(key.replace("_", " ")), shares, count, limits.get(key), part=True))
    return table


def change(before: Path, after: Path) -> tuple[float, float | None]:
    """Mean difference of two `results.jsonl` on the same prompts and seeds, and its standard error over prompts."""
    right: defaultdict[str, list[float]] = defaultdict(list)
    pairs = zip(read_lines(before), read_lines(after), strict=True)
    for (_, old), (_, new) in pairs:
        right[new["prompt"]].append(float(new["correct"]) - float(old["correct"]))
    return clustered_mean(list(right.values()))
