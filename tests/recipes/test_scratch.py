"""recipes/scratch.py and recipes/show.py: the steps from nothing, and the page made by a toy; nothing is trained."""

from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT
from fake_steps import World

from unified.reports import steps

CONFIG = ROOT / "recipes/configs/smollm2_scenes/scratch.yaml"
FULL = ROOT / "recipes/configs/smollm2_scenes/scratch_full.yaml"


class ScenesWorld(World):
    """Rendered scenes appear."""

    def shut_down(self, name: str, flags: dict[str, str], words: list[str]) -> int:
        if name == "render_scenes":
            folder = Path(flags["--out"])
            folder.mkdir(exist_ok=True)
            (folder / "00000.parquet").touch()
        return 0


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = ScenesWorld()
    made.take_over(monkeypatch)
    return made


def scripts(world: World) -> list[str]:
    return [next(w for w in words if w.endswith(".py") or w == "unified.cli.main") for *_, words in world.commands]


def test_the_steps_follow_each_other_and_only_the_page_is_made_again(
    world: World, run_script: Callable[..., int], tmp_path: Path
) -> None:
    assert run_script("recipes/scratch.py", "--config", FULL, "--out_dir", tmp_path) == 0
    render, encode, train = "data_prep/render_scenes.py", "data_prep/encode_images.py", "recipes/sft.py"
    order = ["data_prep/convert_smollm2.py", render, encode, render, encode, "unified.cli.main", train, train]
    assert scripts(world) == [*order, "recipes/show.py"]
    models = [flags["--model"] for _, flags, _ in world.commands if "--model" in flags]
    assert models == [str(tmp_path / name) for name in ("extended", "1_align", "2_sft")]
    assert world.commands[-2][2].count(steps.REPLAY) == 40
    assert run_script("recipes/scratch.py", "--config", FULL, "--out_dir", tmp_path) == 0
    assert scripts(world)[9:] == ["recipes/show.py"]


def test_every_command_is_one_its_script_understands(
    world: World, run_script: Callable[..., int], tmp_path: Path
) -> None:
    assert run_script("recipes/scratch.py", "--config", CONFIG, "--out_dir", tmp_path) == 0
    world.check_understood("extend")


def test_the_page_of_a_toy(run_script: Callable[..., int], toy_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "steps.json").write_text('[{"step": "encode", "seconds": 3.5, "command": "python x.py"}]')
    flags = ["--config", CONFIG, "--out_dir", tmp_path, "--model", toy_checkpoint]
    assert run_script("recipes/show.py", *flags, "--prompts", "a photo of a cat", "two dogs") == 0
    text = (tmp_path / "index.html").read_text(encoding="utf-8")
    for part in ("a photo of a cat", "two dogs", "What is the capital of France?", "no training log", "python x.py"):
        assert part in text
    assert "rendered from: a photo of a" in text and "umbrella" in text and (tmp_path / "drawings.png").exists()
