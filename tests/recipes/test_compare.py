"""recipes/compare.py: what each trial is told, what the table says, that a stopped comparison goes on; no training."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from fake_steps import World

ROOT = Path(__file__).parents[2]
SCRIPT = "recipes/compare.py"
TRIALS = {"slow": {}, "fast": {"learning_rate": 0.002}}


class TrialsWorld(World):
    """Writes a training's state: `fast` learns more, and the second seed a little less."""

    def shut_down(self, name: str, flags: dict[str, str], words: list[str]) -> int:
        if name == "geneval":
            Path(flags["--out"]).write_text(json.dumps({"value": 0.25}))
        if name == "sft":
            self.train(flags)
        return 0

    def train(self, flags: dict[str, str]) -> None:
        out = Path(flags["--output_dir"])
        (out / "checkpoint-7").mkdir(parents=True)
        (out / "model.safetensors").touch()
        loss = (3.0 if "fast" in str(out) else 4.0) + 0.1 * int(flags["--seed"])
        rates = [{"images_per_second": rate, "images_seen": 10.0 * rate, "step": 5} for rate in (1.0, 3.0, 2.0)]
        last = {"eval_image_loss": loss, "eval_text_loss": 0.5, "eval_scale_1_loss": 1.5, "step": 7}
        (out / "trainer_state.json").write_text(json.dumps({"log_history": [*rates, last]}))


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    world = TrialsWorld()
    world.take_over(monkeypatch)
    return world


@pytest.fixture
def compare(run_script: Callable[..., int], tmp_path: Path) -> Callable[..., int]:
    """Run the script on a YAML made of these keys; returns its exit status."""

    def run(**changes: object) -> int:
        keys = {"run": str(ROOT / "recipes/configs/tiny.yaml"), "out": str(tmp_path / "out"), "trials": TRIALS}
        config = tmp_path / "trials.yaml"
        config.write_text(yaml.safe_dump(keys | {"seeds": [0, 1], "minutes": 2.0} | changes))
        return run_script(SCRIPT, "--config", config)

    return run


def test_the_table_has_the_best_first_and_the_spread_of_seeds(
    world: World, compare: Callable[..., int], tmp_path: Path
) -> None:
    assert compare(common={"eval_files": ["a", "b"]}) == 0
    header, _, first, second = (tmp_path / "out/table.md").read_text().splitlines()
    assert "scale 1" in header and "GenEval" in header
    assert first.startswith("| fast | learning_rate 0.002 | 2 | 3.050 ± 0.050 |")
    assert second.startswith("| slow | as the run | 2 | 4.050 ± 0.050 |") and "| 20.000 ± 0.000 | 2.000" in second
    _, _, told = world.commands[0]
    assert told[-5:] == ["--eval_files", "a", "b", "--learning_rate", "0.002"]
    assert told[told.index("--max_minutes") + 1] == "2.0"
    assert not [*tmp_path.rglob("*.safetensors"), *tmp_path.rglob("checkpoint-*")]


def test_a_second_run_trains_only_what_is_new(world: World, compare: Callable[..., int]) -> None:
    assert compare() == 0 and len(world.commands) == 4
    assert compare(trials=TRIALS | {"later": {"learning_rate": 0.003}}) == 0
    assert len(world.commands) == 6 and all("later-" in " ".join(words) for *_, words in world.commands[4:])


def test_pictures_are_scored_where_prompts_are_asked_for(
    world: World, compare: Callable[..., int], tmp_path: Path
) -> None:
    assert compare(prompts=200, trials={"slow": {}}, seeds=[0], keep_weights=True) == 0
    assert "geneval" in world.names
    assert "| 0.250 |" in (tmp_path / "out/table.md").read_text()
    assert list(tmp_path.rglob("model.safetensors"))


def test_a_mistake_in_the_last_trial_is_found_before_the_first(
    world: World, compare: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(trials=TRIALS | {"odd": {"learning_rat": 1}}) == 2
    assert "trial 'odd': unknown argument '--learning_rat'" in capsys.readouterr().err and not world.commands
    assert compare(trials={}) == 2
    assert "trials is empty" in capsys.readouterr().err


def test_a_trial_may_say_what_sft_takes(world: World, compare: Callable[..., int]) -> None:
    """What the machine is to do, and dicts."""
    kwargs = {"num_cycles": 0.25}
    keys = {"precision": "float32", "lr_scheduler_type": "cosine", "lr_scheduler_kwargs": kwargs}
    assert compare(common=keys, trials={"fast": {}}, seeds=[0]) == 0
    (words,) = [words for name, _, words in world.commands if name == "sft"]
    assert json.loads(words[words.index("--lr_scheduler_kwargs") + 1]) == kwargs


def test_other_settings_do_not_mix_with_earlier_trials(
    world: World, compare: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare() == 0
    assert compare(minutes=3.0) == 2
    assert "minutes" in capsys.readouterr().err
