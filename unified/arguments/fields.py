"""Dataclass fields with a help text, for YAML keys and flags."""

import copy
from dataclasses import MISSING, field
from typing import Any


def arg(default: Any, help: str) -> Any:  # noqa: A002 - argparse's word
    """A field with its help; a default that is a list or a dict is copied for every instance."""
    if isinstance(default, list | dict):
        return field(metadata={"help": help}, default_factory=lambda: copy.copy(default))
    return field(metadata={"help": help}, default=default)


def arg_of(kind: type, name: str, default: Any = MISSING, prefix: str = "") -> Any:
    """A field with the help of the dataclass `kind`'s field `name`, behind `prefix`, and its default or another."""
    known = kind.__dataclass_fields__[name]  # type: ignore[attr-defined]
    return arg(known.default if default is MISSING else default, prefix + known.metadata["help"])
