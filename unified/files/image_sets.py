"""Many image files: those of a folder, those that cannot be read, and what squares leave out of them, all counted."""

import os
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tqdm import tqdm

from unified.files.images import cropped_share, image_suffixes

KINDS = "png, jpg, webp and whatever else Pillow reads"
NAMED = 3  # images named on the screen
METADATA = ("metadata.jsonl", "metadata.csv")  # captions of a folder of images; others have a .txt beside each


def image_files(folder: Path) -> list[Path]:
    """Image files under a folder, searched recursively, in the order of their names.

    Files of other kinds, and hidden ones, are passed over; `say_passed_over` tells of them.
    """
    return [path for path in visible_files(folder) if path.suffix.lower() in image_suffixes()]


def visible_files(folder: Path) -> list[Path]:
    """All files under a folder that are not hidden, in the order of their names; links to folders are followed."""
    return [path for path in _files(folder) if not _hidden(path, folder)]


def say_passed_over(folder: Path, read: Iterable[Path]) -> None:
    """Count the files of a folder that are not among those `read`, nor captions of them, on the screen."""
    known = set(read)
    stems = {path.with_suffix("") for path in known}
    rest = [path for path in _files(folder) if path not in known and not _holds_captions(path, stems)]
    kinds = Counter("hidden" if _hidden(path, folder) else path.suffix.lower() or "no suffix" for path in rest)
    if kinds:
        listed = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
        files = "1 file is" if len(rest) == 1 else f"{len(rest)} files are"
        say(f"{folder}: {files} passed over ({listed}); images are {KINDS}")


def _files(folder: Path) -> list[Path]:
    """Also dead links, which are named when they are read; a link to a folder that it lies in leads nowhere."""
    found: list[Path] = []
    above = {str(folder): {os.path.realpath(folder)}}
    for parent, folders, names in os.walk(folder, followlinks=True):
        found += [Path(parent, name) for name in names]
        inner = {name: os.path.realpath(os.path.join(parent, name)) for name in folders}
        folders[:] = [name for name in folders if inner[name] not in above[parent]]
        above |= {os.path.join(parent, name): above[parent] | {inner[name]} for name in folders}
    return sorted(found)


def _holds_captions(path: Path, stems: set[Path]) -> bool:
    return path.name in METADATA or path.suffix.lower() == ".txt" and path.with_suffix("") in stems


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def say(text: str) -> None:
    """A line beside the bars, on the first process of a launch."""
    if os.environ.get("RANK", "0") == "0":
        tqdm.write(text, sys.stderr)


def leave_out(reasons: list[str], count: int, max_bad: int | None) -> None:
    """Tell of the images that cannot be read, `reasons` of `count`.

    Raises ValueError where there are more than `max_bad`; None: a score that needs them all.
    """
    if not reasons:
        return
    more = f" and {len(reasons) - NAMED} more" if len(reasons) > NAMED else ""
    named = "; ".join(reasons[:NAMED]) + more
    if max_bad is None or len(reasons) > max_bad:
        rule = "and a score needs all of them" if max_bad is None else f"more than --max_bad {max_bad}"
        raise ValueError(f"{named}: {len(reasons)} of {count} images, {rule}")
    say(f"left out {len(reasons)} of {count} images: {named}")


class CropCount:
    """How much of the images the squares leave out, for a line on the screen."""

    def __init__(self) -> None:
        self.images, self.cropped, self.lost, self.halved, self.worst = 0, 0, 0.0, 0, (0.0, "")

    def add(self, name: str, size: tuple[int, int]) -> None:
        """Count an image of `size` (width, height)."""
        share = cropped_share(size)
        self.images += 1
        self.cropped += share > 0
        self.lost += share
        self.halved += share > 0.5
        self.worst = max(self.worst, (share, name))

    def __str__(self) -> str:
        """One line; empty where all images are square."""
        if not self.cropped:
            return ""
        share, name = self.worst
        half = f", {self.halved} of them more than half" if self.halved else ""
        return (
            f"cropped: {self.cropped} of {self.images} images are not square and lose {self.lost / self.cropped:.0%} "
            f"of their pixels{half}, {name} {share:.0%}; --fit pad keeps all, --fit refuse counts them as bad"
        )
