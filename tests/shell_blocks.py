"""Shell blocks of Markdown pages, read as far as a check of their commands needs."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import yaml

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ENDS = {"|", "&&", ";", "||", "&"}


@dataclass(frozen=True)
class Line:
    """One command: its words, the environment set before it, the file its output goes to, and where it stands."""

    words: list[str]
    page: Path
    number: int
    output: str | None = None


@dataclass
class Page:
    """What a page shows: its commands in order, what stands in backticks before each, and its YAML files."""

    lines: list[Line] = field(default_factory=list)
    prose: dict[int, set[str]] = field(default_factory=dict)  # by the number of the command's block
    runs: list[dict] = field(default_factory=list)


def blocks(text: str, language: str) -> list[tuple[int, str, str]]:
    """`(line number, code, text before it)` of every fenced block of a language."""
    found = [(match, text[: match.start()]) for match in BLOCK.finditer(text) if match[1] == language]
    return [(before.count("\n") + 1, match[2], before) for match, before in found]


def read_page(path: Path) -> Page:
    """The commands of a page's `bash` blocks; variables that a block sets are put in."""
    text, page = path.read_text(encoding="utf-8"), Page()
    for number, code, before in blocks(text, "bash"):
        page.prose[number] = set(re.findall(r"`([^`\n]+)`", BLOCK.sub("", before)))
        page.lines += [line for line in commands(code, path, number) if line.words]
    page.runs = [yaml.safe_load(code) for _, code, _ in blocks(text, "yaml")]
    return page


def commands(code: str, page: Path, number: int) -> list[Line]:
    """The commands of one block, in order."""
    variables: dict[str, str] = {}
    found = []
    for text in code.replace("\\\n", " ").splitlines():
        if text.startswith("mapfile "):  # classes from Python, which no check here needs
            continue
        lexer = shlex.shlex(text, posix=True, punctuation_chars=True)
        lexer.whitespace_split, lexer.commenters = True, "#"
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word not in ENDS:
                words.append(re.sub(r"\$(\w+)", lambda match: variables.get(match[1], match[0]), word))
                continue
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                name, _, value = words.pop(0).partition("=")
                variables[name] = value
            output = words[words.index(">") + 1] if ">" in words else None
            words = words[: words.index(">")] if ">" in words else words
            found.append(Line(words, page, number, output))
            words = []
    return found
