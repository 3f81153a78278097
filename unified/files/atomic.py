"""Files that appear whole or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A neighbour of `path` to write to, which takes its name when the block ends well; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    yield partial
    os.replace(partial, path)


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def new_folder(out: str | os.PathLike) -> Iterator[Path]:
    """An empty neighbour of `out` to fill, which takes its name when the block ends well."""
    partial = Path(f"{out}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    os.replace(partial, out)


def check_free(out: str | os.PathLike) -> None:
    """Raise ValueError where `out` exists: before the work whose result is to go there."""
    if Path(out).exists():
        raise ValueError(f"{out} exists already; give --out a new folder or remove it")
