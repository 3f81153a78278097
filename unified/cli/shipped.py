"""The scripts, configurations and data that come with the package: where they lie, their names, what each is for.

In a repository, and in an editable install of it, they are its folders; a wheel carries a copy (setup.py).
"""

import ast
import difflib
import fnmatch
import re
import textwrap
from collections.abc import Iterable
from pathlib import Path

FOLDERS = ("recipes", "data_prep", "eval")
SCRIPT, CONFIGURATION = ".py", ".yaml"
PURPOSE_WIDTH = 90
COMMAND_LINE = re.compile(r"(\s{2,}|\S+: |\s*)(\.venv/|python |make |accelerate |unified |lm_eval|lmms-eval)")


def root() -> Path:
    """The folder that holds `FOLDERS`."""
    carried = Path(__file__).parent / "scripts"
    return carried if carried.is_dir() else Path(__file__).parents[2]


def names() -> list[str]:
    """Every file's name, as `recipes/sft.py`, sorted within its folder."""
    paths = [path for folder in FOLDERS for path in sorted((root() / folder).rglob("*")) if path.is_file()]
    inside = [path for path in paths if path.name != "__init__.py" and "__pycache__" not in path.parts]
    order = {folder: place for place, folder in enumerate(FOLDERS)}
    named = [str(path.relative_to(root())) for path in inside]
    return sorted(named, key=lambda name: (order[name.split("/")[0]], str(Path(name).parent), name))


def matching(patterns: Iterable[str]) -> list[str]:
    """The files that any pattern matches, a glob or a part of the name; all without patterns.

    Raises ValueError for a pattern that matches none.
    """
    every, patterns = names(), list(patterns)
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in every if pattern in name or fnmatch.fnmatchcase(name, pattern)}
        if not hits:
            raise ValueError(f"no script or file matches {pattern!r}; {nearest(pattern, every)}; see `unified ls`")
        found |= hits
    return [name for name in every if name in found] if patterns else every


def find(name: str, suffix: str = "") -> str | None:
    """The file that `name` means, with or without its folders and `suffix`; None where there is none.

    Raises ValueError where there are several.
    """
    every = [known for known in names() if known.endswith(suffix)]
    for word in (name, f"{name}{suffix}"):
        if word in every:
            return word
        ends = [known for known in every if known.endswith(f"/{word}")]
        if len(ends) > 1:
            raise ValueError(f"{name} may be {' or '.join(ends)}; give one of these names")
        if ends:
            return ends[0]
    return None


def nearest(name: str, known: Iterable[str]) -> str:
    """For an error's remedy: the names most like `name`."""
    by_stem = {Path(full).stem: full for full in known}
    close = difflib.get_close_matches(Path(name).stem, by_stem, n=3, cutoff=0.4)
    return f"nearest: {', '.join(by_stem[stem] for stem in close)}" if close else "nothing is named like that"


def manual(path: Path) -> str:
    """A script's docstring."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def purpose(name: str) -> str:
    """What a file is for, in a line: of a script its docstring's first, of a YAML the first sentence of its head."""
    path = root() / name
    if path.suffix == SCRIPT:
        said = manual(path).partition("\n\n")[0]
    elif path.suffix == CONFIGURATION:
        said = head(path.read_text(encoding="utf-8"))
    else:
        said = f"{path.stat().st_size / 1000:.0f} kB"
    return textwrap.shorten(said, PURPOSE_WIDTH, placeholder=" …")


def head(text: str) -> str:
    """The first sentence of a YAML's comment, without the commands in it."""
    comment = re.match(r"(#.*\n)*", text)
    lines = [line[1:].removeprefix(" ") for line in comment[0].splitlines()] if comment else []
    prose = " ".join(line.strip() for line in lines if not COMMAND_LINE.match(line) and not line.startswith("  "))
    return re.split(r"(?<=[.:;]) (?=[A-Z(])", prose.strip())[0].rstrip(":;")


def table(listed: Iterable[str]) -> str:
    """Names with their purposes, a block for every folder."""
    blocks: dict[str, list[str]] = {}
    for name in listed:
        blocks.setdefault(str(Path(name).parent), []).append(name)
    lines = []
    for block in blocks.values():
        width = max(map(len, block))
        lines += ["", *(f"{name:{width}}  {purpose(name)}".rstrip() for name in block)]
    return "\n".join(lines[1:])


def copy(name: str, folder: Path) -> list[Path]:
    """Copy a file, or a folder with all in it, into `folder`; returns what was written.

    Names of copied files inside copied scripts' YAMLs become those of the copies, so that they can be edited together.
    Raises ValueError for unknown names, and where something of that name is there already: then nothing is written.
    """
    word = name.rstrip("/")
    chosen, above = [known for known in names() if known.startswith(f"{word}/")], Path(word).parent
    if not chosen:
        found = find(word) or find(word, SCRIPT) or find(word, CONFIGURATION)
        if found is None:
            every = [*names(), *{str(Path(known).parent) for known in names()}]
            raise ValueError(f"there is no {name}; {nearest(name, every)}; see `unified ls`")
        chosen, above = [found], Path(found).parent
    targets = {known: folder / Path(known).relative_to(above) for known in chosen}
    if taken := [str(path) for path in targets.values() if path.exists()]:
        raise ValueError(f"{', '.join(taken)} exists already; give another folder, or remove it")
    for known, target in targets.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(renamed(root() / known, targets))
    return list(targets.values())


def renamed(path: Path, targets: dict[str, Path]) -> bytes:
    """A file's content; of a YAML with the names of copies."""
    content = path.read_bytes()
    if path.suffix != CONFIGURATION:
        return content
    text = content.decode("utf-8")
    for known, target in targets.items():
        text = re.sub(rf"(?<![\w./-]){re.escape(known)}(?![\w./-])", str(target), text)
    return text.encode("utf-8")
