"""The line editor of `unified chat` on a terminal: history across starts, completion of commands and paths."""

import os
from collections.abc import Iterable
from pathlib import Path

import typer
from prompt_toolkit import PromptSession
from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from unified.cli.conversation import COMMANDS


def history_file() -> Path:
    """Where lines are kept from one start to the next (XDG Base Directory Specification)."""
    state = os.environ.get("XDG_STATE_HOME", "")
    return (Path(state) if os.path.isabs(state) else Path.home() / ".local/state") / "unified/chat_history"


def open_history(path: Path) -> History:
    """The lines of earlier starts, readable by their user alone; where they cannot be kept, one line says so."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600))
    except OSError as error:
        typer.echo(f"lines are not kept for the next start: {path}: {error.strerror}", err=True)
        return InMemoryHistory()
    return FileHistory(path)


class ChatCompleter(Completer):
    """Completes commands at the start of a line, and paths behind those that take a file."""

    def __init__(self) -> None:
        self.image_files = PathCompleter(expanduser=True, file_filter=is_image_or_folder)
        self.all_files = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterable[Completion]:
        line = document.text_before_cursor
        name, space, argument = line.partition(" ")
        if not space and line.startswith("/"):
            for command, (given, meaning) in COMMANDS.items():
                if command.startswith(line):
                    word = f"{command} " if given else command
                    yield Completion(word, -len(line), display=f"{command} {given}".rstrip(), display_meta=meaning)
        elif space and COMMANDS.get(name, ("",))[0] == "FILE":
            files = self.image_files if name == "/image" else self.all_files
            path = argument.lstrip()
            yield from files.get_completions(Document(path, len(path)), complete_event)


def is_image_or_folder(name: str) -> bool:
    """Whether a path is a folder, or ends as an image does."""
    from unified.files.images import image_suffixes

    return os.path.isdir(name) or Path(name).suffix.lower() in image_suffixes()


def key_bindings() -> KeyBindings:
    """prompt_toolkit's, and Alt-Enter for a line break in a question."""
    bindings = KeyBindings()

    @bindings.add("escape", "enter")
    def break_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


class LineEditor:
    """Reads lines from the terminal."""

    def __init__(self) -> None:
        self.session: PromptSession[str] = PromptSession(
            "you> ",
            history=open_history(history_file()),
            completer=ChatCompleter(),
            auto_suggest=AutoSuggestFromHistory(),
            key_bindings=key_bindings(),
        )

    def read(self) -> str | None:
        """The next line, None at the end of input (Ctrl-D). Ctrl-C drops what was typed."""
        while True:
            try:
                return self.session.prompt().strip()
            except KeyboardInterrupt:
                typer.echo("[Ctrl-D or /quit leaves]")
            except EOFError:
                return None
