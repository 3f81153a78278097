"""Prompt sets: of their split, without repetitions, the same from the same seed, refused where there are too few."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from unified.evaluation.geneval_files import read_prompts
from unified.evaluation.metrics import geneval_verdict
from unified.scenes.detector_ceilings import true_detections
from unified.scenes.prompts import near_miss, renderable_prompts, sample_prompts
from unified.scenes.rendering import (
    CLASSES,
    COLOURS,
    TAGS,
    is_held_out_colouring,
    is_held_out_pair,
    sample_scene,
    tags_of,
)

OFFICIAL = Path("/work/shared/geneval/evaluation_metadata.jsonl")
SCRIPT = "eval/write_prompts.py"


def held_out(metadata):
    """Whether a prompt asks for a combination that training never shows."""
    names = [clause["class"] for clause in metadata["include"]]
    colourings = [(clause["class"], clause["color"]) for clause in metadata["include"] if "color" in clause]
    return is_held_out_pair(names[0], names[-1]) or any(is_held_out_colouring(*pair) for pair in colourings)


def test_a_set_is_shared_out_among_the_tasks_and_never_asks_twice():
    prompts = sample_prompts(200, seed=3)
    assert Counter(metadata["tag"] for metadata in prompts) == dict(zip(TAGS, [34, 34, 33, 33, 33, 33], strict=True))
    assert len({metadata["prompt"] for metadata in prompts}) == 200
    asked = {json.dumps(sorted(map(json.dumps, metadata["include"]))) for metadata in prompts}
    assert len(asked) == 200
    assert prompts == sample_prompts(200, seed=3) and prompts != sample_prompts(200, seed=4)
    assert not any(map(held_out, prompts))


def test_a_tasks_prompts_do_not_depend_on_the_other_tasks():
    both, alone = sample_prompts(40, tags=("colors", "position")), sample_prompts(20, tags=("position",))
    assert both[20:] == alone


def test_held_out_prompts_are():
    prompts = sample_prompts(100, split="heldout")
    assert {metadata["tag"] for metadata in prompts} == set(tags_of("heldout"))
    assert all(map(held_out, prompts))


def test_unseen_counts():
    prompts = sample_prompts(60, split="unseen_counts", counts=(5, 15))
    assert {metadata["include"][0]["count"] for metadata in prompts} == {5, 15}
    for metadata in prompts:
        (asked,), (limit,) = metadata["include"], metadata["exclude"]
        assert set(metadata) == {"tag", "include", "exclude", "prompt"} and metadata["tag"] == "counting"
        assert limit == {"class": asked["class"], "count": asked["count"] + 1}
        assert metadata["prompt"].startswith(f"a photo of {({5: 'five', 15: 'fifteen'})[asked['count']]} ")
        assert asked["class"][:3] in metadata["prompt"]


def test_all_there_are_can_be_asked_for_and_not_one_more():
    names, colours = ["cat", "dog", "cup"], ["red", "blue"]
    assert len(sample_prompts(3, tags=["single_object"], classes=names)) == 3
    with pytest.raises(ValueError, match="single_object has only 3 different prompts .* 4 were"):
        sample_prompts(4, tags=["single_object"], classes=names)
    possible = sum(not is_held_out_colouring(name, colour) for name in names for colour in colours)
    assert len(sample_prompts(possible, tags=["colors"], classes=names, colours=colours)) == possible
    with pytest.raises(ValueError, match="lower --count"):
        sample_prompts(possible + 1, tags=["colors"], classes=names, colours=colours)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"count": 5}, "each of 6 tasks"),
        ({"seed": -1}, "negative"),
        ({"split": "test"}, "heldout"),
        ({"tags": ["color"]}, "colors"),
        ({"tags": ["counting"], "split": "heldout"}, "colors"),
        ({"tags": ["colors"], "split": "unseen_counts"}, "counting"),
        ({"split": "unseen_counts", "counts": [4]}, "from 5 to 15"),
        ({"split": "unseen_counts", "counts": [16]}, "16 objects"),
        ({"split": "unseen_counts", "counts": []}, "no counts"),
        ({"classes": ["aple"]}, "apple"),
        ({"colours": ["grey"]}, "green"),
        ({"tags": ["two_object"], "classes": ["cat"]}, "choose more"),
    ],
)
def test_impossible_sets_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        sample_prompts(**{"count": 12} | settings)


def test_near_misses_are_never_true():
    rng = np.random.default_rng(0)
    for tag in TAGS:
        for _ in range(50):
            scene = sample_scene(tag, rng)
            missed = near_miss(scene.metadata, rng)
            assert geneval_verdict(scene.metadata, true_detections(scene))[0]
            assert not geneval_verdict(missed, true_detections(scene))[0]
            assert missed["tag"] == tag and "prompt" not in missed


@pytest.mark.skipif(not OFFICIAL.exists(), reason="GenEval's prompts lie outside of the repository")
def test_the_renderable_part_of_the_official_prompts():
    official = read_prompts(OFFICIAL)
    kept = renderable_prompts(official)
    assert (len(official), len(kept)) == (553, 436)
    fruit = renderable_prompts(official, ["colors"], ["apple", "banana", "orange"], list(COLOURS))
    assert fruit == [
        m for m in kept if m["tag"] == "colors" and m["include"][0]["class"] in ("apple", "banana", "orange")
    ]
    with pytest.raises(ValueError, match="none of 553"):
        renderable_prompts(official, ["colors"], ["apple"], ["black"])


def test_the_script_writes_what_the_scorer_reads(run_script, tmp_path, capsys):
    out = tmp_path / "sets" / "a.jsonl"
    assert run_script(SCRIPT, "--out", out, "--count", 12, "--seed", 1) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["prompts"] == 12 and said["tasks"] == dict.fromkeys(TAGS, 2)
    assert said["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert read_prompts(out) == sample_prompts(12, seed=1)
    again = tmp_path / "b.jsonl"
    assert run_script(SCRIPT, "--out", again, "--renderable", out, "--tags", "colors", "--classes", *CLASSES) == 0
    assert read_prompts(again) == [metadata for metadata in sample_prompts(12, seed=1) if metadata["tag"] == "colors"]
    assert [path.name for path in out.parent.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--count", 69, "--tags", "single_object"), "only 68"),
        (("--renderable", "nowhere.jsonl"), "nowhere.jsonl is not a file"),
        (("--renderable", "x", "--count", 3), "count 3 would have no effect: --renderable samples nothing"),
        (("--split", "everything"), "everything"),
    ],
)
def test_the_script_refuses_in_one_line(flags, words, run_script, tmp_path, capsys):
    assert run_script(SCRIPT, "--out", tmp_path / "a.jsonl", *flags) == 2
    error = capsys.readouterr().err
    assert words in error and "Traceback" not in error and not (tmp_path / "a.jsonl").exists()
