"""What a terminal or a pipe can show."""

import io
import sys


def show_any_text() -> None:
    """Let stdout and stderr take every character: what their encoding lacks is written as an escape.

    Where a pipe is not UTF-8, as on Windows, a model's answer would otherwise end the command that prints it.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
