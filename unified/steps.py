"""Long jobs made of the project's own commands: each is printed, run once, and not again when the job goes on."""

import os
import subprocess
import sys
import time
from pathlib import Path

# glibc hands large tensors back to the kernel after every operation; keeping them makes a CPU step faster
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**26), "MALLOC_TRIM_THRESHOLD_": str(2**34)}


def run_step(done: Path, label: str, command: list[str], again: bool = False) -> float | None:
    """Run `python command` unless the file `done` is there; its seconds, or None where it was done before.

    Says so under `label`, makes `done` when it ends well, and exits with the command's status if it fails.
    """
    if done.exists() and not again:
        return None
    sys.stdout.write(f"[{label}] {' '.join(command)}\n")
    sys.stdout.flush()
    started = time.monotonic()
    status = subprocess.run([sys.executable, *command], env=os.environ | KEEP_MEMORY, check=False).returncode
    if status:
        sys.exit(status)
    done.parent.mkdir(parents=True, exist_ok=True)
    done.touch()
    return time.monotonic() - started
