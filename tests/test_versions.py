"""Requirements of pyproject.toml: floors, ceilings around the tested versions, and DeepSpeed on Linux alone."""

import os
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [
    Requirement(line) for line in (*PROJECT["dependencies"], *(r for extra in EXTRAS.values() for r in extra))
]
PINS = dict(
    line.split("==")
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if "==" in line and not line.startswith("#")
)
# transformers' and accelerate's own question is asked of the finder, so DeepSpeed is gone as where it is not installed
WITHOUT_DEEPSPEED = """
import importlib.machinery, importlib.metadata, sys
found, version = importlib.machinery.PathFinder.find_spec, importlib.metadata.version
importlib.machinery.PathFinder.find_spec = staticmethod(
    lambda name, path=None, target=None: None if name.split(".")[0] == "deepspeed" else found(name, path, target))
from pathlib import Path
import importlib
for path in sorted(Path(sys.argv[1]).glob("unified/*/*.py")):
    if path.stem not in ("__init__", "__main__", "lmms_plugin"):
        importlib.import_module(f"unified.{path.parent.name}.{path.stem}")
assert "deepspeed" not in sys.modules
from accelerate.utils import is_deepspeed_available
assert not is_deepspeed_available()
sys.argv = sys.argv[2:]
import runpy
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_every_requirement_has_a_floor_and_a_ceiling_and_holds_the_tested_version(requirement: Requirement) -> None:
    operators = {specifier.operator for specifier in requirement.specifier}
    assert operators in ({">=", "<"}, {"=="}), "a floor and a tested ceiling"
    tested = {canonicalize_name(name): version for name, version in PINS.items()}
    assert requirement.specifier.contains(tested[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("name", ["transformers", "trl", "peft"])
def test_packages_whose_internals_are_used_are_held_at_their_minor_version(name: str) -> None:
    [requirement] = [requirement for requirement in REQUIREMENTS if requirement.name == name]
    major, minor = map(int, PINS[name].split(".")[:2])
    assert str(requirement.specifier) == f"<{major}.{minor + 1},>={major}.{minor}"


def test_deepspeed_is_asked_for_on_linux_alone() -> None:
    [deepspeed] = [requirement for requirement in REQUIREMENTS if requirement.name == "deepspeed"]
    assert deepspeed.marker is not None
    assert [deepspeed.marker.evaluate({"sys_platform": name}) for name in ("linux", "darwin", "win32")] == [
        True,
        False,
        False,
    ]


def test_an_adapter_is_trained_where_there_is_no_deepspeed(
    toy_rows: Callable[[str], Path], toy_checkpoint: Path, tmp_path: Path
) -> None:
    """Every module is imported and a LoRA run trained in a process in which DeepSpeed cannot be found."""
    flags = ["--config", "recipes/configs/tiny.yaml", "--model", toy_checkpoint, "--tuning", "lora", "--max_steps", 1]
    flags += ["--train_files", toy_rows("ddat"), "--output_dir", tmp_path / "out"]
    command = [sys.executable, "-c", WITHOUT_DEEPSPEED, ROOT, "recipes/sft.py", *flags]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    done = subprocess.run(list(map(str, command)), cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out/adapter_model.safetensors").is_file()
