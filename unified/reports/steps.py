"""Long jobs made of the project's own commands: each is printed, run once, and not again when the job goes on.

Also the commands that several recipes give: scenes as codes, and a fine-tuning.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unified.files.atomic import write_text
from unified.training.log_history import read_logs

# glibc hands large tensors back to the kernel after every operation; keeping them makes a CPU step faster
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**26), "MALLOC_TRIM_THRESHOLD_": str(2**34)}
# text that SmolLM2 itself has written: training on it keeps the language
REPLAY = "data_prep/replay/smollm2_135m_instruct.jsonl"
TRAIN = ("-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate_configs/cpu.yaml")


def run_step(done: Path, label: str, command: Sequence[str], again: bool = False) -> bool:
    """Run `python command` unless the file `done` is there; returns whether it was run.

    Says so under `label`, makes `done` when it ends well, and exits with the command's status if it fails.
    """
    if done.exists() and not again:
        return False
    sys.stdout.write(f"[{label}] {shlex.join(command)}\n")
    sys.stdout.flush()
    status = subprocess.run([sys.executable, *command], env=os.environ | KEEP_MEMORY, check=False).returncode
    if status:
        sys.exit(status)
    done.parent.mkdir(parents=True, exist_ok=True)
    done.touch()
    return True


class Job:
    """A folder in which steps are run; `done/` says which have been, `steps.json` how long they took."""

    def __init__(self, out: str | Path) -> None:
        self.out = Path(out)

    def run(self, name: str, command: Sequence[str], again: bool = False) -> None:
        """Run a step unless it was done before; exits with its status if it fails."""
        started, ran = time.monotonic(), True
        try:
            ran = run_step(self.out / "done" / name.replace(" ", "_"), name, command, again)
        finally:  # a step that was stopped may go on from there, and has taken its time
            if ran:
                seconds = round(time.monotonic() - started, 1)
                step = {"step": name, "seconds": seconds, "command": f"python {shlex.join(command)}"}
                write_text(self.out / "steps.json", json.dumps([*self.steps(), step], indent=1))
        if not ran:
            sys.stdout.write(f"[{name}] done before\n")

    def steps(self) -> list[dict[str, Any]]:
        """`{"step", "seconds", "command"}` of all that was run; a step that was stopped has an entry for every run."""
        path = self.out / "steps.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    def log(self) -> list[dict[str, float]]:
        """HF's `log_history` of all trainings in the folder, images seen counted on from one to the next."""
        return read_logs(sorted(path for path in self.out.iterdir() if path.is_dir()))


def render_and_encode(job: Job, name: str, vq: str, flags: Sequence[str]) -> Path:
    """Scenes as encoded rows; `flags` are those of data_prep/render_scenes.py. Returns the rows' folder."""
    scenes, encoded = job.out / f"scenes_{name}", job.out / f"encoded_{name}"
    job.run(f"render {name}", ["data_prep/render_scenes.py", "--out", str(scenes), *flags])
    return encode(job, name, vq, sorted(scenes.glob("*.parquet")), encoded)


def encode(job: Job, name: str, vq: str, rows: Sequence[Path], out: Path) -> Path:
    """The pictures of rows as codes; returns `out`."""
    command = ["data_prep/encode_images.py", "--vq", vq, "--out", str(out), "--inputs", *map(str, rows)]
    job.run(f"encode {name}", command)
    return out


def fine_tune(
    job: Job, name: str, config: str, model: str | Path, out: Path, files: Sequence[str], flags: Sequence[str]
) -> Path:
    """recipes/sft.py on `files`, from `model`, going on where it was stopped; returns `out`."""
    command = [*TRAIN, "recipes/sft.py", "--config", config, "--model", str(model), "--output_dir", str(out)]
    job.run(name, [*command, "--train_files", *files, "--resume", "True", *flags])
    return out
