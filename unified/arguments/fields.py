"""Dataclass fields with a help text, for YAML keys and flags."""

import copy
from dataclasses import field
from typing import Any


def arg(default: Any, help: str) -> Any:  # noqa: A002 - argparse's word
    if isinstance(default, list | dict):
        return field(metadata={"help": help}, default_factory=lambda: copy.copy(default))
    return field(metadata={"help": help}, default=default)
