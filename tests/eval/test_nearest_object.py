"""unified/scenes/nearest_object.py and its script: right pictures count, empty, mixed and wrong ones do not."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from PIL import Image

from unified.image_tokenizer.loading import load_vq
from unified.scenes import nearest_object_score
from unified.scenes.detector_ceilings import reconstructions
from unified.scenes.nearest_object import (
    STEPS,
    ObjectClassifier,
    Prediction,
    differs,
    draw,
    empty,
    items_of,
    moved,
    verdict,
)
from unified.scenes.new_objects import new_object_scenes
from unified.scenes.rendering import CLASSES, COLOURS

SCRIPT = "eval/nearest_object.py"
NEW = ("star", "heart", "key", "flag", "sock", "leaf")
FEW = (*list(CLASSES)[::4], *NEW)  # for what does not need all
Reconstruct = Callable[[Sequence[Image.Image]], list[Image.Image]]


@pytest.fixture(scope="module")
def reconstruct() -> Reconstruct:
    torch.set_num_threads(1)
    vq = load_vq(ROOT / "weights" / "scenes-vq", "cpu")
    return lambda images: reconstructions(vq, images)


@pytest.fixture(scope="module")
def one(reconstruct: Reconstruct) -> ObjectClassifier:
    return ObjectClassifier(1, [*CLASSES, *NEW], reconstruct)  # as eval/nearest_object.py has it


@pytest.fixture(scope="module")
def two(reconstruct: Reconstruct) -> ObjectClassifier:
    return ObjectClassifier(2, FEW, reconstruct)


def asked(count: int) -> list[list]:
    scenes = new_object_scenes(tuple(COLOURS), pairs=True)
    return [[(o.class_name, o.colour) for o in scene.objects] for scene in scenes if len(scene.objects) == count]


def right(classifier: ObjectClassifier, asked: Sequence, images: Sequence[Image.Image]) -> list[bool]:
    return [
        verdict(items, predictions)[0] for items, predictions in zip(asked, classifier.classify(images), strict=True)
    ]


@pytest.mark.parametrize("count", [1, 2])
def test_what_a_perfect_image_generator_draws_is_right(
    count: int, reconstruct: Reconstruct, request: pytest.FixtureRequest
) -> None:
    classifier = request.getfixturevalue({1: "one", 2: "two"}[count])
    items, images = asked(count), [draw(items) for items in asked(count)]
    for shown in (images, reconstruct(images)):
        scores = right(classifier, items, shown)
        assert sum(scores) / len(scores) >= 0.99
    scores = right(classifier, items, reconstruct([moved(image, *STEPS[i % 8]) for i, image in enumerate(images)]))
    assert sum(scores) / len(scores) > {1: 0.8, 2: 0.4}[count]  # the tokenizer shows new objects elsewhere worse
    assert all(10 < threshold < 30 for threshold in classifier.thresholds)


@pytest.mark.parametrize("count", [1, 2])
def test_other_objects_are_wrong(count: int, reconstruct: Reconstruct, request: pytest.FixtureRequest) -> None:
    classifier = request.getfixturevalue({1: "one", 2: "two"}[count])
    others = [[(name, None)] * count for name in list(CLASSES)[::3]]
    predictions = classifier.classify(reconstruct([draw(items) for items in others]))
    assert not any(verdict([(name, None)] * count, prediction)[0] for name in NEW for prediction in predictions)
    assert all(classifier.false_positive(items) < 0.01 for items in asked(count))


def test_an_empty_a_mixed_and_a_torn_picture_are_wrong(
    one: ObjectClassifier, two: ObjectClassifier, reconstruct: Reconstruct
) -> None:
    star, key = reconstruct([draw([("star", None)]), draw([("key", None)])])
    grey = Image.new("RGB", empty().size, (128, 128, 128))
    torn = star.copy()
    torn.paste(key.crop((0, 32, 64, 64)), (0, 32))
    wrong = [empty(), *reconstruct([empty()]), grey, Image.blend(star, key, 0.5), torn]
    for predictions in one.classify(wrong):
        assert not any(verdict([(name, None)], predictions)[0] for name in FEW), predictions
    assert [prediction.words(True) for prediction in one.classify([empty()])[0]] == ["nothing"]
    pair = draw([("star", None), ("key", None)])
    half = pair.copy()
    half.paste(empty().crop((0, 0, 32, 64)), (32, 0))
    swapped = draw([("key", None), ("star", None)])
    for image in (empty(), half, star, Image.blend(pair, swapped, 0.5)):
        assert not right(two, [[("star", None), ("key", None)]], [image])[0]


def test_means_of_any_two_objects_are_wrong_for_both(one: ObjectClassifier) -> None:
    pairs = [(first, second) for first in NEW for second in (*CLASSES, *NEW) if first != second]
    means = [Image.blend(draw([(first, None)]), draw([(second, None)]), 0.5) for first, second in pairs]
    for names, predictions in zip(pairs, one.classify(means), strict=True):
        assert not any(verdict([(name, None)], predictions)[0] for name in names)


def test_a_colour_counts_where_it_is_asked_for(one: ObjectClassifier) -> None:
    images = [draw([("sock", "blue")]), draw([("sock", None)])]
    assert right(one, [[("sock", None)], [("sock", None)]], images) == [True, True]
    assert right(one, [[("sock", "blue")], [("sock", "blue")]], images) == [True, False]
    assert not right(one, [[("sock", "green")]], images[:1])[0]
    assert differs(("sock", "red"), ("sock", "blue")) and differs(("key", None), ("sock", None))
    assert not differs(("sock", None), ("sock", "blue")) and not differs(("sock", "red"), ("sock", None))


def test_two_objects_count_in_either_order(two: ObjectClassifier) -> None:
    image = draw([("star", None), ("key", None)])
    for items in ([("star", None), ("key", None)], [("key", None), ("star", None)]):
        assert right(two, [items], [image]) == [True]
    assert verdict([("star", None), ("leaf", None)], two.classify([image])[0]) == (False, "star and key")


def test_predictions_in_words() -> None:
    assert Prediction("star", "red", 3.0, True).words(True) == "red star"
    assert Prediction("star", "red", 30.0, False).words(False) == "unclear, nearest star"


def test_pictures_of_another_size_are_refused(one: ObjectClassifier) -> None:
    with pytest.raises(ValueError, match="a picture of 32 x 64, not 64 x 64"):
        one.classify([Image.new("RGB", (32, 64))])


def test_only_prompts_that_can_be_scored_are_taken() -> None:
    star = {"class": "star", "count": 1}
    assert items_of({"tag": "colors", "include": [star | {"color": "red"}]}, NEW) == [("star", "red")]
    for metadata, words in (
        ({"tag": "counting", "include": [star | {"count": 2}]}, "task counting"),
        ({"tag": "position", "include": [star, star]}, "task position"),
        ({"tag": "two_object", "include": [star] * 3}, "task two_object"),
        ({"tag": "single_object", "include": [star | {"class": "dragon"}]}, "class 'dragon' is not known"),
    ):
        with pytest.raises(ValueError, match=words):
            items_of(metadata, NEW)


@pytest.fixture
def folders(run_script, reconstruct: Reconstruct, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`objects` as rendered without pairs, and `drawn`: four prompts with a right and a wrong picture each."""
    monkeypatch.setattr(nearest_object_score, "CLASSES", {name: CLASSES[name] for name in FEW[:4]})
    flags = ("--no_pairs", "--colours", "red", "--prompts", tmp_path / "prompts.jsonl")
    assert run_script("data_prep/render_objects.py", "--out", tmp_path / "objects", *flags) == 0
    lines = (tmp_path / "prompts.jsonl").read_text().splitlines()
    for number, index in enumerate((0, 6, 12, 18)):  # a star, natural and in three colours
        include = json.loads(lines[index])["include"]
        samples = tmp_path / "drawn" / f"{number:05d}" / "samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(lines[index] + "\n")
        pictures = reconstruct(
            [draw([(clause["class"], clause.get("color")) for clause in include]), draw([("key", None)])]
        )
        for sample, picture in enumerate(pictures):
            picture.save(samples / f"{sample:04d}.png")
    return tmp_path


def score(run_script, folder: Path) -> int:
    flags = ("--objects", folder / "objects", "--vq", ROOT / "weights" / "scenes-vq", "--out", folder / "result.json")
    return run_script(SCRIPT, "--images", folder / "drawn", *flags)


def test_the_script_scores_a_folder(run_script, folders: Path, capsys) -> None:
    assert score(run_script, folders) == 0
    result = json.loads((folders / "result.json").read_text())
    assert (result["metric"], result["value"], result["n"], result["stderr"]) == ("nearest_object_accuracy", 0.5, 8, 0)
    assert {tag: task["n"] for tag, task in result["tasks"].items()} == {"single_object": 2, "colors": 6}
    assert {name: group["n"] for name, group in result["taught"].items()} == {"shown": 4, "not shown": 4}
    assert result["confusion"]["a photo of a star"] == {"key": 1}
    assert result["ceiling"]["reconstructions"] == 1 and result["ceiling"]["moved"] > 0.5
    assert result["false_positive"] < 0.01 and set(result["thresholds"]) == {"1"}
    assert "ceiling: reconstructions 1.0000" in capsys.readouterr().err


def test_the_script_refuses_what_it_cannot_score(run_script, folders: Path, capsys) -> None:
    def refused(words: str) -> None:
        assert score(run_script, folders) == 2
        assert words in capsys.readouterr().err.splitlines()[-1]

    (folders / "drawn" / "settings.json").write_text(json.dumps({"vq_fingerprint": "0123456789abcdef"}))
    refused("came out of the tokenizer 0123456789ab")
    (folders / "drawn" / "settings.json").unlink()
    metadata = {"tag": "single_object", "include": [{"class": "dragon", "count": 1}], "prompt": "a photo of a dragon"}
    (folders / "drawn" / "00000" / "metadata.jsonl").write_text(json.dumps(metadata))
    refused("00000/metadata.jsonl: class 'dragon' is not known")
    (folders / "objects" / "metadata.jsonl").write_text('{"file_name": "x.png"}\n')
    refused("metadata.jsonl:1: no `objects`")
    (folders / "objects" / "metadata.jsonl").unlink()
    refused("has no metadata.jsonl")
