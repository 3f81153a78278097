"""recipes/demo.py and recipes/show.py: the steps of the demo, and its page made by a toy; nothing is trained."""

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT, load_script

from unified import steps
from unified.arguments import parse

CONFIG = ROOT / "recipes/configs/smollm2_scenes/demo.yaml"
FULL = ROOT / "recipes/configs/smollm2_scenes/demo_full.yaml"


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """What would have been run; rendered scenes appear."""
    told: list[list[str]] = []

    def run(command: list[str], **_: object) -> SimpleNamespace:
        told.append(command[1:])
        if "data_prep/render_scenes.py" in command:
            folder = Path(command[command.index("--out") + 1])
            folder.mkdir(exist_ok=True)
            (folder / "00000.parquet").touch()
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(steps, "subprocess", SimpleNamespace(run=run))
    return told


def script_of(command: list[str]) -> str:
    return next(word for word in command if word.endswith(".py") or word == "unified.cli")


def test_the_steps_follow_each_other_and_only_the_page_is_made_again(
    commands: list[list[str]], run_script: Callable[..., int], tmp_path: Path
) -> None:
    assert run_script("recipes/demo.py", "--config", FULL, "--out_dir", tmp_path) == 0
    render, encode, train = "data_prep/render_scenes.py", "data_prep/encode_images.py", "recipes/sft.py"
    order = ["data_prep/convert_smollm2.py", render, encode, render, encode, "unified.cli", train, train]
    assert [script_of(command) for command in commands] == [*order, "recipes/show.py"]
    models = [command[command.index("--model") + 1] for command in commands if "--model" in command]
    assert models == [str(tmp_path / name) for name in ("extended", "1_align", "2_sft")]
    assert commands[-2].count(steps.REPLAY) == 40
    assert run_script("recipes/demo.py", "--config", FULL, "--out_dir", tmp_path) == 0
    assert [script_of(command) for command in commands[9:]] == ["recipes/show.py"]


def test_every_command_is_one_its_script_understands(
    commands: list[list[str]], run_script: Callable[..., int], tmp_path: Path
) -> None:
    assert run_script("recipes/demo.py", "--config", CONFIG, "--out_dir", tmp_path) == 0
    for command in commands:
        script = script_of(command)
        if script == "unified.cli":
            continue
        call = re.search(r"parse\(\(([\w, ]+)\)", (ROOT / script).read_text())
        types = tuple(vars(load_script(script))[word] for word in re.findall(r"\w+", call[1]))
        parse(types, command[command.index(script) + 1 :])


def test_the_page_of_a_toy(run_script: Callable[..., int], toy_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "steps.json").write_text('[{"step": "encode", "seconds": 3.5, "command": "python x.py"}]')
    flags = ["--config", CONFIG, "--out_dir", tmp_path, "--model", toy_checkpoint]
    assert run_script("recipes/show.py", *flags, "--prompts", "a photo of a cat", "two dogs") == 0
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    for part in ("a photo of a cat", "two dogs", "What is the capital of France?", "no training log", "python x.py"):
        assert part in text
    assert "rendered from: a photo of a" in text and "umbrella" in text and (tmp_path / "drawings.png").exists()
