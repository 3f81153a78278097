"""recipes/demo.py: the order of its steps, who is measured when, that a stopped one goes on, its page and its result.

The long parts leave what they would leave without being done, but for the last test, which runs a toy through them.
"""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import ROOT
from fake_demo import World
from toys import make_tokenizer, save_llm

from unified import UnifiedForCausalLM
from unified.checkpoints.extension import extend
from unified.checkpoints.publishing import publish
from unified.training.arguments import UnifiedTrainingArguments
from unified.training.tuning import prepare

SCRIPT = "recipes/demo.py"
CONFIGS = ROOT / "recipes/configs/smollm2_scenes"
REPLAY = "data_prep/replay/smollm2_135m_instruct.jsonl"
DATA = ["render_objects", "write_conversations", "encode_rows", "render", "encode_rows", "fine_tune"]
SCORES = ["generate_folder", "score_new", "generate_folder", "score_known"]


def make_start(base: Path, folder: Path, name: Path) -> Path:
    """A published adapter of `base`, which is to be found at `name`."""
    args = UnifiedTrainingArguments(output_dir=str(folder), tuning="lora", lora_positions="image_tokens", use_cpu=True)
    model = prepare(UnifiedForCausalLM.from_pretrained(base), args)
    with torch.no_grad():
        for weight, parameter in model.named_parameters():
            if "lora_B" in weight:
                parameter.fill_(0.01)  # an update; one that is zero was never trained, and is not published
    model.save_pretrained(folder / "trained")
    publish(folder / "trained", folder / "start", base=str(name), made_with=["make base"])
    return folder / "start"


Run = Callable[..., int]


@pytest.fixture
def start(toy_checkpoint: Path, tmp_path: Path) -> Path:
    return make_start(toy_checkpoint, tmp_path, tmp_path / "base")


@pytest.fixture
def world(toy_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(toy_checkpoint)
    made.take_over(monkeypatch)
    monkeypatch.chdir(ROOT)
    return made


@pytest.fixture
def run(run_script: Callable[..., int], start: Path, tmp_path: Path) -> Run:
    """Run the demo as it is shipped, from the toy."""
    given = ["--config", CONFIGS / "demo.yaml", "--start", start, "--out_dir", tmp_path / "out"]
    return lambda *changes: run_script(SCRIPT, *given, *changes)


def page(tmp_path: Path) -> str:
    return (tmp_path / "out/index.html").read_text(encoding="utf-8")


def result(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "out/result.json").read_text())


def test_it_is_measured_before_with_the_start_and_after_with_what_was_trained(
    world: World, run: Run, start: Path, tmp_path: Path
) -> None:
    assert run() == 0
    assert world.names == ["convert", "extend", "load", *DATA, "load", "load", *SCORES, "load", *SCORES]
    assert world.told("load") == [start, tmp_path / "out/demo_sft", start, tmp_path / "out/demo_sft"]
    drawn = [asdict(args) for args in world.told("generate_folder")]
    assert [args.pop("model") for args in drawn] == [str(start)] * 2 + [str(tmp_path / "out/demo_sft")] * 2
    outs = [args.pop("out") for args in drawn]
    assert all("/before/" in out for out in outs[:2]) and all("/after/" in out for out in outs[2:])
    assert drawn[:2] == drawn[2:]  # the same prompts, seeds and sampling
    ((model, data, args, *_),) = [given for name, given in world.calls if name == "fine_tune"]
    assert data.train_files == [str(tmp_path / "out/encoded_objects"), str(tmp_path / "out/encoded_train"), REPLAY]
    assert model.model == str(start) and args.max_minutes == 15 and args.resume and args.tuning == "lora"


def test_a_base_that_is_there_is_not_made(world: World, run: Run, tmp_path: Path, toy_checkpoint: Path) -> None:
    shutil.copytree(toy_checkpoint, tmp_path / "base")
    assert run() == 0 and world.names[0] == "load"


def test_what_the_model_says_and_draws_is_seen_before_anything_else_is_done(
    world: World, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []
    world.watch["render_objects"] = lambda: seen.extend([page(tmp_path), capsys.readouterr().out])
    assert run() == 0
    text, printed = seen
    assert "start &lt;b&gt;Paris" in text and text.count("data:image/png;base64,") == 16 + 8 * 4 + 2
    first, rest = text[text.index("<h1>") :].split("<h2>", 1)
    for step in ("Running: render new objects", "fine-tune demo_sft (at most 15 minutes)", "score known after"):
        assert step in first and step not in rest
    assert "http-equiv=refresh" in text and "recipes/demo.py --config" in first
    assert "assistant: start <b>Paris</b>" in printed and f"open {tmp_path / 'out/index.html'}" in printed
    assert "http-equiv=refresh" not in page(tmp_path) and "Not finished" not in page(tmp_path)


@pytest.mark.parametrize("stop", ["score_new", "fine_tune"])
def test_a_stopped_demo_goes_on_and_a_finished_one_does_nothing(
    world: World, run: Run, stop: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world.fails_at = stop
    assert run() == 2
    step = {"score_new": "score new before", "fine_tune": "fine-tune demo_sft"}[stop]
    assert f"This demo was stopped in &#39;{step}&#39;" in page(tmp_path).split("<h2>")[0]
    assert re.search(rf"\[{step}\] cut after \d+ s: stopped; to go on: ", capsys.readouterr().out)
    assert list(result(tmp_path))[0] == "complete" and not result(tmp_path)["complete"]
    assert result(tmp_path)["cut"] == {step: "stopped"} and "recipes/demo.py" in result(tmp_path)["go_on"]
    done, world.fails_at = len(world.names), ""
    assert run() == 0 and world.names[done:][:2] == {"score_new": [stop, "load"], "fine_tune": [stop, "load"]}[stop]
    assert result(tmp_path)["complete"] and not result(tmp_path)["cut"]
    count = len(world.calls)
    assert run() == 0 and len(world.calls) == count


def test_a_training_that_time_has_cut_is_said_first_and_goes_on(
    world: World, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world.trained = [69, 340]
    assert run() == 0
    first = page(tmp_path).split("<h2>")[0]
    assert "fine-tune demo_sft: Cut off after 69 of 340 steps" in first and "recipes/demo.py --config" in first
    printed = capsys.readouterr().out
    assert "69 of 340 steps; to go on: " in printed and "half-trained" in printed.splitlines()[-2]
    assert result(tmp_path)["cut"] == {"fine-tune demo_sft": "69 of 340 steps"} and not result(tmp_path)["complete"]
    count = len(world.names)
    (tmp_path / "out/after/known/of_the_shorter_one").touch()
    assert run() == 0  # what was made of the shorter training is made again, the rest is kept
    assert world.names[count:] == ["fine_tune", "load", *SCORES]
    assert not (tmp_path / "out/after/known/of_the_shorter_one").exists()
    assert "Cut off" not in page(tmp_path) and result(tmp_path)["complete"]


def test_the_page_has_both_sides(world: World, run: Run, tmp_path: Path) -> None:
    assert run("--new_prompts", "a photo of a <star>", "--known_prompts", "a cat", "a dog") == 0
    text = page(tmp_path)
    for part in ("a photo of a &lt;star&gt; (seed 0)", "a dog (seed 2)", "12 % → 88 %", "seeds 0 to 2", "4x4, 8x8"):
        assert part in text
    for part in (
        "start &lt;b&gt;Paris",
        "demo_sft &lt;b&gt;Paris",
        "star, heart, key",
        "OpenMoji 17",
        "render train",
        "a &lt;machine&gt;: cpu, float32, 2 threads",
    ):
        assert part in text
    assert text.index("start &lt;b&gt;Paris") < text.index("demo_sft &lt;b&gt;Paris")
    assert "after less before on the same prompts and seeds: -0.250 ± 0.250" in text
    # one picture it was trained on, both sides of three prompts, their four scales, two in each chat, the curves
    assert text.count("data:image/png;base64,") == 1 + 6 + 12 + 4 + 1
    found = result(tmp_path)
    assert found["new"] == {"before": [0.125, 0.03, 96], "after": [0.875, 0.03, 96]}
    assert found["known_change"] == [-0.25, 0.25]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--start", "weights/scenes-vq"], ["weights/scenes-vq", "unified_vq"]),
        (["--runs", "/nowhere.yaml"], ["/nowhere.yaml", "does not exist"]),
        (["--text_files", "/nowhere.jsonl"], ["/nowhere.jsonl is not a file"]),
        (["--heldout_prompts", 3], ["heldout_prompts", "at least 4"]),
        (["--pictures", "star"], ["1 pictures and 2 picture_questions"]),
        (["--pictures", "star", "unicorn"], ["unicorn"]),
    ],
)
def test_bad_input_is_one_line_before_anything_is_made(
    world: World, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list, words: list[str]
) -> None:
    assert run(*changes) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ") and printed.count("\n") == 1
    assert not [word for word in words if word not in printed], printed
    assert not world.calls and not (tmp_path / "out").exists()


def test_other_settings_other_weights_and_another_base_are_refused(
    world: World, run: Run, start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    assert run("--train_scenes", 5) == 2 and "train_scenes 3000, not 5" in capsys.readouterr().err
    shutil.rmtree(tmp_path / "base")
    extend(save_llm(tmp_path / "llm", make_tokenizer()), ROOT / "weights/scenes-vq", tmp_path / "base")
    assert run() == 2 and "is not the base of the adapter" in capsys.readouterr().err
    with (start / "adapter_model.safetensors").open("ab") as file:
        file.write(b" ")
    assert run() == 2 and "truncated or damaged" in capsys.readouterr().err


def test_from_nothing_the_trainings_follow_each_other(
    world: World, run_script: Callable[..., int], tmp_path: Path
) -> None:
    given = ["--config", CONFIGS / "demo_full.yaml", "--out_dir", tmp_path / "out"]
    assert run_script(SCRIPT, *given) == 0
    data = ["render", "encode_rows"] * 2
    assert world.names == ["convert", "extend", *data, "fine_tune", "fine_tune", "load"]
    trainings = [given for name, given in world.calls if name == "fine_tune"]
    assert [model.model for model, *_ in trainings] == [
        str(tmp_path / "out" / name) for name in ("extended", "1_align")
    ]
    assert trainings[1][1].train_files.count(REPLAY) == 40
    assert trainings[1][1].eval_files == [str(tmp_path / "out/encoded_eval")]
    assert world.told("load") == [tmp_path / "out/2_sft"]
    text = page(tmp_path)
    assert "learnt to draw" in text and "Drawn from prompts" in text and "before" not in text.split("<h2>Facts")[0]
    count = len(world.calls)
    assert run_script(SCRIPT, *given) == 0 and len(world.calls) == count


def test_a_first_training_that_goes_on_undoes_the_second(
    world: World, run_script: Callable[..., int], tmp_path: Path
) -> None:
    given = ["--config", CONFIGS / "demo_full.yaml", "--out_dir", tmp_path / "out"]
    world.trained = [7, 340]
    assert run_script(SCRIPT, *given) == 0
    (tmp_path / "out/2_sft/of_the_shorter_one").touch()
    count = len(world.names)
    assert run_script(SCRIPT, *given) == 0 and world.names[count:] == ["fine_tune", "fine_tune", "load"]
    assert not (tmp_path / "out/2_sft/of_the_shorter_one").exists()


def test_the_page_of_a_checkpoint(run_script: Callable[..., int], toy_checkpoint: Path, tmp_path: Path) -> None:
    flags = ["--start", toy_checkpoint, "--out_dir", tmp_path / "out", "--seed", 3, "--guidance_scale", 2]
    asked = ["--pictures", "purple umbrella", "--picture_questions", "What color is the umbrella?"]
    assert run_script(SCRIPT, *flags, *asked, "--known_prompts", "a photo of a cat", "two dogs") == 0
    text = page(tmp_path)
    for part in ("a photo of a cat (seed 3)", "two dogs (seed 4)", "What is the capital of France?", "ask and draw"):
        assert part in text
    assert "rendered from: a photo of a purple umbrella" in text and "Losses" not in text and "Scores" not in text


def test_a_toy_is_fine_tuned_and_scored(
    run_script: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    base = tmp_path / "toy_base"
    extend(save_llm(tmp_path / "llm", make_tokenizer()), ROOT / "weights/scenes-vq", base)
    start = make_start(base, tmp_path, tmp_path / "base")
    world = World(base)
    real = ("load", "converse", "draw_by_scale", "fine_tune", "render_objects", "write_conversations", "render")
    world.take_over(
        monkeypatch, *real, "encode_rows", "generate_folder", "score_known"
    )  # the other ones take a minute
    keys: dict[str, Any] = yaml.safe_load((CONFIGS / "demo_sft.yaml").read_text())
    sft = tmp_path / "run.yaml"
    sft.write_text(
        yaml.safe_dump(keys | {"max_steps": 2, "logging_steps": 1, "max_length": 512, "first_trained_layer": 1})
    )
    small = ["--train_scenes", 4, "--repeat", 1, "--heldout_prompts", 4, "--runs", sft]
    given = ["--config", CONFIGS / "demo.yaml", "--start", start, "--out_dir", tmp_path / "out", *small]
    assert run_script(SCRIPT, *given, "--new_prompts", "a photo of a star", "--known_prompts", "a photo of a cat") == 0
    text = page(tmp_path)
    assert "no training log" not in text and "12 % → 88 %" in text and result(tmp_path)["complete"]
    steps_run = [step["step"] for step in json.loads((tmp_path / "out/steps.json").read_text())]
    assert len(steps_run) == len(set(steps_run)) == 17
    assert len(list((tmp_path / "out/after/new").glob("*/samples/0000.png"))) == 96
