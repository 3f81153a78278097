"""Atomic writes of files and folders: the only module that renames what was written."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4


@contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Temporary path beside `path`, renamed to it when the block succeeds and deleted when it fails.

    Parent folders are created. Processes of several machines may write one path at once: the last one's file stays.
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
    """Write a text file atomically."""
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


@contextmanager
def new_folder(out: str | os.PathLike, replace: bool = False) -> Iterator[Path]:
    """Temporary folder beside `out`, renamed to it when the block succeeds and deleted when it fails.

    With `replace` an existing folder is replaced at the end.
    """
    partial = Path(f"{out}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process
    partial.mkdir(parents=True)
    try:
        yield partial
        replace_folder(partial, out) if replace else os.replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def replace_folder(partial: str | os.PathLike, out: str | os.PathLike) -> None:
    """Rename a finished folder to `out`, replacing an existing one."""
    shutil.rmtree(out, ignore_errors=True)
    os.replace(partial, out)


@contextmanager
def new_files(folder: str | os.PathLike) -> Iterator[Path]:
    """Temporary folder whose files are moved into `folder`, which may contain others, when the block succeeds."""
    with TemporaryDirectory(prefix="unfinished-", dir=folder) as partial:
        yield Path(partial)
        for path in Path(partial).iterdir():
            os.replace(path, Path(folder, path.name))


def check_not_exists(out: str | os.PathLike) -> None:
    """Raise ValueError if `out` exists; called before its content is computed."""
    if Path(out).exists():
        raise ValueError(f"{out} exists already; give --out a new folder or remove it")
