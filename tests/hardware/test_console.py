"""Text that a terminal's encoding lacks."""

import io
import os
import pty
import sys
import threading

import pytest

from unified.arguments.parser import run_main
from unified.cli.main import Commands
from unified.hardware.console import device_attributes, image_protocol, show_any_text


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


class Tty(io.StringIO):
    encoding = "UTF-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "answer", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "", "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "", "kitty"),
        ({"TERM": "xterm-ghostty", "TERM_PROGRAM": "ghostty"}, "", "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "", "iterm2"),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, "", "iterm2"),  # over ssh
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, "62;4", "iterm2"),
        ({"TERM": "foot"}, "62;4;22", "sixel"),
        ({"TERM": "xterm-256color"}, "64;1;2;22", "blocks"),
        ({"TERM": "xterm-256color"}, "4;6", "blocks"),  # a VT132, not sixel
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "Apple_Terminal"}, "", "blocks"),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1", "TMUX": "x"}, "1;2", "blocks"),
        ({"TERM": "tmux-256color", "TERM_PROGRAM": "iTerm.app", "TMUX": "x"}, "1;2;4", "sixel"),
        ({"TERM": "dumb"}, "62;4", "none"),
        ({"TERM": "linux"}, "6", "none"),
        ({"TERM": "xterm-kitty", "NO_COLOR": "1"}, "", "none"),
    ],
)
def test_images_are_shown_as_the_terminal_can(
    environment: dict[str, str], answer: str, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stdin", "stdout"):
        monkeypatch.setattr(sys, name, Tty())
    assert image_protocol(environment, lambda: answer) == protocol


@pytest.mark.parametrize("name", ["stdin", "stdout"])
def test_no_image_goes_into_a_pipe_or_comes_with_one(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for each in ("stdin", "stdout"):
        monkeypatch.setattr(sys, each, io.StringIO() if each == name else Tty())
    assert image_protocol({"TERM": "xterm-kitty"}, lambda: "62;4") == "none"


@pytest.mark.parametrize("answer", [b"\x1b[?62;4;22c", b""])
def test_a_terminal_is_asked_and_need_not_answer(answer: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    side, inner = pty.openpty()
    with open(inner, "r+b", buffering=0) as file, open(side, "r+b", buffering=0) as other:
        monkeypatch.setattr(sys, "stdin", file)
        monkeypatch.setattr(sys, "stdout", file)
        asked: list[bytes] = []

        def reply() -> None:
            asked.append(os.read(other.fileno(), 16))
            other.write(answer)

        terminal = threading.Thread(target=reply)
        terminal.start()
        assert device_attributes(seconds=5 if answer else 0.1) == answer.decode()[3:-1]
        terminal.join()
        assert asked == [b"\x1b[c"]
