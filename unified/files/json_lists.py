"""JSON files that are one list, such as LLaVA's: their items one by one, in memory of some megabytes."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

READ_AT_ONCE = 1 << 20  # characters
_SPACE = re.compile(r"[ \t\r\n]*")
_CUT = 16  # characters before the end of what was read in which an error may come from the cut


def listed(path: Path) -> Iterator[tuple[int, bytes]]:
    """Items and the lines they begin in, counted from 1; ValueError naming file and line of what is no list."""
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader, before = _Reader(file), "["
            while (sign := reader.sign()) == before:
                reader.at += 1
                if before == "[" and reader.sign() == "]":
                    break
                reader.sign()
                line = reader.line
                yield line, reader.value().encode()
                before = ","
            if sign != "]" and reader.sign() != "]":
                raise ValueError("no list of objects; write [{...}, {...}], or JSONL")
            reader.at += 1
            if reader.sign():
                raise ValueError("something stands behind the list; take it out")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}:{reader.line}: {error}") from None


class _Reader:
    """A text read piece by piece: `at` is the place in `text`, `line` its line."""

    def __init__(self, file: TextIO) -> None:
        self.file, self.text, self.at, self.line, self.ended = file, "", 0, 1, False
        self.decoder = json.JSONDecoder()

    def more(self, count: int) -> None:
        """Read on, and let go of what has been passed."""
        piece = self.file.read(count)
        self.text, self.at, self.ended = self.text[self.at :] + piece, 0, not piece

    def sign(self) -> str:
        """The next character that is no white space, where the reader then stands; empty at the end."""
        while True:
            space = _SPACE.match(self.text, self.at)
            assert space is not None
            self.line += space[0].count("\n")
            self.at = space.end()
            if self.at < len(self.text) or self.ended:
                return self.text[self.at : self.at + 1]
            self.more(READ_AT_ONCE)

    def value(self) -> str:
        """The text of the value that begins here, behind which the reader then stands."""
        while True:
            try:
                _, end = self.decoder.raw_decode(self.text, self.at)
                if end < len(self.text) or self.ended:
                    break
            except json.JSONDecodeError as error:
                inside = error.pos + _CUT < len(self.text) and not error.msg.startswith("Unterminated")
                if self.ended or inside:
                    self.line += self.text.count("\n", self.at, error.pos)
                    raise ValueError(f"not JSON ({error.msg}); mend the list") from None
            self.more(max(READ_AT_ONCE, len(self.text) - self.at))
        found = self.text[self.at : end]
        self.line += found.count("\n")
        self.at = end
        return found
