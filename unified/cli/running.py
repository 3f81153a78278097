"""`unified run`: from its words to the command line of a script, launched by accelerate where its manual says so."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from unified.arguments.shipped_files import COMMAND, FOLDER
from unified.cli.shipped import CONFIGURATION, SCRIPT, find, manual, names, nearest, root

LAUNCHED = "accelerate launch"  # stands in the manual of a script that takes part in a launch


def run_script(words: Sequence[str]) -> None:
    """Become the script that `words` name: this process is replaced, so signals and exit status are the script's."""
    command = command_of(words)
    environment = os.environ | {FOLDER: str(root()), COMMAND: shlex.join(["unified", "run", *words])}
    sys.stdout.flush()
    os.execve(command[0], command, environment)


def command_of(words: Sequence[str]) -> list[str]:
    """The command line for `[accelerate launch's options] NAME [script's flags]`.

    Names of scripts and configurations are files here, or else those that the package ships. Raises ValueError for
    unknown names, and for options of a launch before a script that is not launched.
    """
    place = place_of_name(words)
    script = script_of(words[place])
    assert script is not None, f"{words[place]} was found"
    options = with_configurations(words[:place], "--config_file")
    flags = with_configurations(words[place + 1 :], "--config")
    if LAUNCHED in manual(script):
        return [sys.executable, "-m", "accelerate.commands.launch", *options, str(script), *flags]
    if options:
        raise ValueError(f"{words[place]} is not launched by accelerate; leave out {shlex.join(options)}")
    return [sys.executable, str(script), *flags]


def place_of_name(words: Sequence[str]) -> int:
    """Where the script's name stands: the first word that is one. Raises ValueError where none is."""
    for place, word in enumerate(words):
        if not word.startswith("-") and script_of(word) is not None:
            return place
    scripts = [name for name in names() if name.endswith(SCRIPT)]
    free = [word for place, word in enumerate(words) if not word.startswith("-")]
    if not free:
        raise ValueError("no script is named; give NAME, for instance one of `unified ls recipes/*.py`")
    wrong = next((word for word in free if word.endswith(SCRIPT)), free[0])
    raise ValueError(f"there is no script {wrong}; {nearest(wrong, scripts)}; see `unified ls`")


def script_of(word: str) -> Path | None:
    """A script of that name here, or shipped."""
    if word.endswith(SCRIPT) and Path(word).is_file():
        return Path(word)
    found = find(word, SCRIPT)
    return None if found is None else root() / found


def with_configurations(words: Sequence[str], flag: str) -> list[str]:
    """`words` with the values of `flag` as paths."""
    changed: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if equals and same_flag(name, flag):
            changed.append(f"{name}={configuration(value)}")
        else:
            changed.append(configuration(word) if changed and same_flag(changed[-1], flag) else word)
    return changed


def same_flag(word: str, flag: str) -> bool:
    """Whether a word is that flag, with underscores or dashes."""
    return word.startswith("--") and word.replace("-", "_") == flag.replace("-", "_")


def configuration(name: str) -> str:
    """The path of a YAML: the file here, or the shipped one of that name; ValueError where there is neither."""
    if Path(name).is_file():
        return name
    found = find(name, CONFIGURATION)
    if found is None:
        known = [known for known in names() if known.endswith(CONFIGURATION)]
        raise ValueError(
            f"{name} is no file here and no YAML of the package; {nearest(name, known)}; see `unified ls`"
        )
    return str(root() / found)
