"""Steps that are commands: each is printed, run once, and not again when a long job goes on."""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from unified.arguments.shipped_files import here_or_shipped

# glibc hands large tensors back to the kernel after every operation; keeping them makes a CPU step faster
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**26), "MALLOC_TRIM_THRESHOLD_": str(2**34)}


def run_step(done: Path, label: str, command: Sequence[str], again: bool = False) -> bool:
    """Run `python command` unless the file `done` is there; returns whether it was run.

    Says so under `label`, makes `done` when it ends well, and exits with the command's status if it fails.
    """
    if done.exists() and not again:
        return False
    sys.stdout.write(f"[{label}] {shlex.join(command)}\n")
    sys.stdout.flush()
    words = [here_or_shipped(word) if word.endswith(".py") else word for word in command]
    status = subprocess.run([sys.executable, *words], env=os.environ | KEEP_MEMORY, check=False).returncode
    if status:
        sys.exit(status)
    done.parent.mkdir(parents=True, exist_ok=True)
    done.touch()
    return True


def launch_words(script: str, launch: str | None = None) -> list[str]:
    """`accelerate launch SCRIPT` as words for `run_step`, with the file `launch` if there is one.

    Without one it is accelerate's default configuration, or all GPUs of this machine, or one process on the CPU.
    """
    return ["-m", "accelerate.commands.launch", *(["--config_file", launch] if launch else []), script]
