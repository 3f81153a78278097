"""Write docs/reference/commands.md: what every command does and its own flags, from dataclasses, docstrings and typer.

    python .ci/write_reference.py

`make docs` runs it, so no table of flags is kept by hand. Flags of Hugging Face's or TRL's are counted, not listed.
"""

import argparse
import ast
import dataclasses
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import typer

from unified.cli.main import app
from unified.files.atomic import write_text

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs/reference/commands.md"
FOLDERS = {"recipes": "Training", "data_prep": "Data and models", "eval": "Evaluation"}
INTRODUCTION = """# Commands and flags

Every command of the project, what it does, and its own flags. A flag of a script is a YAML key as well:
`--config FILE.yaml` gives defaults, a flag wins. Underscores and dashes are the same. Lists are `--patch_nums 1 2 4`.

"""


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag: its name without leading dashes, its default as one types it ("" where it is required), its help."""

    name: str
    default: str
    help: str
    positional: bool = False


def scripts() -> list[Path]:
    """The scripts of all folders, in the order of the page."""
    return [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.py")) if path.stem != "__init__"]


def load(path: Path) -> ModuleType:
    """A script as a module, without running its `main`."""
    name = f"reference_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def dataclasses_of(path: Path) -> list[type]:
    """The dataclasses whose fields are a script's flags, as its call of `parse` names them; none with argparse."""
    call = re.search(
        r"\(?\w+(?:, \w+)*,?\)? = parse\(\s*(\([\w,\s]*?\)|[A-Z_]+)\s*\)", path.read_text(encoding="utf-8")
    )
    names = re.findall(r"\w+", call[1]) if call else []
    return [vars(load(path))[name] for name in names]


def own_flags(path: Path) -> list[Flag]:
    """A script's flags that this project has defined."""
    kinds = dataclasses_of(path)
    if not kinds:
        make_parser = vars(load(path)).get("make_parser")  # of the one script that argparse reads
        return [of_argparse(action) for action in make_parser()._actions[1:]] if make_parser else []
    found: dict[str, Flag] = {}
    for kind in kinds:
        ours = {
            name
            for base in kind.__mro__
            if base.__module__.startswith(("unified.", "reference_"))
            for name in vars(base).get("__annotations__", {})
        }
        for field in dataclasses.fields(kind):
            if field.name in ours:
                found[field.name] = Flag(field.name, default_of(field), field.metadata.get("help", ""))
    return list(found.values())


def of_argparse(action: argparse.Action) -> Flag:
    default = "" if action.required else shown(action.default)
    name = action.option_strings[0][2:] if action.option_strings else action.dest
    return Flag(name, default, action.help or "", positional=not action.option_strings)


def all_flags(path: Path) -> set[str]:
    """Names of all flags of a script, inherited ones as well, with underscores."""
    kinds = dataclasses_of(path)
    names = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    return names | {"config"} if kinds else {flag.name.replace("-", "_") for flag in own_flags(path)}


def default_of(field: dataclasses.Field) -> str:
    if field.default_factory is not dataclasses.MISSING:
        return shown(field.default_factory())
    return "" if field.default is dataclasses.MISSING else shown(field.default)


def shown(value: Any) -> str:
    """A default as it is typed."""
    if isinstance(value, list | tuple):
        return " ".join(map(shown, value)) or "none"
    return "none" if value is None or value == argparse.SUPPRESS else str(value) or '""'


def table(flags: list[Flag]) -> str:
    lines = ["| flag | default | |", "| --- | --- | --- |"]
    for flag in flags:
        word = flag.name.upper() if flag.positional else f"--{flag.name}"
        cells = [f"`{word}`", f"`{flag.default}`" if flag.default else "*required*", escaped(flag.help)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def escaped(text: str) -> str:
    """Text for a cell: no bars, no tags, no lines."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("{", "&#123;")


def script_section(path: Path) -> str:
    name = str(path.relative_to(ROOT))
    manual = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    title, _, rest = manual.partition("\n\n")
    own, every = own_flags(path), all_flags(path)
    more = len(every - {flag.name for flag in own} - {"config"})
    inherited = f"\nAnd {more} flags of Hugging Face's or TRL's, by `{name} --help-all`.\n" if more else ""
    body = f"\n```text\n{rest}\n```\n" if rest else ""
    return f"### {name}\n\n{' '.join(title.split())}\n{body}\n{table(own)}\n{inherited}"


def unified_flags() -> dict[str, Any]:
    """The subcommands of `unified` by name, as click commands."""
    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def unified_section(name: str, command: Any) -> str:
    lines = ["| flag | default | |", "| --- | --- | --- |"]
    for parameter in command.params:
        option = max(parameter.opts, key=len)
        word = "--" + option[2:].replace("-", "_") if option.startswith("--") else str(parameter.name).upper()
        default = "*required*" if parameter.required else f"`{shown(parameter.default)}`"
        lines.append(f"| `{word}` | {default} | {escaped(parameter.help or '')} |")
    return f"### unified {name}\n\n{command.help}\n\n" + "\n".join(lines) + "\n"


def page() -> str:
    """The whole page."""
    parts = [INTRODUCTION, "## The `unified` command\n"]
    parts += [unified_section(name, command) for name, command in unified_flags().items()]
    for folder, title in FOLDERS.items():
        parts.append(f"## {title}: `{folder}/`\n")
        parts += [script_section(path) for path in scripts() if path.parent.name == folder]
    return "\n".join(parts)


if __name__ == "__main__":
    write_text(OUT, page())
    print(OUT.relative_to(ROOT))
