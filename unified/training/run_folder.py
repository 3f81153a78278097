"""The folder of a run: not another's, not trained into twice at once, and whether the run in it has finished."""

import json
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from accelerate import PartialState
from accelerate.utils import gather_object

from unified.files.atomic import write_text
from unified.files.jsonl import read_object
from unified.files.records import LOCK, TRAINER_STATE

# what a run or a model leaves in a folder, the most telling first
LEFT = ("checkpoint-*", "model*.safetensors", "adapter_model.safetensors", "pytorch_model*.bin", TRAINER_STATE)
# launchers that say how many they started, but not to torch
OTHER_LAUNCHERS = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")


def step_of(checkpoint: Path) -> int:
    """The step after which `checkpoint-STEP` was written; -1 for a folder of another name, a copy somebody keeps."""
    step = checkpoint.name.removeprefix("checkpoint-")
    return int(step) if step.isdecimal() and step != checkpoint.name else -1


def checkpoints_of(folder: str | os.PathLike, holding: str = "") -> list[Path]:
    """A run's checkpoints, the oldest first, of those `holding` a file."""
    found = [path for path in Path(folder).glob("checkpoint-*") if step_of(path) >= 0 and (path / holding).exists()]
    return sorted(found, key=step_of)


def check_unused(folder: str | os.PathLike) -> None:
    """Raise ValueError if a new run would write over what a run or a model left in `folder`."""
    for pattern in LEFT:
        found = sorted(Path(folder).glob(pattern))
        if found:
            raise ValueError(
                f"output_dir {folder} holds {found[-1].name} already; add --resume True to go on with that run, or "
                "give another folder"
            )


def check_folder(folder: str | os.PathLike, resume: bool, checkpoint: Path | None) -> None:
    """Raise ValueError if a run would write over what is there, or with --resume find no checkpoint of it."""
    if not resume:
        check_unused(folder)
    elif checkpoint is None:
        models = [path.name for pattern in LEFT[1:] for path in Path(folder).glob(pattern)]
        if models:
            raise ValueError(
                f"output_dir {folder} holds {models[0]} but no checkpoint to go on from; give another folder"
            )


def check_group(folder: str | os.PathLike) -> None:
    """Raise ValueError where several processes were launched and, by now, do not know of each other."""
    for name in OTHER_LAUNCHERS:
        launched = os.environ.get(name, "1")
        if launched.isdecimal() and int(launched) > 1 and PartialState().num_processes == 1:
            raise ValueError(
                f"{launched} processes were launched ({name}), but each would train alone into {folder}; launch them "
                f"with accelerate launch or torchrun, or unset {name} if each has an output_dir of its own"
            )


@contextmanager
def locked(folder: str | os.PathLike, new: bool = False) -> Iterator[None]:
    """Keep `folder` for this launch, by its first process; ValueError while another one on this machine has it.

    A lock of a process that is gone, or of another machine, whose processes cannot be seen, is taken over. With `new`
    the folder must hold no run, which another launch may have left since it was looked at.
    """
    path, main = Path(folder) / LOCK, PartialState().is_main_process
    refused = ""
    if main:
        try:
            take(path, new)
        except ValueError as error:
            refused = str(error)
    refused = gather_object([refused])[0]  # all processes end, or none
    if refused:
        raise ValueError(refused)
    try:
        yield
    finally:
        if main:
            give_back(path)


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Processes of this machine wait for each other here, not on Windows and file systems without locks (Lustre)."""
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":  # opens no folder
        yield
        return
    import fcntl

    place = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(place, fcntl.LOCK_EX)
        yield
    finally:
        os.close(place)


def take(path: Path, new: bool) -> None:
    """Write this process's lock; ValueError where another one holds it."""
    with in_turn(path.parent):
        holder = holder_of(path)
        if holder is not None:
            raise ValueError(
                f"output_dir {path.parent} is being trained into by process {holder} of this machine; wait for it, "
                "stop it, or give another folder"
            )
        if new:
            check_unused(path.parent)
        write_text(path, json.dumps(own_lock()) + "\n")


def give_back(path: Path) -> None:
    """Remove the lock if it is this process's."""
    if path.is_file():
        with in_turn(path.parent):
            if path.is_file() and read_object(path) == own_lock():
                path.unlink()


def own_lock() -> dict[str, Any]:
    """What a lock of this process says."""
    me = psutil.Process()
    return {"host": socket.gethostname(), "pid": me.pid, "began": me.create_time()}


def holder_of(path: Path) -> int | None:
    """The process that holds a lock; None where there is none, it is this one, or it cannot be alive."""
    if not path.is_file():
        return None
    lock = read_object(path)
    if lock.get("host") != socket.gethostname():
        sys.stderr.write(
            f"{path}: taken over from process {lock.get('pid')} of {lock.get('host')}, not seen from here\n"
        )
        return None
    if lock.get("pid") == os.getpid():
        return None
    try:
        began = psutil.Process(lock["pid"]).create_time()
    except psutil.NoSuchProcess:
        return None
    return lock["pid"] if began == lock.get("began") else None
