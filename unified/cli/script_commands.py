"""`unified ls`, `cp` and `run`: the scripts that come with the package."""

from pathlib import Path
from typing import Annotated

import typer

from unified.cli import running, shipped


def ls(
    patterns: Annotated[list[str] | None, typer.Argument(help="globs, or parts of names; default: all")] = None,
) -> None:
    """List the scripts, configurations and data that come with the package: a name for `cp` and `run`, its purpose.

    For instance `unified ls sft` or `unified ls "recipes/*.py"`.
    """
    typer.echo(shipped.table(shipped.matching(patterns or [])))


def cp(
    name: Annotated[str, typer.Argument(help="as `unified ls` has it, or a folder of these")],
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="where the copy goes")],
) -> None:
    """Copy a script, a configuration or a whole folder to edit it; never over a file.

    For instance `unified cp recipes/configs/smollm2_scenes mine`. Copied YAMLs name each other's copies.
    """
    for path in shipped.copy(name, folder):
        typer.echo(str(path))


def run(
    words: Annotated[
        list[str], typer.Argument(metavar="[LAUNCH_OPTIONS] NAME [FLAGS]", help="as `unified ls` has it, or a file")
    ],
) -> None:
    """Run a script from any folder: `unified run recipes/sft.py --config mine.yaml`.

    Where the script's manual says so, `accelerate launch` runs it, with the options before NAME: `unified run
    --config_file zero3 recipes/sft.py --config mine.yaml`. `--config` and `--config_file` take files, or names that
    `unified ls` shows; so do the paths inside. `unified run NAME --help` shows the script's manual.
    """
    running.run_script(words)
