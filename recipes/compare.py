"""Equal wall time for each of several ways to train, and one table of their losses.

    python recipes/compare.py --config recipes/configs/smollm2_scenes/trials.yaml

The YAML names one run of recipes/sft.py, the minutes and seeds every trial gets, and the trials: for each, the keys
in which it differs from that run (a trial of another start names another `model`). Trials run one after the other, as
they share the machine; one that is done is not done again, so a trial may be added later, and the table is made anew.

Evaluated on the run's `eval_files` at the end: mean loss of image codes, of every scale, and of text; with --prompts
also by Scenes-GenEval on that many held-out prompts, one picture each. OUT/table.md has a row for every trial, with
the spread (half the range) where it has several seeds; OUT/NAME-SEED/result.json has one trial, and OUT/NAME-SEED/run
its logs.
"""

import json
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unified.arguments.needs import Needs, WithNeeds
from unified.arguments.parser import parse, run_main
from unified.data.rows import init_output_folder
from unified.files.atomic import write_text
from unified.hardware.arguments import HardwareArguments
from unified.inference.arguments import GuidedSamplingArguments
from unified.reports.commands import launch_words, run_step
from unified.training.arguments import DataArguments, ModelArguments, UnifiedTrainingArguments
from unified.training.log_history import read_logs

COLUMNS = {
    "eval_image_loss": "image loss",
    "eval_text_loss": "text loss",
    "images_seen": "pictures",
    "images_per_second": "pictures/s",
    "geneval": "Scenes-GenEval",
}


@dataclass
class CompareArguments(GuidedSamplingArguments, WithNeeds):
    """What is compared, for how long, and by what; the sampling is that of Scenes-GenEval's pictures."""

    NEEDS = (
        Needs(
            "guidance_scale temperature top_k top_p",
            lambda args: args.prompts,
            "nothing is drawn while prompts is 0; give a number",
            "prompts",
        ),
    )

    run: str = field(metadata={"help": "YAML of recipes/sft.py that all trials share"})
    out: str = field(metadata={"help": "folder for the trials and the table"})
    trials: dict = field(metadata={"help": "name -> the keys of --run that differ"})
    common: dict = field(default_factory=dict, metadata={"help": "keys of --run that differ in all of them"})
    minutes: float = field(default=6.0, metadata={"help": "training time of every trial"})
    seeds: list[int] = field(default_factory=lambda: [0], metadata={"help": "every trial runs with each"})
    prompts: int = field(default=0, metadata={"help": "prompts of Scenes-GenEval; 0: losses only"})
    keep_weights: bool = field(default=False, metadata={"help": "keep what was trained: 0.6 GB a trial of SmolLM2"})
    launch: str | None = field(
        default=None, metadata={"help": "accelerate's file for training; None: all GPUs, else one process on the CPU"}
    )


def flags(keys: dict[str, Any]) -> list[str]:
    """`{"warmup_steps": 5, "eval_files": [a, b]}` as the words of a command line."""
    words = []
    for key, value in keys.items():
        given = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        words += [f"--{key}", *map(str, given)]
    return words


def training_flags(args: CompareArguments, name: str, seed: int, out: Path) -> list[str]:
    """Flags of recipes/sft.py for one trial."""
    fixed = {"seed": seed, "output_dir": out, "max_minutes": args.minutes, "eval_strategy": "steps"}
    never = {"eval_steps": 10**9, "save_steps": 10**9}  # both happen once, when the time is up
    return ["--config", args.run, *flags({**fixed, **never, **args.common, **args.trials[name]})]


def score(args: CompareArguments, folder: Path, trained: Path) -> float:
    """Scenes-GenEval of the model that a trial trained."""
    prompts, images, result = folder / "prompts.jsonl", folder / "images", folder / "geneval.json"
    command = ["eval/write_prompts.py", "--split", "heldout", "--count", str(args.prompts), "--out", str(prompts)]
    run_step(folder / "done" / "prompts", folder.name, command)
    command = ["eval/generate_images.py", "--model", str(trained), "--prompts", str(prompts), "--out", str(images)]
    command += ["--samples", "1", *args.sampling_flags()]
    run_step(folder / "done" / "draw", folder.name, command)
    command = ["eval/geneval.py", "--images", str(images), "--detector", "scenes", "--out", str(result)]
    run_step(folder / "done" / "score", folder.name, command)
    return float(json.loads(result.read_text(encoding="utf-8"))["value"])


def run_trial(args: CompareArguments, name: str, seed: int) -> dict[str, Any]:
    """Train and evaluate one trial, unless that was done before; its result."""
    folder = Path(args.out) / f"{name}-{seed}"
    trained, result = folder / "run", folder / "result.json"
    settings = {"run": Path(args.run).read_text(encoding="utf-8"), "minutes": args.minutes}
    settings |= {"common": args.common, "keys": args.trials[name]}
    init_output_folder(folder, settings)
    if result.exists():
        return json.loads(result.read_text(encoding="utf-8"))
    shutil.rmtree(trained, ignore_errors=True)  # half a trial has no equal time
    told = training_flags(args, name, seed, trained)
    command = [*launch_words("recipes/sft.py", args.launch), *told]
    run_step(folder / "done" / "train", folder.name, command, again=True)
    history = read_logs([trained])
    last = {key: value for entry in history for key, value in entry.items()}
    rates = sorted(entry["images_per_second"] for entry in history if "images_per_second" in entry)
    kept = {key: value for key, value in last.items() if key.startswith("eval_") and key.endswith("_loss")}
    found = {"name": name, "seed": seed, "minutes": args.minutes, "keys": args.trials[name], **kept}
    found |= {"images_seen": last["images_seen"], "images_per_second": rates[len(rates) // 2], "steps": last["step"]}
    if args.prompts:
        found["geneval"] = score(args, folder, trained)
    write_text(result, json.dumps(found, indent=1) + "\n")
    if not args.keep_weights:
        for path in [*trained.glob("*.safetensors"), *trained.glob("checkpoint-*")]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return found


def cell(values: list[float]) -> str:
    """A mean, with half the range where there are several."""
    mean = sum(values) / len(values)
    text = f"{mean:.3f}" if mean < 100 else f"{mean:.0f}"
    return text if len(values) == 1 else f"{text} ± {(max(values) - min(values)) / 2:.3f}"


def table(results: list[dict[str, Any]]) -> str:
    """Markdown with a row for every trial, the best image loss first."""
    scales = sorted({key for entry in results for key in entry if key.startswith("eval_scale_")})
    shown = COLUMNS | {key: f"scale {key.split('_')[2]}" for key in scales}
    lines = ["| trial | keys | seeds |" + "".join(f" {title} |" for title in shown.values())]
    lines.append("|---" * (3 + len(shown)) + "|")
    groups: dict[str, list[dict[str, Any]]] = {}
    for entry in sorted(results, key=lambda entry: entry["eval_image_loss"]):
        groups.setdefault(entry["name"], []).append(entry)
    for name, entries in groups.items():
        keys = " ".join(flags(entries[0]["keys"])).replace("--", "") or "as the run"
        cells = [[entry[key] for entry in entries if key in entry] for key in shown]
        lines.append(f"| {name} | {keys} | {len(entries)} |" + "".join(f" {cell(v) if v else ''} |" for v in cells))
    return "\n".join(lines) + "\n"


def main() -> None:
    (args,) = parse((CompareArguments,))
    if not args.trials:
        raise ValueError("trials is empty; name at least one, for instance {as_it_is: {}}")
    for name in args.trials:  # a mistake in the last one is found now, not after hours of the others
        told = training_flags(args, name, 0, Path(args.out))
        try:
            parse((HardwareArguments, ModelArguments, DataArguments, UnifiedTrainingArguments), told)
        except ValueError as error:
            raise ValueError(f"trial {name!r}: {error}") from None
    results = []
    for seed in args.seeds:
        for name in args.trials:
            results.append(run_trial(args, name, seed))
            write_text(Path(args.out) / "table.md", table(results))
    sys.stdout.write(table(results))


if __name__ == "__main__":
    run_main(main)
