"""What a command says when it has ended well: where its result is, how good it is, and what comes next.

On stderr, since stdout is for results that programs read.
"""

import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unified.training.loss_plots import PLOT

LOSSES = {
    "eval_text_loss": "held-out text loss",
    "eval_image_loss": "held-out image loss",
    "text_loss": "text loss",
    "image_loss": "image loss",
    "loss": "loss",
}
PREFERENCES = ("rewards/accuracies", "rewards/margins")
NAMES = {"seconds_per_image": "seconds an image", "kl_per_token": "KL in nats a token", "psnr": "PSNR in dB"}


def say_end(result: str | Path, figures: Mapping[str, float], *then: str) -> None:
    """Three kinds of lines: the result's path, its figures with their names, the commands that come next."""
    plot = Path(result, PLOT)
    lines = [f"result: {result}"]
    if figures:
        said = ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        lines.append(f"figures: {said}" + (f"; over all steps: {plot}" if plot.is_file() else ""))
    lines += [f"next: {command}" for command in then]
    sys.stderr.write("\n".join(lines) + "\n")


def end_evaluation(result: Mapping[str, Any], path: str | Path | None, shown: Mapping[str, Any] | None = None) -> None:
    """Print an evaluation's result, or `shown` of it, as one JSON on stdout, and how it ended on stderr."""
    sys.stdout.write(json.dumps(result if shown is None else shown) + "\n")
    sys.stdout.flush()
    error = f" ± {result['stderr']:.2g}" if result.get("stderr") else ""
    metric = NAMES.get(result["metric"], result["metric"])
    lines = [f"figures: {metric} {result['value']:.4g}{error}, of {result['n']}"]
    if path is not None:
        page = Path(path).with_suffix(".html")
        lines = [f"result: {path}", *lines, f"next: unified report {path} --out {page}"]
    sys.stderr.write("\n".join(lines) + "\n")


def uses(model: str | Path, prompts: Sequence[str] = ()) -> list[str]:
    """Commands that show what a trained model can do; `prompts` are those of its run."""
    prompt = shlex.quote(prompts[0]) if prompts else '"a photo of a cat"'
    return [f"unified draw {prompt} --model {model} --out picture.png", f"unified chat --model {model}"]


def last_preferences(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The newest reward accuracies and margins of DPO: held-out ones by modality, else training's."""
    newest = {key: value for entry in history for key, value in entry.items() if key.endswith(PREFERENCES)}
    held_out = {key: value for key, value in newest.items() if key.startswith("eval_") and "_rewards/" in key}
    named = held_out or {key: newest[key] for key in PREFERENCES if key in newest}
    said = {key.replace("eval_", "held-out ").replace("_rewards/", " ").replace("rewards/", ""): key for key in named}
    return {name: named[key] for name, key in said.items()}


def last_losses(history: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The newest losses of HF's `log_history`: held-out ones where there are any, else training's."""
    newest: dict[str, float] = {}
    for entry in history:
        newest |= {key: value for key, value in entry.items() if isinstance(value, int | float)}
    held_out = [key for key in LOSSES if key in newest and key.startswith("eval_")]
    keys = held_out or [key for key in LOSSES if key in newest and (key != "loss" or "image_loss" not in newest)]
    return {LOSSES[key]: newest[key] for key in keys}
