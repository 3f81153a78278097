"""The wheel, installed where the repository is not: it lists, copies and runs what the documentation shows."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from unified.cli.shipped import FOLDERS

ROOT = Path(__file__).parents[2]
SOURCES = ("unified", *FOLDERS)
BESIDE = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "THIRD_PARTY.md")


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    """The wheel of a copy of the repository, in which building leaves nothing."""
    source = tmp_path / "source"
    for name in SOURCES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in BESIDE:
        shutil.copy(ROOT / name, source)
    pip("wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "dist", source)
    (path,) = (tmp_path / "dist").glob("*.whl")
    return path


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_wheel_works_in_an_empty_folder(
    wheel: Path, toy_checkpoint: Path, toy_rows: Callable[[str], Path], tmp_path: Path
) -> None:
    files = {str(path.relative_to(ROOT)) for name in SOURCES for path in (ROOT / name).rglob("*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    carried = {name.replace("unified/cli/scripts/", "") for name in zipfile.ZipFile(wheel).namelist()}
    assert {name for name in carried if ".dist-info" not in name} == files

    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    pip("install", "--no-deps", "--target", site, wheel)
    assert {path.name for path in site.iterdir() if ".dist-info" not in path.name} == {"unified", "bin"}
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1", "UNIFIED_THREADS": "1"}

    def unified(*arguments: object) -> str:
        command = [sys.executable, site / "bin/unified", *arguments]
        done = subprocess.run(list(map(str, command)), cwd=empty, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    assert "recipes/sft.py " in unified("ls", "sft") and "eval" not in unified("ls", "recipes/*.py")
    assert unified("cp", "tiny", ".").split() == ["tiny.yaml"]
    data = ("--model", toy_checkpoint, "--train_files", toy_rows("ddat"), "--output_dir", "out", "--max_steps", 2)
    unified("run", "--config_file", "cpu", "recipes/sft.py", "--config", "tiny.yaml", *data)
    assert (empty / "out/model.safetensors").is_file()
    unified("draw", "a photo of a cat", "--model", "out", "--out", "cat.png")
    with Image.open(empty / "cat.png") as image:
        assert image.size == (16, 16)
