"""What an evaluation leaves behind: one JSON that says what was measured, on what, how, and with which code."""

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from unified.files.atomic import write_text

# whose releases change figures
PACKAGES = ("torch", "transformers", "peft", "pillow")


def code_version() -> str | None:
    """`git describe` of the checkout this package lies in, with `-dirty` where it was changed; None outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that change figures."""
    return {"python": platform.python_version()} | {name: version(name) for name in PACKAGES}


def prompts_digest(prompts: Iterable[str]) -> str:
    """SHA-256 of the JSONL whose lines these are: for eval/write_prompts.py's prompts that of the file."""
    return hashlib.sha256("".join(f"{prompt}\n" for prompt in prompts).encode()).hexdigest()


def share_stderr(share: float, n: int) -> float:
    """Standard error of a share of `n` that are not correlated."""
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
    """The record of these, of `commit` and `versions`, and of all `details`; with a `path`, written whole.

    Args:
        value: the headline, of `n` samples; `stderr` is its standard error, `details` what it is made of.
        config: every setting that changes the value.
        tokenizer: fingerprint of the image tokenizer that the model paints or reads with.
        prompts_sha256: of what was asked, see `prompts_digest`. seed: of what was drawn. seconds: of wall time.

    What has no meaning for a metric is None, and said so by the caller.
    """
    record = {"metric": metric, "value": value, "n": n, "stderr": stderr, "model": model, "tokenizer": tokenizer}
    record |= {"config": config, "prompts_sha256": prompts_sha256, "seed": seed, "commit": code_version()}
    record |= {"versions": versions(), "seconds": round(seconds, 1)} | details
    if path is not None:
        write_text(path, json.dumps(record, indent=1) + "\n")
    return record
