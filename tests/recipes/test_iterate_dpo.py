"""recipes/iterate_dpo.py: the steps of its rounds, when they end, that a stopped job goes on; nothing is trained."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import load_script
from fake_steps import World

from unified.reports import commands
from unified.scenes.rendering import CLASSES

ROOT = Path(__file__).parents[2]
SCRIPT = "recipes/iterate_dpo.py"
CONFIG = ROOT / "recipes/configs/tiny_dpo.yaml"


class RoundsWorld(World):
    """Writes held-out scores from a list, and adapters."""

    def __init__(self, scores: list[float]) -> None:
        super().__init__()
        self.scores = scores

    def shut_down(self, name: str, flags: dict[str, str], words: list[str]) -> int:
        if name == "dpo":
            Path(flags["--output_dir"]).mkdir(parents=True)
            Path(flags["--output_dir"], "adapter_config.json").touch()
        if name == "geneval":
            Path(flags["--out"]).parent.mkdir(parents=True, exist_ok=True)
            Path(flags["--out"]).write_text(json.dumps({"value": self.scores.pop(0), "stderr": 0.01}))
        return 0


@pytest.fixture
def iterate(
    run_script: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, toy_checkpoint: Path
) -> Callable[..., tuple[int, World]]:
    """Run the script in a world with these held-out scores."""

    def run(world: World, *changes: object) -> int:
        world.take_over(monkeypatch)
        given = ["--run", CONFIG, "--model", toy_checkpoint, "--out", tmp_path / "out", "--extra", "text.jsonl"]
        return run_script(SCRIPT, *given, *changes)

    return run


def rounds(out: Path) -> list[dict[str, Any]]:
    return json.loads((out / "rounds.json").read_text())


def test_rounds_go_on_from_the_better_model_until_one_does_not_help(
    iterate: Callable[..., int], tmp_path: Path, toy_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = RoundsWorld([0.4, 0.5, 0.5])
    assert iterate(world) == 0
    start, each = ["write_prompts", "generate_images", "geneval"], ["write_prompts", "build_preferences", "dpo"]
    assert [name for name, *_ in world.commands] == start + 2 * [*each, "generate_images", "geneval"]
    drawn = [flags["--model"] for name, flags, _ in world.commands if name == "generate_images"]
    tuned = [str(tmp_path / f"out/round_{number}/dpo") for number in (1, 2)]
    assert drawn == [str(toy_checkpoint), *tuned]
    trained = [flags["--model"] for name, flags, _ in world.commands if name == "dpo"]
    assert trained == [str(toy_checkpoint), tuned[0]]
    seeds = [flags["--seed"] for name, flags, _ in world.commands if name == "write_prompts"]
    assert len(set(seeds)) == 3  # held out, and every round its own
    assert [entry["value"] for entry in rounds(tmp_path / "out")] == [0.4, 0.5, 0.5]
    best = json.loads(capsys.readouterr().out.splitlines()[-1])["best"]
    assert (best["round"], best["model"]) == (1, tuned[0])


def test_tasks_are_those_of_the_rounds_and_not_of_what_is_measured(iterate: Callable[..., int]) -> None:
    world = RoundsWorld([0.4, 0.4])
    assert iterate(world, "--tags", "colors", "position") == 0
    held_out, drawn_for = (words for name, _, words in world.commands if name == "write_prompts")
    assert "--tags" not in held_out
    place = drawn_for.index("--tags")
    assert drawn_for[place + 1 : place + 3] == ["colors", "position"]


UNSEEN = ["--unseen_pairs", "True", "--prompts", 8, "--heldout_prompts", 8]


def halves(world: World) -> list[list[str]]:
    """Classes of what is measured, and of the pairs."""
    written = [words for name, _, words in world.commands if name == "write_prompts"]
    assert all(words[words.index("--split") + 1] == "heldout" for words in written)
    return [words[words.index("--classes") + 1 :] for words in written]


@pytest.mark.parametrize("classes", [[], [*list(CLASSES)[:20], list(CLASSES)[0]]])
def test_unseen_pairs_and_what_is_measured_share_no_class(iterate: Callable[..., int], classes: list[str]) -> None:
    world = RoundsWorld([0.4, 0.4])
    assert iterate(world, *UNSEEN, "--tags", "colors", *(["--classes", *classes] if classes else [])) == 0
    world.check_understood()
    measured, drawn = halves(world)
    assert sorted([*measured, *drawn]) == sorted(set(classes or CLASSES)) and abs(len(measured) - len(drawn)) < 2


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tags", "counting"], "counting"),
        (["--heldout", "mine.jsonl"], "leave --heldout out"),
        (["--classes", "cat", "cat"], "other classes than 'cat'"),
        (["--prompts", 360], "--prompts 360 with --unseen_pairs: two_object has only"),
        (["--heldout_prompts", 240], "--heldout_prompts 240 with --unseen_pairs: two_object has only"),
    ],
)
def test_what_unseen_pairs_cannot_be_is_refused(
    iterate: Callable[..., int], flags: list, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = RoundsWorld([])
    assert iterate(world, *UNSEEN, *flags) == 2
    assert said in capsys.readouterr().err and not world.commands and not (tmp_path / "out").exists()


@pytest.mark.parametrize("flag", ["--tags", "--classes", "--colours"])
def test_names_nobody_knows_are_refused_before_anything_is_done(
    iterate: Callable[..., int], flag: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = RoundsWorld([])
    assert iterate(world, flag, "foo") == 2
    assert "unknown" in capsys.readouterr().err and not world.commands and not (tmp_path / "out").exists()


def test_rounds_are_limited(iterate: Callable[..., int], tmp_path: Path) -> None:
    assert iterate(RoundsWorld([0.1, 0.2, 0.3, 0.4]), "--rounds", 2) == 0
    assert len(rounds(tmp_path / "out")) == 3


def test_a_stopped_job_goes_on_and_a_finished_one_does_nothing(iterate: Callable[..., int], tmp_path: Path) -> None:
    world = RoundsWorld([0.4, 0.5, 0.3])
    world.fails_at = "dpo"
    assert iterate(world) == 3
    before = len(world.commands)
    world.fails_at = ""
    assert iterate(world) == 0
    assert world.commands[before][0] == "dpo" and len(rounds(tmp_path / "out")) == 3
    after = len(world.commands)
    assert iterate(world) == 0 and len(world.commands) == after
    assert iterate(world, "--rounds", 1) == 0 and len(world.commands) == after


def test_every_command_is_one_its_script_understands(iterate: Callable[..., int], tmp_path: Path) -> None:
    world = RoundsWorld([0.4, 0.5, 0.3])
    assert iterate(world, "--classes", "cat", "wine glass", "--colours", "red") == 0
    world.check_understood()


def test_another_job_in_the_folder_and_bad_settings_are_refused(
    iterate: Callable[..., int], image_adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert iterate(RoundsWorld([0.4, 0.3])) == 0
    bad = tmp_path / "bad.yaml"
    bad.write_text("betta: 0.1\n")
    short = tmp_path / "short.yaml"
    short.write_text("max_length: 7\n")
    for changes, words in (
        (["--guidance_scale", 2], "was made with guidance_scale 3.0, not 2.0"),
        (["--run", bad], "betta"),
        (["--rounds", 0], "at least 1"),
        (["--run", short], "max_length 7 of --run has no room for a picture"),
    ):
        assert iterate(RoundsWorld([]), *changes) == 2
        assert words in capsys.readouterr().err
    assert iterate(RoundsWorld([]), "--model", image_adapter) == 2  # the configuration says full
    assert "tuning full needs a checkpoint but" in capsys.readouterr().err


def test_rounds_may_start_from_an_adapter(iterate: Callable[..., int], image_adapter: Path, tmp_path: Path) -> None:
    world, run = RoundsWorld([0.4, 0.3]), tmp_path / "lora.yaml"
    run.write_text("tuning: lora\n")
    assert iterate(world, "--model", image_adapter, "--run", run) == 0
    trained = [flags["--model"] for name, flags, _ in world.commands if name == "dpo"]
    assert trained == [str(image_adapter)]


def test_a_model_that_is_none_is_refused_before_anything_is_written(
    iterate: Callable[..., int], vq_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, words in ((tmp_path / "none", "none is not a folder"), (vq_dir, "a model of type 'unified_vq'")):
        assert iterate(RoundsWorld([]), "--model", model) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_commands_run_in_the_same_python(tmp_path: Path) -> None:
    script = load_script(SCRIPT)
    assert commands.subprocess is subprocess
    script.step(tmp_path, "touch", ["-c", f"open({str(tmp_path / 'x')!r}, 'w')"])
    assert (tmp_path / "x").exists() and (tmp_path / "done/touch").exists()
    with pytest.raises(SystemExit) as stop:
        script.step(tmp_path, "fail", ["-c", "raise SystemExit(5)"])
    assert stop.value.code == 5 and not (tmp_path / "done/fail").exists()
