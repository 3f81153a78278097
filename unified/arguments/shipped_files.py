"""Files that the installed package ships, for commands that work in any folder.

`unified run` names the folder they lie in; a command line's values that name a file of it are read there where there
is no such file here. Nothing is looked up unless it has.
"""

import os
from pathlib import Path
from typing import Any

FOLDER = "UNIFIED_SHIPPED"
COMMAND = "UNIFIED_COMMAND"  # what was typed, to be typed again


def here_or_shipped(path: str) -> str:
    """`path`, or where the package ships the file of that name if there is none here."""
    folder = os.environ.get(FOLDER)
    if not folder or "/" not in path or Path(path).exists():
        return path
    shipped = Path(folder, path)
    return str(shipped) if shipped.is_file() else path


def find_shipped(settings: Any) -> None:
    """Let the fields of a dataclass that are paths, or lists of them, name shipped files; not what is written, `out*`.

    A name that is no shipped file stays as it is.
    """
    if not os.environ.get(FOLDER):
        return
    for name, value in list(vars(settings).items()):
        if name.startswith("out"):
            continue
        if isinstance(value, str):
            setattr(settings, name, here_or_shipped(value))
        elif isinstance(value, list) and all(isinstance(item, str) for item in value):
            setattr(settings, name, [here_or_shipped(item) for item in value])
