"""What a command has to show when it ends well, as its tests read it."""

from pathlib import Path

from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

NOISE = ("FutureWarning", "Loading weights", "Setting accelerator", "Writing model shards", "Generating train split")


def check_ending(printed: str, result: Path | str, *figures: str) -> None:
    """The last lines of stderr: the result's path, every one of `figures` with a number, a next command; no noise."""
    assert not [word for word in NOISE if word in printed], printed
    lines = [line for line in printed.splitlines() if line.startswith(("result: ", "figures: ", "next: "))]
    assert lines == printed.splitlines()[-len(lines) :], printed
    assert f"result: {result}" in lines and lines[-1].startswith("next: unified "), lines
    said = "".join(line for line in lines if line.startswith("figures: "))
    assert not [name for name in figures if f"{name} " not in said], said


def check_plot(folder: Path, panels: int) -> None:
    """`losses.png`, as wide as so many panels make it."""
    with Image.open(folder / "losses.png") as image:
        assert image.size[0] == int((1 + 4.5 * panels) * 110) and image.convert("L").getextrema() == (0, 255)


def tracked_images(folder: Path) -> dict[str, list[int]]:
    """Names of the images in TensorBoard's files, each with its steps."""
    found: dict[str, list[int]] = {}
    for path in folder.rglob("events.out.tfevents*"):
        events = EventAccumulator(str(path), size_guidance={"images": 0})
        events.Reload()
        for name in events.Tags()["images"]:
            found.setdefault(name, []).extend(event.step for event in events.Images(name))
    return found
