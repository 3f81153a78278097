"""What a terminal or a pipe can show."""

import io
import os
import re
import select
import sys
import time
from collections.abc import Callable, Mapping
from typing import Literal

ImageProtocol = Literal["kitty", "iterm2", "sixel", "blocks", "none"]
CELL = (10, 20)  # pixels of a character where a terminal does not say
# by what a terminal calls itself in TERM_PROGRAM or LC_TERMINAL; tmux and screen stand between and pass neither on
BY_PROGRAM: dict[str, ImageProtocol] = {
    "iterm.app": "iterm2",
    "iterm2": "iterm2",
    "wezterm": "iterm2",
    "mintty": "iterm2",
    "ghostty": "kitty",
    "kitty": "kitty",
}
# of a text that somebody else wrote: what a terminal would obey (C0 and C1 but line ends and tabs, and DEL), or what
# would show other words than there are (directions of writing), as the sign for it
HARMLESS = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
HARMLESS |= dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)
SIXEL = "4"  # in the answer to "which terminal are you?" (DA1)


def show_any_text() -> None:
    """Let stdout and stderr take every character: what their encoding lacks is written as an escape.

    Where a pipe is not UTF-8, as on Windows, a model's answer would otherwise end the command that prints it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def harmless(text: str) -> str:
    """`text`, as a model's answer, without control characters: escape sequences would set titles, clipboards, keys."""
    return text.translate(HARMLESS)


def is_interactive() -> bool:
    """Whether a person types and reads: input and output are a terminal."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def image_protocol(
    environment: Mapping[str, str] = os.environ, ask: "Callable[[], str] | None" = None
) -> ImageProtocol:
    """How the terminal shows images: by its name, by what it answers to `ask`, else as blocks of colour.

    "none" where input or output is no terminal, or one without colours or UTF-8.
    """
    term = environment.get("TERM", "")
    plain = term in ("", "dumb", "linux") and os.name == "posix"
    if not is_interactive() or plain or environment.get("NO_COLOR"):
        return "none"
    if not ("TMUX" in environment or term.startswith(("screen", "tmux"))):
        if "KITTY_WINDOW_ID" in environment or term in ("xterm-kitty", "xterm-ghostty"):
            return "kitty"
        for name in (environment.get("TERM_PROGRAM", ""), environment.get("LC_TERMINAL", "")):
            if name.lower() in BY_PROGRAM:
                return BY_PROGRAM[name.lower()]
    answer = (ask or device_attributes)()
    if SIXEL in re.findall(r"\d+", answer)[1:]:  # the first is the terminal's kind
        return "sixel"
    return "blocks" if (sys.stdout.encoding or "").lower().replace("-", "") == "utf8" else "none"


def device_attributes(seconds: float = 0.5) -> str:
    """What the terminal answers to DA1, `ESC [ ? 62 ; 4 ; ... c`; "" where it says nothing, or on Windows."""
    if sys.platform == "win32":
        return ""
    import termios
    import tty

    terminal, answer, end = sys.stdin.fileno(), b"", time.monotonic() + seconds
    before = termios.tcgetattr(terminal)
    try:
        tty.setcbreak(terminal, termios.TCSANOW)
        os.write(sys.stdout.fileno(), b"\x1b[c")
        while b"c" not in answer and select.select([terminal], [], [], max(0.0, end - time.monotonic()))[0]:
            answer += os.read(terminal, 64)
    finally:
        termios.tcsetattr(terminal, termios.TCSANOW, before)
    found = re.search(rb"\x1b\[\?([\d;]*)c", answer)
    return found[1].decode() if found else ""


def has_true_colour(environment: Mapping[str, str]) -> bool:
    """Whether the terminal has 24-bit colours, as it says; else it is taken to have 256."""
    return environment.get("COLORTERM", "") in ("truecolor", "24bit") or "WT_SESSION" in environment


def cell_size() -> tuple[int, int]:
    """Width and height of a character in pixels."""
    if sys.platform == "win32" or not sys.stdout.isatty():
        return CELL
    import fcntl
    import struct
    import termios

    packed = fcntl.ioctl(sys.stdout.fileno(), termios.TIOCGWINSZ, bytes(8))
    rows, columns, width, height = struct.unpack("HHHH", packed)
    return (width // columns, height // rows) if rows and columns and width and height else CELL
