"""Argument parser of the recipes: dataclass fields are YAML keys, command-line flags and help texts.

`parse` reads `--config FILE.yaml` first and lets flags override it. `run_main` turns bad input into one line on
stderr and exit status 2; set `UNIFIED_DEBUG=1` to see the traceback instead.
"""

import difflib
import json
import os
import sys
from argparse import Action, ArgumentTypeError
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml
from transformers import HfArgumentParser


class OneLineParser(HfArgumentParser):
    """Raises ValueError where argparse would print its usage and exit."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message}; see --help")


def parse(dataclass_types: tuple[Any, ...], argv: list[str] | None = None) -> tuple[Any, ...]:
    """Fill `dataclass_types` from `--config FILE.yaml` and flags; a flag wins over the file, the file over defaults.

    Flags may be spelt with underscores or dashes. Lists are `--patch_nums 1 2 4`, dicts are JSON.
    Raises ValueError: missing or malformed file, unknown key or flag (with the nearest valid ones), bad or no value.
    """
    parser = OneLineParser(dataclass_types, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="file whose keys become defaults")
    _read_dicts_as_json(parser)
    actions = {action.dest: action for action in parser._actions if action.dest not in ("help", "config")}
    argv = sys.argv[1:] if argv is None else list(argv)
    _apply_config(parser, actions, argv)
    *parsed, rest = parser.parse_args_into_dataclasses(
        args=argv, return_remaining_strings=True, look_for_args_file=False
    )
    if rest:
        name = rest[0].lstrip("-").split("=")[0].replace("-", "_")
        raise ValueError(f"unknown argument {rest[0]!r}; {nearest(name, actions)}")
    return tuple(parsed[: len(dataclass_types)])


def run_main(main: Callable[[], None]) -> None:
    """Call `main`; a ValueError or OSError becomes `error: <one line>` on stderr and exit status 2."""
    try:
        main()
    except (ValueError, OSError) as error:
        if os.environ.get("UNIFIED_DEBUG") == "1":
            raise
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        sys.exit(2)


def check_minimum(settings: Any, **minimum: float) -> None:
    """Raise ValueError for the first of these fields of `settings` that is below its minimum."""
    for name, value in minimum.items():
        if getattr(settings, name) < value:
            raise ValueError(f"--{name} {getattr(settings, name)}; give at least {value}")


def _apply_config(parser: HfArgumentParser, actions: dict[str, Action], argv: list[str]) -> None:
    # The file is parsed first, as its values are the defaults of the flags.
    finder = OneLineParser((), add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    path = finder.parse_known_args(argv)[0].config
    for key, value in ({} if path is None else _read_yaml(path)).items():
        if key not in actions:
            raise ValueError(f"unknown key {key!r} in {path}; {nearest(str(key), actions)}")
        parser.set_defaults(**{key: _checked(actions[key], value, path)})
        actions[key].required = False


def _read_yaml(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        folder = Path(path).parent
        others = sorted(str(p) for p in folder.glob("*.yaml")) if folder.is_dir() else []
        remedy = nearest(path, others) if others else f"there is no .yaml in {folder}/; give another path"
        raise ValueError(f"config file {path} does not exist; {remedy}")
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected `key: value` lines")
    return values or {}


def _checked(action: Action, value: Any, path: str) -> Any:
    # YAML reads 1e-3 (no dot) as a string, and would let `batch_size: many` through to the training loop.
    if value is None or (isinstance(value, dict) and action.type in (json_value, str)):
        return value
    if isinstance(value, list) != (action.nargs == "+"):
        kind = "a list" if action.nargs == "+" else "one value"
        raise ValueError(f"{action.dest}: {value!r} in {path}: expected {kind}")
    if isinstance(value, list):
        return [item if isinstance(item, list) else _converted(action, item, path) for item in value]
    return _converted(action, value, path)


def _converted(action: Action, value: Any, path: str) -> Any:
    convert = cast(Callable[[Any], Any], action.type or str)
    try:
        result = convert(value)
    except (ValueError, TypeError, ArgumentTypeError):
        raise ValueError(f"{action.dest}: {value!r} in {path}: expected {convert.__name__}") from None
    if action.type is int and result != value and not isinstance(value, str):
        raise ValueError(f"{action.dest}: {value!r} in {path}: expected int")
    if action.choices is not None and result not in action.choices:
        raise ValueError(f"{action.dest}: {value!r} in {path}: choose from {', '.join(map(str, action.choices))}")
    return result


def _read_dicts_as_json(parser: HfArgumentParser) -> None:
    for action in parser._actions:
        if action.type is dict:
            action.type = json_value


def json_value(text: str) -> Any:
    """What JSON on the command line says."""  # argparse calls the type by this name where it says nothing
    return json.loads(text)


def nearest(name: str, valid: Iterable[str]) -> str:
    """For an error's remedy: the valid names most like `name`, or all of them."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    return f"nearest: {', '.join(close)}" if close else f"valid: {', '.join(sorted(valid)) or 'none'}"
