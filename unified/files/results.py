"""Result JSON of an evaluation: what was measured, on which data, with which settings and code."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from unified.files.atomic import write_text
from unified.hardware.setup import record as hardware

# packages whose releases may change results
PACKAGES = ("torch", "transformers", "peft", "pillow")


def code_version() -> str | None:
    """`git describe` of this package's checkout, with `-dirty` if it was modified; None outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    """Versions of Python and `PACKAGES`."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def prompts_digest(prompts: Iterable[str]) -> str:
    """SHA-256 of a JSONL file with these lines, as eval/write_prompts.py writes it."""
    return hashlib.sha256("".join(f"{prompt}\n" for prompt in prompts).encode()).hexdigest()


def share_stderr(share: float, n: int) -> float:
    """Standard error of a share of `n` independent samples."""
    return (share * (1 - share) / n) ** 0.5


def write_result(
    path: Path | None,
    metric: str,
    value: float,
    n: int,
    model: str,
    config: dict[str, Any],
    *,
    stderr: float | None,
    tokenizer: str | None,
    prompts_sha256: str | None,
    seed: int | None,
    seconds: float,
    **details: Any,
) -> dict[str, Any]:
    """The result with these fields, `commit`, `versions` and all `details`; with a `path`, written atomically.

    Args:
        value: the metric over `n` samples; `stderr` is its standard error, `details` are further figures.
        config: all settings that change the value.
        tokenizer: fingerprint of the model's image tokenizer.
        prompts_sha256: digest of the prompts, see `prompts_digest`. seed: of the samples. seconds: wall time.

    Fields that do not apply to a metric are explicitly None.
    """
    record = {"metric": metric, "value": value, "n": n, "stderr": stderr, "model": model, "tokenizer": tokenizer}
    record |= {"config": config, "prompts_sha256": prompts_sha256, "seed": seed, "commit": code_version()}
    record |= {"versions": versions(), "hardware": hardware(), "seconds": round(seconds, 1)} | details
    if path is not None:
        write_text(path, json.dumps(record, indent=1) + "\n")
    return record
