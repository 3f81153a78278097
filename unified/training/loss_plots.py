"""A plot beside every training's log: its losses, those of every scale, and what it was evaluated by."""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from unified.files.atomic import atomic_path

PLOT = "losses.png"
# a panel's title -> which keys of the log it shows, `.` for a slash; a key's first group is its name there
OF_TRAINER = {
    "loss": r"(?:eval_)?(?:(text|image)_)?loss",
    "loss of every scale": r"(?:eval_)?(scale_\d+)_loss",
    "reward margins": r"(?:eval_(\w+)_)?rewards/margins",
    "reward accuracies": r"(?:eval_(\w+)_)?rewards/accuracies",
}
OF_PREFERENCES = OF_TRAINER | {"loss": r"(?:eval_(\w+)_)?loss"}
OF_AVERAGED = {
    "losses": r"train/(loss|l1|l2|vq|lpips|gan|critic|\w+_loss)",
    "PSNR by scale (dB)": r"eval.psnr_(scale_\d+)",
    "codes in use, by scale": r"(?:eval.)?usage[_/](scale_\d+)",
    "score": r"eval.((?:renders|reconstructions)\w*)",
}
Point = tuple[float, float]


def plot_history(history: Iterable[Mapping[str, Any]], panels: Mapping[str, str], folder: Path) -> Path | None:
    """Write `losses.png`: a panel for each of `panels` with the entries' values over their `step`.

    Values of evaluation are dashed. Returns the file's path, None where the history has nothing to show.
    """
    found = {title: series(history, pattern) for title, pattern in panels.items()}
    found = {title: curves for title, curves in found.items() if curves}
    if not found:
        return None
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # draws without a display
    from matplotlib.ticker import MaxNLocator

    width = 1 + 4.5 * len(found)
    figure = Figure(figsize=(width, 3.8), dpi=110)
    figure.subplots_adjust(
        left=0.6 / width, right=1 - 0.2 / width, bottom=0.14, top=0.91, wspace=0.16
    )  # layouts measure
    for axes, (title, curves) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        names = list(dict.fromkeys(name for name, _ in curves))
        colour = {name: colormaps["viridis"](place / max(1, len(names) - 0.5)) for place, name in enumerate(names)}
        for (name, held_out), points in curves.items():
            style: dict[str, Any] = {"linestyle": "--", "marker": "o"} if held_out else {"marker": "."}
            label = f"{name}, held out" if held_out else name
            axes.plot(*zip(*points, strict=True), color=colour[name], markersize=3, label=label, **style)
        axes.set(title=title, xlabel="step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
        axes.legend(fontsize="x-small")
    path = folder / PLOT
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png")
    return path


def series(history: Iterable[Mapping[str, Any]], pattern: str) -> dict[tuple[str, bool], list[Point]]:
    """`(name, of evaluation) -> [(step, value)]` of the keys that match, in the order of steps."""
    found: dict[tuple[str, bool], dict[float, float]] = {}
    for entry in history:
        for key, value in entry.items():
            if match := re.fullmatch(pattern, key):
                name = next((group for group in match.groups() if group), "loss").replace("_", " ")
                found.setdefault((name, key.startswith("eval")), {})[entry["step"]] = float(value)
    return {curve: sorted(points.items()) for curve, points in found.items()}


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a `log.jsonl`; of a step that a resumed run repeated the last one counts, in `series`."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
