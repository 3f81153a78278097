"""Argument parser of the recipes: dataclass fields are YAML keys, command-line flags and help texts.

`parse` reads `--config FILE.yaml` first and lets flags override it. `run_main` turns bad input into one line on
stderr and exit status 2; set `UNIFIED_DEBUG=1` to see the traceback instead.
"""

import difflib
import json
import os
import sys
from argparse import Action, ArgumentError, ArgumentTypeError
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn, cast

import yaml
from trl import TrlParser

from unified.arguments.fields import BOUNDS, LABEL, RULE, check_fields
from unified.arguments.hub_names import find_on_hub
from unified.arguments.manual import ALL, help_text
from unified.arguments.needs import Needs, WithNeeds, check_needs, switched_off
from unified.arguments.shipped_files import find_shipped
from unified.hardware.console import show_any_text
from unified.hardware.memory import is_out_of_memory, out_of_memory_line
from unified.hardware.quiet import quiet_libraries

# docstring of the script that `run_main` runs
_MANUAL: ContextVar[str] = ContextVar("manual", default="")


class UniqueKeys(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML's loader would drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """yaml's; raises YAMLError for a repeated key."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:merge" and isinstance(key, yaml.ScalarNode):
                line = key.start_mark.line + 1
                if key.value in lines:
                    raise yaml.YAMLError(
                        f"{key.value} stands in line {lines[key.value]} and again in {line}; keep one"
                    )
                lines[key.value] = line
        return super().construct_mapping(node, deep)


class OneLineParser(TrlParser):
    """TRL's parser, which raises ValueError of one line for bad flags and values, naming what is valid."""

    config_file = ""
    flags: Sequence[str] = ()
    needs: Sequence[Needs] = ()

    def __init__(self, *given: Any, **options: Any) -> None:
        self.rules: dict[str, str] = {}  # by setting; of `arg`
        super().__init__(*given, **options)

    def add_argument(self, *names: Any, **options: Any) -> Any:
        """argparse's; transformers hands it all of a field's metadata, of which bounds are checked elsewhere."""
        options.pop(BOUNDS, None)
        options.pop(LABEL, None)
        rule = options.pop(RULE, None)
        action = super().add_argument(*names, **options)
        if rule is not None:
            self.rules[action.dest] = rule
        return action

    def _get_value(self, action: Action, arg_string: str) -> Any:
        """argparse's; a flag with a rule of its own says that."""
        try:
            return super()._get_value(action, arg_string)
        except ArgumentError:
            if action.dest in self.rules:
                raise ArgumentError(action, f"{arg_string!r}: give {self.rules[action.dest]}") from None
            raise

    def error(self, message: str) -> NoReturn:
        """Raise ValueError where argparse would print its usage and exit."""
        raise ValueError(f"{message}; see --help")

    def settings(self) -> dict[str, Action]:
        """What can be set, by name."""
        named = [action for action in self._actions if action.dest != "config"]
        return {action.dest: action for action in named if not action.option_strings[0].startswith("--no_")}

    def set_defaults_with_config(self, **values: Any) -> list[str]:
        """TRL's, with the file's values converted and checked as those of flags are; see `_switch_off`."""
        actions, path = self.settings(), self.config_file
        for key in values:
            if key not in actions:
                raise ValueError(f"unknown key {key!r} in {path}; {nearest(str(key), actions)}")
        defaults = {key: actions[key].default for key in values}
        checked = {key: _checked(actions[key], values[key], path, self.rules.get(key)) for key in values}
        rest: list[str] = super().set_defaults_with_config(**checked)
        self._switch_off({key: default for key, default in defaults.items() if checked[key] != default})
        return rest

    def _switch_off(self, held: dict[str, Any]) -> None:
        """Give the keys that a file has `held` their defaults back where a flag switches off what they are for."""
        flags = {word.lstrip("-").split("=")[0].replace("-", "_") for word in self.flags if word.startswith("--")}
        off: list[str] = []
        while names := switched_off(self.parse_known_args(self.flags)[0], self.needs, held, flags):
            self.set_defaults(**{name: held.pop(name) for name in names})
            flags, off = flags | {*names}, off + names
        if off and os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"of {self.config_file} are left out, as flags switch them off: {', '.join(off)}\n")


def parse(dataclass_types: tuple[Any, ...], argv: list[str] | None = None) -> tuple[Any, ...]:
    """Fill `dataclass_types` from `--config FILE.yaml` and flags; a flag wins over the file, the file over defaults.

    What a file says that counts only beside something which a flag switches off (`WithNeeds`) is left out, and said.
    As with TRL's scripts, `env` in the file sets environment variables. Flags may be spelt with underscores or dashes.
    Models and data sets of the Hugging Face hub may be named where folders and files are.
    Lists are `--patch_nums 1 2 4`, dicts are JSON.
    Raises ValueError: missing or malformed file, unknown key or flag (with the nearest valid ones), bad or no value.
    """
    finder = OneLineParser((), add_help=False, allow_abbrev=False)
    finder.add_argument("--config")
    finder.add_argument("-h", "--help", action="store_true")
    finder.add_argument(ALL, "--help_all", action="store_true", dest="help_all")
    found, flags = finder.parse_known_args(argv)
    parser = OneLineParser(dataclass_types, add_help=False, allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE.yaml", help="file whose keys become defaults")
    _read_dicts_as_json(parser)
    if found.help or found.help_all:
        sys.stdout.write(help_text(_MANUAL.get(), parser.settings(), dataclass_types, found.help_all))
        sys.exit(0)
    if found.config is not None and _read_yaml(found.config):  # a file without keys is none for TRL
        parser.needs = [rule for kind in dataclass_types if issubclass(kind, WithNeeds) for rule in kind.NEEDS]
        parser.flags, parser.config_file = flags, found.config
        flags = ["--config", found.config, *flags]
    *parsed, rest = parser.parse_args_and_config(flags, return_remaining_strings=True)
    if rest:
        raise ValueError(_unknown(rest[0], flags, parser))
    filled = tuple(parsed[: len(dataclass_types)])
    for settings in filled:
        check_fields(settings)
        if isinstance(settings, WithNeeds):
            check_needs(settings, settings.NEEDS)
        find_shipped(settings)
        find_on_hub(settings)
    return filled


def run_main(main: Callable[[], None]) -> None:
    """Call a script's `main`; what is wrong is `error: <one line>` on stderr.

    Exit status 2 for a ValueError, an OSError, too little memory, and a FloatingPointError: a training diverged.
    The docstring of its module is what `--help` opens with.
    """
    show_any_text()
    quiet_libraries()
    _MANUAL.set(main.__globals__["__doc__"] or "")  # type: ignore[attr-defined]  # a function
    try:
        main()
    except (ValueError, FloatingPointError, OSError, RuntimeError, MemoryError) as error:
        full = is_out_of_memory(error)
        if os.environ.get("UNIFIED_DEBUG") == "1" or (isinstance(error, RuntimeError) and not full):
            raise
        said = out_of_memory_line(error) if full else str(error)
        sys.stderr.write(f"error: {' '.join(said.split())}\n")
        sys.exit(2)


def check_minimum(settings: Any, **minimum: float) -> None:
    """Raise ValueError for the first of these fields of `settings` that is below its minimum."""
    for name, value in minimum.items():
        if not getattr(settings, name) >= value:
            raise ValueError(f"--{name} {getattr(settings, name)}; give at least {value}")


def _read_yaml(path: str) -> dict[str, Any]:
    if not Path(path).is_file():
        folder = Path(path).parent
        others = sorted(str(p) for p in folder.glob("*.yaml")) if folder.is_dir() else []
        remedy = nearest(path, others) if others else f"there is no .yaml in {folder}/; give another path"
        raise ValueError(f"config file {path} does not exist; {remedy}")
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    if values is not None and not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}, expected `key: value` lines")
    return values or {}


def _unknown(word: str, flags: Sequence[str], parser: OneLineParser) -> str:
    """What is wrong with a word of the command line that no flag takes."""
    for place, other in enumerate(flags[1:], start=1):
        before = flags[place - 1]
        if other != word or word.startswith("-") or before.startswith("--") and "=" not in before:
            continue
        name = next((flag for flag in reversed(flags[:place]) if flag.startswith("--")), "").split("=")[0]
        dest = name.lstrip("-").replace("-", "_")
        if dest in parser.settings():
            rule = f"give {parser.rules[dest]}" if dest in parser.rules else "see --help"
            return f"{name} takes one value, and {word!r} is one more; {rule}"
    name = word.lstrip("-").split("=")[0].replace("-", "_")
    return f"unknown argument {word!r}; {nearest(name, parser.settings())}"


def _checked(action: Action, value: Any, path: str, rule: str | None = None) -> Any:
    # YAML reads 1e-3 (no dot) as a string, and would let `batch_size: many` through to the training loop.
    if value is None or (isinstance(value, dict) and action.type in (json_value, str)):
        return value
    if isinstance(value, str) and action.nargs == "+" and action.type is str:
        value = [value]  # as TRL takes `loss_type: sigmoid`
    if isinstance(value, list) != (action.nargs == "+"):
        kind = "a list" if action.nargs == "+" else rule or "one value"
        raise ValueError(f"{action.dest}: {value!r} in {path}: expected {kind}")
    if isinstance(value, list):
        return [item if isinstance(item, list) else _converted(action, item, path) for item in value]
    return _converted(action, value, path, rule)


def _converted(action: Action, value: Any, path: str, rule: str | None = None) -> Any:
    convert = cast(Callable[[Any], Any], action.type or str)
    whole = isinstance(value, float) and value.is_integer() and convert.__name__ == "int"  # 1.0e+3 is one
    try:
        result = convert(str(int(value) if whole else value))
    except (ValueError, ArgumentTypeError):
        kind = rule or {"string_to_bool": "true or false"}.get(convert.__name__, convert.__name__)
        raise ValueError(f"{action.dest}: {value!r} in {path}: expected {kind}") from None
    if action.choices is not None and result not in action.choices:
        raise ValueError(f"{action.dest}: {value!r} in {path}: choose from {', '.join(map(str, action.choices))}")
    return result


def _read_dicts_as_json(parser: OneLineParser) -> None:
    for action in parser._actions:
        if action.type is not None and cast(Callable[[str], Any], action.type).__name__ == "dict":  # or `dict | None`
            action.type = json_value


def json_value(text: str) -> Any:
    """What JSON on the command line says."""  # argparse calls the type by this name where it says nothing
    return json.loads(text)


def nearest(name: str, valid: Iterable[str]) -> str:
    """For an error's remedy: the valid names most like `name`, or all of them."""
    valid = list(valid)
    close = difflib.get_close_matches(name, valid, n=3, cutoff=0.5)
    return f"nearest: {', '.join(close)}" if close else f"valid: {', '.join(sorted(valid)) or 'none'}"
