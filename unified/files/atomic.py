"""Files and folders that appear whole or not at all: the only module that gives what was written its name."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4


@contextmanager
def whole(path: str | os.PathLike) -> Iterator[Path]:
    """A neighbour of `path` to write to, which takes its name when the block ends well, and goes when it does not.

    Folders are made. Processes of several machines may write one path at once: the last one's file stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file."""
    with whole(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def new_folder(out: str | os.PathLike, replace: bool = False) -> Iterator[Path]:
    """An empty neighbour of `out` to fill, which takes its name when the block ends well, and goes when it does not.

    With `replace` a folder that is there already gives way at the end.
    """
    partial = Path(f"{out}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # what a kill left
    partial.mkdir(parents=True)
    try:
        yield partial
        put_folder(partial, out) if replace else os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def put_folder(partial: str | os.PathLike, out: str | os.PathLike) -> None:
    """Give a finished folder the name `out`, in place of one that is there."""
    shutil.rmtree(out, ignore_errors=True)
    os.replace(partial, out)


@contextmanager
def new_files(folder: str | os.PathLike) -> Iterator[Path]:
    """A folder to fill whose files move into `folder`, which may hold others, when the block ends well."""
    with TemporaryDirectory(prefix="unfinished-", dir=folder) as partial:
        yield Path(partial)
        for path in Path(partial).iterdir():
            os.replace(path, Path(folder, path.name))


def check_free(out: str | os.PathLike) -> None:
    """Raise ValueError where `out` exists: before the work whose result is to go there."""
    if Path(out).exists():
        raise ValueError(f"{out} exists already; give --out a new folder or remove it")
