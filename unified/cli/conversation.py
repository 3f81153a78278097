"""What `unified chat` does with a line, and what it prints."""

import json
import os
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse
from urllib.request import url2pathname

import typer

from unified.cli.images import save, save_numbered
from unified.cli.options import MAX_SEED
from unified.hardware.console import ImageProtocol, harmless, is_interactive

if TYPE_CHECKING:
    from PIL.Image import Image

    from unified.inference.chat import Chat

# of a line: its argument, and what it does
COMMANDS = {
    "/help": ("", "this list"),
    "/image": ("FILE", "add an image to your next question"),
    "/seed": ("[N]", "seed of the images from here on; without N, the seed in use"),
    "/save": ("FILE", "the last image as FILE.png, or the conversation as FILE.jsonl, a row of training data"),
    "/reset": ("", "a new conversation"),
    "/clear": ("", "a new conversation on an empty screen"),
    "/quit": ("", "leave"),
}


class Conversation:
    """A chat whose lines may be commands.

    Args:
        out_dir: where generated images are saved. first: question asked before one that comes with an image.
        protocol: how the terminal shows them. products: the context in which the model works.
    """

    def __init__(
        self,
        chat: "Chat",
        out_dir: Path,
        first: str,
        protocol: ImageProtocol,
        products: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        self.chat, self.out_dir, self.first, self.protocol, self.products = chat, out_dir, first, protocol, products
        self.files: list[Path] = []  # of every image of the conversation
        self.pending: list[Path] = []  # of those of the next question
        self.last: Image | None = None
        self.commands: dict[str, Callable[[str], None]] = {
            "/help": self.help,
            "/image": self.image,
            "/seed": self.seed,
            "/save": self.save,
            "/reset": self.reset,
            "/clear": self.clear,
        }

    def handle(self, line: str) -> None:
        """Handle one line: a command, or a question, after the question `first` if it comes with an image.

        Raises ValueError for a command that is not there, or whose argument cannot be used.
        """
        name, _, argument = line.partition(" ")
        if name in self.commands:
            self.commands[name](argument.strip())
        elif line.startswith("/"):
            known = ", ".join(f"{command} {given}".rstrip() for command, (given, _) in COMMANDS.items())
            shown = f"; to show a picture: /image {line}" if typed_path(line).is_file() else ""
            raise ValueError(f"unknown command {name!r}{shown}; choose from {known}")
        elif line:
            for question in [self.first, line] if self.first and self.chat.pending_images else [line]:
                self.ask(question)

    def ask(self, question: str) -> None:
        """Ask, and print the answer: text as it is generated, images as they are, and the paths they are saved at."""
        with self.products():
            parts = self.chat.ask(question, lambda text: typer.echo(harmless(text), nl=False))
        self.files, self.pending = [*self.files, *self.pending], []
        if any(part["type"] == "text" for part in parts):
            typer.echo()  # the end of the line that was streamed
        for part in parts:
            if part["type"] == "image":
                self.files.append(save_numbered(part["image"], self.out_dir))
                self.display(part["image"])
                typer.echo(f"[image: {self.files[-1]}]")

    def display(self, image: "Image") -> None:
        """Show a generated image in the terminal, and keep it for `/save`."""
        self.last = image
        if self.protocol != "none":
            from unified.cli.terminal_images import render

            typer.echo(render(image, self.protocol), color=True)

    def show(self, image: "Image", path: Path) -> None:
        """Add an image to the next question."""
        with self.products():
            self.chat.show(image)
        self.pending.append(path)

    def help(self, argument: str) -> None:
        for name, (given, meaning) in COMMANDS.items():
            typer.echo(f"{f'{name} {given}':14}{meaning}")
        typer.echo("anything else is a question; a generated image is saved, and its path printed")

    def image(self, argument: str) -> None:
        from unified.files.images import read_image

        if not argument:
            raise ValueError("/image without a file; give /image FILE, a PNG, JPEG or WebP")
        path = typed_path(argument)
        self.show(read_image(path, str(path)), path)
        typer.echo(f"[{path} is part of your next question]")

    def seed(self, argument: str) -> None:
        if argument:
            if not argument.isdecimal() or int(argument) > MAX_SEED:
                raise ValueError(f"/seed {argument}: give a whole number from 0 to 2**63 - 1")
            self.chat.seed = int(argument)
        typer.echo(f"[seed {self.chat.seed}]")

    def save(self, argument: str) -> None:
        if not argument:
            raise ValueError("/save without a file; give /save FILE.png for the last image, or /save FILE.jsonl")
        path = typed_path(argument)
        if path.exists():
            raise ValueError(f"{path} exists already; give another name")
        if path.suffix == ".jsonl":
            self.save_row(path)
        elif self.last is None:
            raise ValueError(f"no image yet to save as {path}; give a name that ends in .jsonl for the conversation")
        else:
            save(self.last, path, announce=False)
        typer.echo(f"[saved: {path}]")

    def save_row(self, path: Path) -> None:
        """The conversation as a row of training data, whose images are where they were read from and saved."""
        from unified.files.atomic import write_text

        if not self.chat.messages:
            raise ValueError(f"no answer yet to save as {path}; ask something first")
        images = [os.path.relpath(file.absolute(), path.absolute().parent) for file in self.files]
        row = {"messages": self.chat.messages, "images": images}
        write_text(path, json.dumps(row, ensure_ascii=False) + "\n")

    def reset(self, argument: str) -> None:
        self.chat.reset()
        self.files, self.pending = [], []
        typer.echo("[a new conversation]")

    def clear(self, argument: str) -> None:
        if is_interactive():
            from prompt_toolkit.shortcuts import clear

            clear()
        self.reset(argument)


def converse(conversation: Conversation, read_line: Callable[[], str | None], interactive: bool = False) -> None:
    """Handle lines until there is none, or /quit. Where `interactive`, errors and Ctrl-C end an answer only."""
    while (line := read_line()) not in (None, "/quit"):
        try:
            conversation.handle(str(line))
        except KeyboardInterrupt:
            if not interactive:
                raise
            typer.echo("\n[stopped; question and answer are not part of the conversation]")
        except (ValueError, OSError) as error:
            if not interactive:
                raise
            typer.echo(f"error: {harmless(' '.join(str(error).split()))}", err=True)


def typed_path(text: str) -> Path:
    """A path as people type it, or as a terminal writes a file that is dropped on it: quoted, escaped, a file: URL."""
    if text.startswith("file://"):
        text = url2pathname(urlparse(text).path)
    path = Path(text).expanduser()
    if os.name != "posix" or path.exists():
        return path
    try:
        words = shlex.split(text)
    except ValueError:  # an apostrophe
        return path
    return Path(words[0]).expanduser() if len(words) == 1 else path
