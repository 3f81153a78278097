"""The line editor of `unified chat`, by prompt_toolkit's pipe input, and a whole conversation in a pseudo-terminal."""

import fcntl
import os
import pty
import select
import signal
import stat
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from prompt_toolkit.application import create_app_session
from prompt_toolkit.history import InMemoryHistory
from prompt_toolkit.input import PipeInput, create_pipe_input
from prompt_toolkit.output import DummyOutput

from unified.cli.line_editor import ChatCompleter, LineEditor, history_file, open_history

UP, LEFT, TAB, ALT_ENTER, CTRL_C, CTRL_D = "\x1b[A", "\x1b[D", "\t", "\x1b\r", "\x03", "\x04"


@pytest.fixture
def keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PipeInput]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        yield pipe


def test_lines_are_edited_and_ctrl_d_ends(keys: PipeInput, capsys: pytest.CaptureFixture[str]) -> None:
    editor = LineEditor()
    keys.send_text(f"a rd cat{LEFT * 5}e\r")
    assert editor.read() == "a red cat"
    keys.send_text(f"half a line{CTRL_C}two{ALT_ENTER}lines\r")
    assert editor.read() == "two\nlines" and "Ctrl-D or /quit leaves" in capsys.readouterr().out
    keys.send_text(CTRL_D)
    assert editor.read() is None


def test_history_goes_on_in_the_next_start_and_is_its_users_alone(keys: PipeInput, tmp_path: Path) -> None:
    keys.send_text("a secret\r")
    LineEditor().read()
    assert history_file() == tmp_path / "state/unified/chat_history"
    assert stat.S_IMODE(history_file().stat().st_mode) == 0o600
    keys.send_text(f"{UP}s\r")
    assert LineEditor().read() == "a secrets"


def test_a_history_that_cannot_be_kept_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert isinstance(open_history(tmp_path / "file/history"), InMemoryHistory)
    assert "lines are not kept for the next start: " in capsys.readouterr().err


def test_commands_and_paths_are_completed(keys: PipeInput, tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "cat one.png")
    (tmp_path / "cat.txt").write_text("")
    (tmp_path / "cats").mkdir()
    found = {
        line: [one.text for one in complete(line)] for line in ("/", "/s", "/image c", "/save c", "hi /i", "/x c")
    }
    assert len(found["/"]) == 7 and found["/s"] == ["/seed ", "/save "]
    assert sorted(found["/image c"]) == ["at one.png", "ats"] and sorted(found["/save c"]) == [
        "at one.png",
        "at.txt",
        "ats",
    ]
    assert found["hi /i"] == [] == found["/x c"]


def complete(line: str) -> list:
    from prompt_toolkit.completion import CompleteEvent
    from prompt_toolkit.document import Document

    return list(ChatCompleter().get_completions(Document(line), CompleteEvent()))


def take_terminal() -> None:
    """In a child: its terminal's Ctrl-C is a signal to it, also where the tests run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


class Terminal:
    """A program in a pseudo-terminal."""

    def __init__(self, *command: str, **environment: str) -> None:
        self.screen, self.seen = b"", 0
        self.side, inner = pty.openpty()
        inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TMUX")}
        variables = {**inherited, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1", **environment}
        self.process = subprocess.Popen(
            command,
            stdin=inner,
            stdout=inner,
            stderr=inner,
            env=variables,
            start_new_session=True,
            preexec_fn=take_terminal,
        )
        os.close(inner)

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """What has been printed since the last call, up to `text`."""
        end = time.monotonic() + seconds
        while (place := self.screen.find(text.encode(), self.seen)) < 0:
            assert select.select([self.side], [], [], max(0, end - time.monotonic()))[0], self.screen[self.seen :]
            self.screen += os.read(self.side, 65536)
        shown, self.seen = self.screen[self.seen : place], place + len(text.encode())
        return shown.decode()

    def type(self, text: str) -> None:
        os.write(self.side, text.encode())


def test_a_conversation_in_a_terminal(tmp_path: Path) -> None:
    """Arrow keys edit, Ctrl-C stops an answer and not the program, a picture is shown in colour, Ctrl-D leaves."""
    here = Path(__file__)
    command = [sys.executable, str(here.with_name("fake_chat.py")), str(tmp_path / "out")]
    path = os.pathsep.join([str(here.parents[2]), os.environ.get("PYTHONPATH", "")])
    terminal = Terminal(*command, XDG_STATE_HOME=str(tmp_path), PYTHONPATH=path, COLORTERM="truecolor")
    try:
        terminal.wait_for("you>")
        terminal.type(f"helo{LEFT}l\r")
        terminal.wait_for("you said hello")
        terminal.wait_for("you>")
        terminal.type("/clea")
        terminal.wait_for("a new conversation on an empty screen")  # the menu
        terminal.type(f"{TAB}\r")
        terminal.wait_for("\x1b[2J")
        terminal.wait_for("[a new conversation]")
        terminal.wait_for("you>")
        terminal.type("long\r")
        terminal.wait_for("once upon a time ")
        terminal.type(CTRL_C)
        terminal.wait_for("[stopped; question and answer are not part of the conversation]")
        terminal.wait_for("you>")
        terminal.type("draw\r")
        assert "\x1b[38;2;255;0;0;48;2;255;0;0m▀" in terminal.wait_for("[image: ")
        terminal.wait_for("you>")
        terminal.type(CTRL_D)
        assert terminal.process.wait(60) == 0
    finally:
        terminal.process.kill()
        terminal.process.wait()
        os.close(terminal.side)
    assert (tmp_path / "out/000.png").is_file()
