"""recipes/teach.py: the order of its steps, who is measured when, that a stopped one goes on, and its page.

Commands leave what they would leave without being run, but for the last test, which runs a toy through all of them.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_steps import World
from PIL import Image
from toys import make_tokenizer, save_llm

from unified import UnifiedForCausalLM
from unified.checkpoints.extension import extend
from unified.checkpoints.publishing import publish
from unified.reports import steps
from unified.reports.demo_transcript import DemoTranscript, Drawing
from unified.reports.page import Turn
from unified.training.arguments import UnifiedTrainingArguments
from unified.training.tuning import prepare

ROOT = Path(__file__).parents[2]
SCRIPT = "recipes/teach.py"
CONFIG = ROOT / "recipes/configs/smollm2_scenes/teach.yaml"
LOOK = ["ask_and_draw", "generate_images", "nearest_object", "generate_images", "geneval"]
DATA = ["convert_captions", "encode_images", "render_scenes", "encode_images", "sft"]
RED, BLUE = (255, 0, 0), (0, 0, 255)


def make_start(base: Path, folder: Path, name: Path) -> Path:
    """A published adapter of `base`, which is to be found at `name`."""
    args = UnifiedTrainingArguments(output_dir=str(folder), tuning="lora", lora_positions="image_tokens", use_cpu=True)
    prepare(UnifiedForCausalLM.from_pretrained(base), args).save_pretrained(folder / "trained")
    publish(folder / "trained", folder / "start", base=str(name), made_with=["make base"])
    return folder / "start"


class TaughtWorld(World):
    """`base` is what `unified extend` makes."""

    def __init__(self, base: Path) -> None:
        super().__init__()
        self.base = base

    def shut_down(self, name: str, flags: dict[str, str], words: list[str]) -> int:
        out = Path(flags.get("--out", flags.get("--output_dir", "")))
        after = "after" in out.name
        if name == "unified":
            shutil.copytree(self.base, out)
        if name == "render_objects":
            self.render(out)
        if name == "render_scenes":
            out.mkdir()
            (out / "00000.parquet").touch()
        if name == "ask_and_draw":
            self.show(words, out, RED if flags["--model"].endswith("start") else BLUE)
        if name in ("geneval", "nearest_object"):
            self.score(out, after)
        if name == "sft":
            out.mkdir()
            log = [{"images_seen": 5.0, "image_loss": 4.0, "scale_1_loss": 2.0}]
            (out / "trainer_state.json").write_text(json.dumps({"log_history": log}))
        return 0

    def render(self, out: Path) -> None:
        out.mkdir()
        Image.new("RGB", (64, 64)).save(out / "star.png")
        (out / "metadata.jsonl").write_text(json.dumps({"file_name": "star.png", "text": ["a photo of a star"]}))

    def show(self, words: list[str], out: Path, colour: tuple[int, int, int]) -> None:
        prompts = words[words.index("--prompts") + 1 : words.index("--pictures")]
        image = Image.new("RGB", (4, 4), colour)
        chat = [Turn("user", "Capital?"), Turn("assistant", f"{out.name} <b>Paris</b>")]
        DemoTranscript(chat, [Drawing(prompt, seed, [image] * 4) for seed, prompt in enumerate(prompts)]).write(out)

    def score(self, out: Path, after: bool) -> None:
        task = {"value": 0.875 if after else 0.125, "stderr": 0.03, "images": 24, "n": 24}
        tasks = {"tasks": {"colors": task}, "ceiling": {"reconstructions": 0.99}, "n": 96}
        out.write_text(json.dumps(task | tasks))


Teach = Callable[..., int]


@pytest.fixture
def start(toy_checkpoint: Path, tmp_path: Path) -> Path:
    return make_start(toy_checkpoint, tmp_path, tmp_path / "base")


@pytest.fixture
def world(toy_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = TaughtWorld(toy_checkpoint)
    made.take_over(monkeypatch)
    return made


@pytest.fixture
def teach(run_script: Callable[..., int], start: Path, tmp_path: Path) -> Teach:
    """Run the recipe as it is shipped, from the toy."""
    given = ["--config", CONFIG, "--start", start, "--out_dir", tmp_path / "out"]
    return lambda *changes: run_script(SCRIPT, *given, *changes)


def test_it_is_measured_before_with_the_start_and_after_with_what_was_taught(
    world: World, teach: Teach, start: Path, tmp_path: Path
) -> None:
    assert teach() == 0
    made = ["convert_smollm2", "unified", "render_objects", "write_prompts"]
    assert world.names == [*made, *LOOK, *DATA, *LOOK]
    models = [flags["--model"] for name, flags, _ in world.commands if name in ("ask_and_draw", "generate_images")]
    assert models == [str(start)] * 3 + [str(tmp_path / "out/taught")] * 3
    drawn = [words for name, _, words in world.commands if name == "generate_images"]
    for before, after in zip(drawn[:2], drawn[2:], strict=True):  # the same prompts, seeds and sampling
        changed = [pair for pair in zip(before, after, strict=True) if pair[0] != pair[1]]
        assert len(changed) == 2 and all("before" in b or b == str(start) for b, _ in changed)
    told = next(words for name, _, words in world.commands if name == "sft")
    files = told[told.index("--train_files") + 1 :][:3]
    assert files == [str(tmp_path / "out/encoded_objects"), str(tmp_path / "out/encoded_replay"), steps.REPLAY]
    assert told[told.index("--model") + 1] == str(start) and told[told.index("--max_minutes") + 1] == "10.0"


def test_a_base_that_is_there_is_not_made(world: World, teach: Teach, tmp_path: Path, toy_checkpoint: Path) -> None:
    shutil.copytree(toy_checkpoint, tmp_path / "base")
    assert teach() == 0 and world.names[0] == "render_objects"


@pytest.mark.parametrize("stop", ["nearest_object", "sft"])
def test_a_stopped_job_goes_on_and_a_finished_one_does_nothing(world: World, teach: Teach, stop: str) -> None:
    world.fails_at = stop
    assert teach() == 3
    done, world.fails_at = len(world.commands), ""
    assert teach() == 0 and world.names[done] == stop
    count = len(world.commands)
    assert teach() == 0 and len(world.commands) == count


def test_every_command_is_one_its_script_understands(world: World, teach: Teach) -> None:
    assert teach() == 0
    world.check_understood("extend")


def test_the_page_has_both_sides(world: World, teach: Teach, tmp_path: Path) -> None:
    assert teach("--new_prompts", "a photo of a <star>", "--known_prompts", "a cat", "a dog") == 0
    text = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    for part in ("a photo of a &lt;star&gt; (seed 0)", "a dog (seed 2)", "12 % → 88 %", "seeds 0 to 2", "4x4, 8x8"):
        assert part in text
    for part in (
        "before &lt;b&gt;Paris",
        "after &lt;b&gt;Paris",
        "star, heart, key",
        "OpenMoji 17",
        "data_prep/render_objects.py",
    ):
        assert part in text
    assert text.index("before &lt;b&gt;Paris") < text.index("after &lt;b&gt;Paris")
    # one picture it was taught with, both sides of three prompts, their four scales, the curves
    assert text.count("data:image/png;base64,") == 1 + 6 + 12 + 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            ["--start", "weights/scenes-vq"],
            ["weights/scenes-vq holds no adapter", "2_lora"],
        ),
        (["--run", "/nowhere.yaml"], ["/nowhere.yaml", "does not exist"]),
        (["--heldout_prompts", 3], ["heldout_prompts", "at least 4"]),
        (["--pictures", "star"], ["1 pictures and 2 picture_questions"]),
        (["--pictures", "star", "unicorn"], ["unicorn"]),
    ],
)
def test_bad_input_is_one_line_before_anything_is_made(
    world: World, teach: Teach, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list, words: list[str]
) -> None:
    assert teach(*changes) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert not [word for word in words if word not in printed], printed
    assert not world.commands and not (tmp_path / "out").exists()


def test_other_settings_other_weights_and_another_base_are_refused(
    world: World, teach: Teach, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert teach() == 0
    assert teach("--replay_scenes", 5) == 2 and "replay_scenes 3000, not 5" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "base")
    extend(save_llm(tmp_path / "llm", make_tokenizer()), ROOT / "weights/scenes-vq", tmp_path / "base")
    assert teach() == 2 and "is not the base of the adapter" in capsys.readouterr().err
    with (start / "adapter_model.safetensors").open("ab") as file:
        file.write(b" ")
    assert teach() == 2 and "truncated or damaged" in capsys.readouterr().err


class RealWorld(TaughtWorld):
    """Runs the scripts in this process; SmolLM2 and the judge of new objects are faked, which take a minute."""

    def __init__(self, base: Path, run_script: Callable[..., int], patch: pytest.MonkeyPatch) -> None:
        super().__init__(base)
        self.run_script, self.patch = run_script, patch

    def shut_down(self, name: str, flags: dict[str, str], words: list[str]) -> int:
        if name in ("convert_smollm2", "unified", "nearest_object"):
            return super().shut_down(name, flags, words)
        place = next(index for index, word in enumerate(words) if Path(word).stem == name)
        argv = sys.argv
        status = self.run_script(*words[place:])
        self.patch.setattr(sys, "argv", argv)
        return status


def test_a_toy_is_taught_by_the_real_commands(
    run_script: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    base = tmp_path / "toy_base"
    extend(save_llm(tmp_path / "llm", make_tokenizer()), ROOT / "weights/scenes-vq", base)
    start = make_start(base, tmp_path, tmp_path / "base")
    RealWorld(base, run_script, monkeypatch).take_over(monkeypatch)
    keys: dict[str, Any] = yaml.safe_load((ROOT / "recipes/configs/smollm2_scenes/teach_sft.yaml").read_text())
    run = tmp_path / "run.yaml"
    run.write_text(yaml.safe_dump(keys | {"max_steps": 2, "logging_steps": 1, "max_length": 512}))
    small = ["--replay_scenes", 4, "--repeat", 1, "--heldout_prompts", 4, "--run", run]
    given = ["--config", CONFIG, "--start", start, "--out_dir", tmp_path / "out", *small]
    assert run_script(SCRIPT, *given, "--new_prompts", "a photo of a star", "--known_prompts", "a photo of a cat") == 0
    text = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    assert "no training log" not in text and "12 % → 88 %" in text
    steps_run = [step["step"] for step in json.loads((tmp_path / "out/steps.json").read_text())]
    assert len(steps_run) == len(set(steps_run)) == 19
    assert len(list((tmp_path / "out/new_after").glob("*/samples/0000.png"))) == 96
