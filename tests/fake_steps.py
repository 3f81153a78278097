"""Jobs whose commands are not run: what they were told is kept, and what they would leave is made by hand."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, load_script

from unified.arguments.parser import parse
from unified.reports import commands


class World:
    """Runs no command of `unified.reports.commands`; a subclass makes in `shut_down` what one would leave."""

    def __init__(self) -> None:
        self.fails_at = ""
        self.commands: list[tuple[str, dict[str, str], list[str]]] = []  # name, flags with their first word, words

    def take_over(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(commands, "subprocess", SimpleNamespace(run=self.run))

    @property
    def names(self) -> list[str]:
        return [name for name, *_ in self.commands]

    def run(self, command: list[str], **_: object) -> SimpleNamespace:
        words = command[1:]
        flags = dict(zip(words, words[1:], strict=False))
        name = next(Path(word).stem for word in words if word.endswith(".py") or word == "unified.cli.main")
        if name == self.fails_at:
            return SimpleNamespace(returncode=3)
        self.commands.append((name, flags, words))
        return SimpleNamespace(returncode=self.shut_down(name, flags, words))

    def shut_down(self, name: str, flags: dict[str, str], words: list[str]) -> int:
        """Make what the command would make; its exit status."""
        return 0

    def check_understood(self, cli_command: str = "") -> None:
        """Every script's own arguments must take what it was told; `unified` was asked for `cli_command` alone."""
        for name, _, words in self.commands:
            if name == "unified":
                assert words[:3] == ["-m", "unified.cli", cli_command]
                continue
            place = next(index for index, word in enumerate(words) if Path(word).stem == name)
            call = re.search(r"parse\(\(([\w, ]+)\)", (ROOT / words[place]).read_text())
            script = vars(load_script(words[place]))
            parse(tuple(script[word] for word in re.findall(r"\w+", call[1])), words[place + 1 :])
