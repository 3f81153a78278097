"""What `unified chat` does with a line, and what it prints."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from unified.cli.images import save_numbered

if TYPE_CHECKING:
    from unified.inference.chat import Chat


def read_line() -> str | None:
    """Next line of the user, None at the end of input; the prompt is shown on a terminal only."""
    try:
        return input("you> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return None


def handle_line(conversation: "Chat", line: str, out_dir: Path, first: str = "") -> None:
    """Handle one line of a chat: a command, or a question, after the question `first` if it comes with an image."""
    from unified.files.images import read_image

    command, _, rest = line.partition(" ")
    if command == "/image":
        conversation.show(read_image(rest.strip(), rest.strip()))
        typer.echo(f"[{rest.strip()} is part of your next question]")
    elif command == "/reset":
        conversation.reset()
        typer.echo("[a new conversation]")
    elif line.startswith("/"):
        raise ValueError(f"unknown command {command!r}; choose from /image FILE, /reset and /quit")
    elif line:
        for question in [first, line] if first and conversation.pending_images else [line]:
            ask_and_print(conversation, question, out_dir)


def ask_and_print(conversation: "Chat", question: str, out_dir: Path) -> None:
    """Ask, and print the answer: text as it is generated, images as the paths they are saved at."""
    parts = conversation.ask(question, lambda text: typer.echo(text, nl=False))
    if any(part["type"] == "text" for part in parts):
        typer.echo()  # the end of the line that was streamed
    for part in parts:
        if part["type"] == "image":
            typer.echo(f"[image: {save_numbered(part['image'], out_dir)}]")
