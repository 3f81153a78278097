"""JSONL files, and lists of objects in one JSON file; errors name file and line."""

import codecs
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unified.files.json_lists import listed

_ESCAPED, _SURROGATE = re.compile(r"\\u[dD][89a-fA-F]"), re.compile("[\ud800-\udfff]")


def read_lines(path: str | Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Objects `start` to `stop` (half-open) of a file with their line numbers, counted from 1.

    Blank lines are skipped, but count as lines. Raises ValueError for invalid lines, as `parse_object`.
    """
    return ((number, parse_object(line, f"{path}:{number}")) for number, line in numbered_lines(path, start, stop))


def numbered_lines(path: str | Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, bytes]]:
    """As `read_lines`, but lines as they are; of a `.json`, the items of its list and the lines they begin in."""
    lines = listed(Path(path)) if Path(path).suffix == ".json" else _lines(Path(path))
    for index, numbered in enumerate(lines):
        if stop is not None and index >= stop:
            return
        if index >= start:
            yield numbered


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines that are not blank, without the mark that Windows puts before UTF-8."""
    with open(path, "rb") as file:  # bytes: text would end lines at U+2028 too, which JSON allows inside of strings
        for number, line in enumerate(file, start=1):
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if line.strip():
                yield number, line


def parse_object(data: bytes, where: str = "") -> dict[str, Any]:
    """JSON object in `data`; ValueError starting with `where` if it is not UTF-8, not JSON, or not an object.

    Half a surrogate pair, which JSON can write as an escape and no file or tokenizer takes, is an error too.
    """
    start = f"{where}: " if where else ""
    text = parse_text(data, where)
    try:
        value = json.loads(text, object_pairs_hook=_without_repeats)
    except _Repeated as error:
        raise ValueError(f"{start}the key {error.args[0]!r} stands twice in one object; keep one of them") from None
    except (ValueError, RecursionError) as error:  # ValueError: also for numbers of thousands of digits
        raise ValueError(f"{start}not JSON ({error}); write one object per line") from None
    if isinstance(value, list):
        raise ValueError(f"{start}not an object but a list; write one object per line, or name the file .json")
    if not isinstance(value, dict):
        raise ValueError(f"{start}not an object but a {type(value).__name__}; write one object per line")
    if _ESCAPED.search(text) and (path := surrogate_path(value)):
        raise ValueError(f"{start}half a surrogate pair in {path}; write the whole character, or take it out")
    return value


class _Repeated(Exception):
    """A key that an object has twice."""


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of a key that stands twice json would keep the last in silence."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _Repeated(next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number])))
    return found


def surrogate_path(value: Any, path: str = "") -> str:
    """Where in a JSON value a string holds half a surrogate pair, such as `messages[1].content`; else empty."""
    if isinstance(value, str):
        return (path or "the text") if _SURROGATE.search(value) else ""
    if isinstance(value, dict):
        inner = [(f"{path}.{key}".lstrip("."), held) for key, held in value.items()]
        inner = [(f"the key {key!r}", key) for key in value] + inner
    else:
        inner = [(f"{path}[{number}]", held) for number, held in enumerate(value)] if isinstance(value, list) else []
    return next(filter(None, (surrogate_path(held, name) for name, held in inner)), "")


def read_object(path: str | Path) -> dict[str, Any]:
    """The JSON object that a whole file is; ValueError naming the file if it is not."""
    return parse_object(Path(path).read_bytes(), str(path))


def parse_text(data: bytes, where: str) -> str:
    """Text of UTF-8 `data`; ValueError starting with `where` if it is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        start = f"{where}: " if where else ""
        raise ValueError(
            f"{start}not UTF-8 (byte {error.start + 1} is 0x{data[error.start]:02x}); save the file as UTF-8"
        ) from None


def read_prompts(path: Path) -> list[str]:
    """Prompts of a file: of a .jsonl the `prompt` of every line, of others every line that is not blank.

    Raises ValueError where there is no such file, no prompt, or a line without one.
    """
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give a prompt a line, or JSONL with `prompt` in every line")
    if path.suffix == ".jsonl":
        prompts = []
        for number, record in read_lines(path):
            text = record.get("prompt")
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f'{path}:{number}: no prompt; write {{"prompt": "..."}}')
            prompts.append(text)
    else:
        lines = parse_text(path.read_bytes(), str(path)).split("\n")
        prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise ValueError(f"{path} is empty; write a prompt a line")
    return prompts
