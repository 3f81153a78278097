"""Puts the folders of scripts into the wheel, as data of `unified.cli`; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = ("recipes", "data_prep", "eval")
SHIPPED = "unified/cli/scripts"  # where unified/cli/shipped.py finds them


class BuildWithScripts(build_py):
    """`build_py`, then a copy of the folders; an editable install reads them where they are."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, SHIPPED)
        shutil.rmtree(target, ignore_errors=True)  # of an earlier build
        for folder in FOLDERS:
            shutil.copytree(folder, target / folder, ignore=shutil.ignore_patterns("__pycache__"))


setup(cmdclass={"build_py": BuildWithScripts})
