"""Learning curve of a training run over images seen, the power law through it, and the hours to a goal.

    python eval/learning_curve.py --runs out/scenes-lora --goal 1.0 --out results/curve.json
    python eval/learning_curve.py --runs out/stage1 out/stage2 --out results/curve.json \\
        --scores 2000=results/geneval_2000.json 4000=results/geneval_4000.json --score_goal 0.9

--runs are output folders (or checkpoints) of recipes/sft.py in the order in which they went on from each other; their
image losses come from trainer_state.json. --scores are results of eval/ (GenEval, understanding) by the pictures a
checkpoint had seen: their errors 1 - value get a power law of their own, without a floor. Hours are those of pictures
at the median speed in the log. A power law extrapolates a curve, and knows nothing of what a lower
learning rate at the end will give: points of a decay are left out with --until.

Written are --out (JSON, also printed) and its picture, the same name with .png.
"""

import statistics
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from unified.arguments.needs import Needs, WithNeeds
from unified.arguments.parser import check_minimum, parse, run_main
from unified.evaluation.power_law import PowerLaw, fit_power_law
from unified.files.atomic import atomic_path
from unified.files.records import TRAINER_STATE
from unified.files.results import write_result
from unified.reports.endings import end_evaluation
from unified.reports.results_page import read_results
from unified.training.log_history import read_logs


@dataclass
class CurveArguments(WithNeeds):
    """Which curve, and its goal."""

    NEEDS = (Needs("score_goal", lambda args: args.scores, "give --scores", "scores"),)

    runs: list[str] = field(metadata={"help": "folders of recipes/sft.py, each going on from the one before"})
    out: str = field(metadata={"help": "JSON to write; the picture lies beside it"})
    scores: list[str] = field(default_factory=list, metadata={"help": "PICTURES=RESULT.json, of eval/"})
    goal: float = field(default=1.0, metadata={"help": "image loss to reach, nats a code"})
    score_goal: float = field(default=0.9, metadata={"help": "score to reach"})
    skip: float = field(default=0.1, metadata={"help": "share of the pictures at the start that the fit leaves out"})
    until: float = field(default=0.0, metadata={"help": "the fit leaves out points after so many pictures; 0: none"})

    def __post_init__(self) -> None:
        check_minimum(self, goal=0, score_goal=0, skip=0, until=0)
        if not self.out.endswith(".json"):
            raise ValueError(f"--out {self.out} is no JSON; end it with .json")


def read_losses(runs: list[str]) -> tuple[list[tuple[float, float]], float]:
    """(pictures, image loss) of all runs one behind the other, and the median of pictures a second.

    Raises ValueError where a run has no log, or none of them has an image loss.
    """
    for run in runs:
        if not read_logs([Path(run)]):
            raise ValueError(f"{run} has no {TRAINER_STATE} and no checkpoint; give output folders of recipes/sft.py")
    log = read_logs(map(Path, runs))
    seen = [entry for entry in log if "images_seen" in entry and "image_loss" in entry]
    if not seen:
        raise ValueError(f"{', '.join(runs)}: no image losses in the log; train on rows with output images first")
    rate = statistics.median(entry["images_per_second"] for entry in seen)
    return [(entry["images_seen"], entry["image_loss"]) for entry in seen], rate


def read_score(given: str) -> tuple[str, list[float]]:
    """Metric, and pictures seen, value and standard error of `PICTURES=RESULT.json`."""
    count, _, path = given.partition("=")
    if not count.replace(".", "", 1).isdigit() or not Path(path).is_file():
        raise ValueError(f"--scores {given}: give PICTURES=RESULT.json, the file being one of eval/'s")
    (result,) = read_results([Path(path)])
    return result.metric, [float(count), result.value, result.details.get("stderr") or 0.0]


def outlook(law: PowerLaw, goal: float, seen: float, rate: float) -> dict[str, Any]:
    """The law, and the pictures and hours from `seen` to `goal` by it."""
    images = law.reaches(goal)
    hours = None if images is None else max(0.0, images - seen) / rate / 3600
    return asdict(law) | {"goal": goal, "images_at_goal": images, "hours_to_goal": hours}


def draw(path: Path, losses: list[tuple[float, float]], law: PowerLaw, scores: dict[str, list[list[float]]]) -> None:
    """Losses and scores over pictures seen, on logarithmic axes of pictures."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(10, 3.8), dpi=110, layout="constrained")
    left, right = figure.subplots(1, 2)
    xs = [x for x, _ in losses]
    left.plot(*zip(*losses, strict=True), ".", label="training")
    left.plot(xs, [law.at(x) for x in xs], label="power law")
    left.set(xscale="log", xlabel="pictures seen", ylabel="image loss (nats a code)")
    for name, points in scores.items():
        count, value, error = zip(*points, strict=True)
        right.errorbar(count, value, yerr=error, marker="o", label=name)
    right.set(xlabel="pictures seen", ylabel="score", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            axes.legend()
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png")


def main() -> None:
    (args,) = parse((CurveArguments,))
    started = time.perf_counter()
    losses, rate = read_losses(args.runs)
    seen = losses[-1][0]
    used = [point for point in losses if args.skip * seen <= point[0] <= (args.until or seen)]
    law = fit_power_law(*zip(*used, strict=True)) if used else fit_power_law([], [])
    found: dict[str, Any] = {"images_seen": seen, "images_per_second": rate}
    found["law"] = outlook(law, args.goal, seen, rate) | {"points": losses}
    scores: dict[str, list[list[float]]] = {}
    for metric, point in map(read_score, args.scores):
        scores.setdefault(metric, []).append(point)
    for name, points in scores.items():
        found[name] = {"points": sorted(points)}
        if len({count for count, *_ in points}) > 1:
            errors = fit_power_law([p[0] for p in points], [1 - p[1] for p in points], floor=0.0)
            found[name] |= outlook(errors, 1 - args.score_goal, seen, rate) | {"goal": args.score_goal}
    draw(Path(args.out).with_suffix(".png"), losses, law, {name: sorted(points) for name, points in scores.items()})
    config = {name: value for name, value in asdict(args).items() if name != "out"}
    whose = {"stderr": None, "tokenizer": None, "prompts_sha256": None, "seed": None}
    found |= whose | {"seconds": time.perf_counter() - started}
    record = write_result(Path(args.out), "image_loss", losses[-1][1], len(losses), args.runs[-1], config, **found)
    shown = record | {"law": {name: value for name, value in record["law"].items() if name != "points"}}
    end_evaluation(record, args.out, shown)


if __name__ == "__main__":
    run_main(main)
