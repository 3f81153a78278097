"""unified/scenes/new_objects.py and data_prep/render_objects.py: objects Scenes has not, drawn as Scenes draws."""

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image

from unified.evaluation.geneval_files import read_prompts
from unified.scenes.glyphs import CLASSES, NEW_OBJECTS, SHARED_CELL, SINGLE_CELL
from unified.scenes.new_objects import captions, new_object_scenes, object_scene
from unified.scenes.rendering import BACKGROUND, CANVAS, COLOURS, draw_scene, sample_scene
from unified.scenes.tidy_layout import tidy

SCRIPT = "data_prep/render_objects.py"
Run = Callable[..., Path]


@pytest.fixture
def render(run_script: Callable[..., int], tmp_path: Path) -> Run:
    def run(*flags: object, out: str = "objects") -> Path:
        assert run_script(SCRIPT, "--out", tmp_path / out, *flags) == 0
        return tmp_path / out

    return run


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]


def test_scenes_of_known_objects_are_those_that_tidy_makes() -> None:
    rng = np.random.default_rng(0)
    for tag in ("single_object", "colors", "two_object", "color_attr"):
        scene = tidy(sample_scene(tag, rng))
        assert object_scene([(item.class_name, item.colour) for item in scene.objects]) == scene


def test_new_objects_are_no_classes_and_look_like_none() -> None:
    assert not NEW_OBJECTS.keys() & CLASSES.keys() and not set(NEW_OBJECTS.values()) & set(CLASSES.values())
    pictures = {n: np.asarray(draw_scene(object_scene([(n, None)])), dtype=int) for n in (*CLASSES, *NEW_OBJECTS)}
    for new, other in itertools.product(NEW_OBJECTS, pictures):
        assert (np.abs(pictures[new] - BACKGROUND).max(-1) > 60).sum() > 20
        # the 68 differ from each other by more than 9.6
        assert new == other or np.abs(pictures[new] - pictures[other]).mean() > 15, f"{new} looks like {other}"


def test_one_in_the_middle_or_two_side_by_side() -> None:
    scenes = new_object_scenes(("red",), pairs=True)
    assert Counter(scene.tag for scene in scenes) == {"single_object": 6, "colors": 6, "two_object": 30}
    for scene in scenes:
        cells = [item.cell for item in scene.objects]
        middle = (CANVAS - SINGLE_CELL) // 2
        assert cells in ([(middle, middle, SINGLE_CELL)], [(0, 16, SHARED_CELL), (32, 16, SHARED_CELL)])
    assert not any(scene.tag == "two_object" for scene in new_object_scenes((), pairs=False))


def test_captions_are_in_several_wordings() -> None:
    assert captions(object_scene([("star", "orange")]))[:2] == [
        "a photo of an orange star",
        "a picture of an orange star",
    ]
    assert captions(object_scene([("star", None), ("key", None)]))[2] == "a star and a key"


def test_the_folder_is_hugging_faces_imagefolder(render: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_UPDATE_DOWNLOAD_COUNTS", False)  # or it calls a host
    folder = render()
    assert len(records(folder)) == 6 + 6 * 4 + 30 == len(list(folder.glob("*.png")))
    rows = load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    row = next(row for row in rows if row["text"][0] == "a photo of a red star")
    drawn = draw_scene(object_scene([("star", "red")]))
    assert row["image"].size == (CANVAS, CANVAS) and row["image"].convert("RGB").tobytes() == drawn.tobytes()
    assert row["objects"] == [{"class": "star", "color": "red"}]


def test_count_keeps_every_object_and_the_seed_says_which_others(render: Run) -> None:
    def names(out: str, *flags: object) -> list[str]:
        return [record["file_name"] for record in records(render("--count", 10, *flags, out=out))]

    first = names("a")
    assert len(first) == 10 and {f"{name}.png" for name in NEW_OBJECTS} <= set(first)
    assert first == names("b") != names("c", "--seed", 1)
    plain = render("--no_pairs", "--colours", "", out="d")
    assert {path.name for path in plain.glob("*.png")} == {f"{name}.png" for name in NEW_OBJECTS}
    with Image.open(plain / "star.png") as star:
        assert star.size == (CANVAS, CANVAS)


def test_prompts_are_genevals_and_ask_for_more_than_was_shown(render: Run, tmp_path: Path) -> None:
    render("--no_pairs", "--colours", "red", "--prompts", tmp_path / "prompts.jsonl")
    asked = read_prompts(tmp_path / "prompts.jsonl")
    assert Counter(prompt["tag"] for prompt in asked) == {"single_object": 6, "colors": 60, "two_object": 30}
    assert asked[0] == {
        "tag": "single_object",
        "include": [{"class": "star", "count": 1}],
        "prompt": "a photo of a star",
    }
    assert {clause["color"] for prompt in asked for clause in prompt["include"] if "color" in clause} == set(COLOURS)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--colours", "red,gren"), "green"),
        (("--count", 5), "give 6 (every object once) to 60"),
        (("--count", 61), "give 6 (every object once) to 60"),
        (("--seed", -1), "must not be negative"),
    ],
)
def test_bad_settings_are_refused(flags: tuple, words: str, run_script, tmp_path: Path, capsys) -> None:
    assert run_script(SCRIPT, "--out", tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


def test_other_settings_into_the_same_folder_are_refused(render: Run, run_script, capsys) -> None:
    folder = render()
    assert render() == folder
    assert run_script(SCRIPT, "--out", folder, "--no_pairs") == 2
    assert "was made with pairs True" in capsys.readouterr().err
