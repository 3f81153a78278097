"""Log histories of finished and unfinished runs, combined."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers.trainer_utils import get_last_checkpoint

from unified.files.records import TRAINER_STATE


def read_logs(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """HF's `log_history` of consecutive runs, with cumulative `images_seen`; folders without one are skipped.

    An unfinished run's is read from its newest checkpoint.
    """
    entries: list[dict[str, Any]] = []
    for folder in folders:
        path = folder / TRAINER_STATE
        if not path.exists() and folder.is_dir():
            path = Path(get_last_checkpoint(folder) or folder) / TRAINER_STATE
        if not path.exists():
            continue
        before = max((entry.get("images_seen", 0.0) for entry in entries), default=0.0)
        for entry in json.loads(path.read_text(encoding="utf-8"))["log_history"]:
            shifted = {"images_seen": entry["images_seen"] + before} if "images_seen" in entry else {}
            entries.append(entry | shifted)
    return entries
