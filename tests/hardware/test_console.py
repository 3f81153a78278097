"""Text that a terminal's encoding lacks."""

import io
import sys

import pytest

from unified.arguments.parser import run_main
from unified.cli.main import Commands
from unified.hardware.console import show_any_text


def pipe(monkeypatch: pytest.MonkeyPatch, name: str = "stdout") -> io.BytesIO:
    """Make a stream one of Windows' pipes."""
    shown = io.BytesIO()
    monkeypatch.setattr(sys, name, io.TextIOWrapper(shown, encoding="cp1252", write_through=True))
    return shown


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_a_pipe_that_is_not_utf_8_takes_every_character(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    shown = pipe(monkeypatch, name)
    with pytest.raises(UnicodeEncodeError):
        getattr(sys, name).write("🐈")
    show_any_text()
    getattr(sys, name).write("né 🐈")
    assert shown.getvalue() == b"n\xe9 \\U0001f408"


def test_scripts_and_commands_print_what_a_model_says(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = pipe(monkeypatch)
    run_main(lambda: sys.stdout.write("🐈"))
    assert shown.getvalue().split() == [b"\\U0001f408"]
    shown = pipe(monkeypatch)
    monkeypatch.setattr(Commands, "with_one_line_errors", lambda self, step, *args: sys.stdout.write("🐕") and [])
    Commands(commands={}).parse_args(None, [])
    assert shown.getvalue().split() == [b"\\U0001f415"]


def test_streams_of_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    show_any_text()
    assert isinstance(sys.stdout, io.StringIO)
