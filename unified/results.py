"""What an evaluation leaves behind: one JSON that says what was measured, on what, how, and with which code."""

import json
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from unified.files import write_text

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


def write_result(
    path: Path | None, metric: str, value: float, n: int, model: str, config: dict[str, Any], **details: Any
) -> dict[str, Any]:
    """The record `{metric, value, n, model, config, commit, versions, ...details}`; with a `path`, written whole.

    `value` is the headline, `details` what it is made of; `config` holds every setting that changes the value.
    """
    record = {"metric": metric, "value": value, "n": n, "model": model, "config": config}
    record |= {"commit": code_version(), "versions": versions()} | details
    if path is not None:
        write_text(path, json.dumps(record, indent=1) + "\n")
    return record
