"""`--help` of a script: its docstring, the project's flags in a group a dataclass, and those of libraries last."""

import argparse
import dataclasses
import inspect
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unified.hardware.arguments import HardwareArguments

ALL = "--help-all"
LIBRARIES = ("transformers", "trl", "builtins")
# of the inherited flags, those that most runs set
OFTEN = (
    *("learning_rate", "max_steps", "num_train_epochs", "per_device_train_batch_size", "gradient_accumulation_steps"),
    *("warmup_steps", "lr_scheduler_type", "bf16", "eval_strategy", "eval_steps", "save_steps", "logging_steps"),
    *("report_to", "beta", "loss_type", "seed"),
)
INDENT, COLUMN = 2, 30


def help_text(manual: str, actions: Mapping[str, argparse.Action], kinds: Sequence[Any], everything: bool) -> str:
    """The whole help.

    Args:
        manual: the script's docstring. actions: what can be set, by name. kinds: the dataclasses it comes from.
        everything: list the flags of libraries too; else they are counted.
    """
    width = min(shutil.get_terminal_size((120, 24)).columns, 120)
    groups = grouped(kinds)
    blocks = [inspect.cleandoc(manual)] if manual else []
    config = listed("--config FILE.yaml", "file whose keys become defaults; a flag wins", width)
    blocks.append(f"usage: every key of a YAML is a flag, every flag a key\n\n{config}")
    for kind, names in groups.items():
        said = (kind.__doc__ or "").strip().splitlines()
        blocks.append(block(f"{title(kind)}: {said[0].rstrip('.')}" if said else title(kind), names, actions, width))
    ours = {name for names in groups.values() for name in names}
    others = [name for name in actions if name not in ours]
    if others:
        blocks.append(inherited(others, actions, kinds, width, everything))
    return "\n\n".join(blocks) + "\n"


def inherited(
    names: Sequence[str], actions: Mapping[str, argparse.Action], kinds: Sequence[Any], width: int, everything: bool
) -> str:
    """The group of the flags that libraries define."""
    whose = {base.__name__: None for kind in kinds for base in kind.__mro__ if is_librarys(base)}
    heading = f"Inherited: {len(names)} flags of {' and '.join(whose)}"
    if everything:
        return block(heading, names, actions, width)
    known = ", ".join(f"--{name}" for name in OFTEN if name in names)
    return textwrap.fill(
        f"{heading}, among them {known}; {ALL} lists them." if known else f"{heading}; {ALL} lists them.",
        width,
        subsequent_indent=" " * INDENT,
        break_on_hyphens=False,
    )


def is_librarys(kind: type) -> bool:
    """Whether a class is a dataclass that this project has not defined."""
    return dataclasses.is_dataclass(kind) and not is_ours(kind)


def is_ours(kind: type) -> bool:
    """Whether this project, or the script itself, has defined a class."""
    return kind.__module__.split(".")[0] not in LIBRARIES


def grouped(kinds: Iterable[Any]) -> dict[Any, list[str]]:
    """The project's own fields by the dataclass that defines them; what a command runs on comes last."""
    groups: dict[Any, list[str]] = {}
    for kind in sorted(kinds, key=lambda kind: kind is HardwareArguments):
        for field in dataclasses.fields(kind):
            owner = next(base for base in kind.__mro__ if field.name in base.__dict__.get("__annotations__", {}))
            if is_ours(owner):
                groups.setdefault(owner, []).append(field.name)
    return groups


def title(kind: type) -> str:
    """`UnifiedTrainingArguments` as `Training`."""
    words = re.findall(r"[A-Z][a-z0-9]*", kind.__name__.removeprefix("Unified").removesuffix("Arguments"))
    return " ".join(words).capitalize() or kind.__name__


def block(heading: str, names: Iterable[str], actions: Mapping[str, argparse.Action], width: int) -> str:
    """A group of flags under its heading."""
    return "\n".join([f"{heading}:", *(flag(actions[name], width) for name in names)])


def flag(action: argparse.Action, width: int) -> str:
    """A flag with its kind of value, its help and its default."""
    empty = action.default is None or action.default in ("", [], {}, False) or action.default == argparse.SUPPRESS
    default = "required" if action.required else "" if empty else f"default: {shown(action.default)}"
    said = " ".join((action.help or "").split())
    return listed(f"--{action.dest} {kind_of(action)}", f"{said} ({default})" if default else said, width)


def kind_of(action: argparse.Action) -> str:
    """What a flag takes."""
    name = getattr(action.type, "__name__", "str") if action.type else "str"
    words = {"int": "N", "float": "X", "string_to_bool": "true|false", "json_value": "JSON"}
    word = "|".join(map(str, action.choices)) if action.choices is not None else words.get(name, "TEXT")
    return f"{word} ..." if action.nargs == "+" else word


def shown(value: Any) -> str:
    """A default as it is typed."""
    return " ".join(map(shown, value)) if isinstance(value, list | tuple) else str(value)


def listed(left: str, right: str, width: int) -> str:
    """A flag at the left, its help at the right, wrapped."""
    lines = textwrap.wrap(right, width - COLUMN, break_long_words=False, break_on_hyphens=False) or [""]
    head = f"{'':{INDENT}}{left}"
    first = [f"{head:{COLUMN}}{lines[0]}"] if len(head) < COLUMN - 1 else [head, f"{'':{COLUMN}}{lines[0]}"]
    return "\n".join([*first, *(f"{'':{COLUMN}}{line}" for line in lines[1:])])
