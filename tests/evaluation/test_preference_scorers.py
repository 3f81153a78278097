"""Scorers on detections and pictures made up for them, the pairs scores give, and answers made wrong."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from pairs import IMAGE, codes, turn
from PIL import Image
from toy_clip import save_clip

from unified.data.preferences import modality
from unified.evaluation.metrics import GENEVAL_COLOURS
from unified.evaluation.preference_scorers import (
    ChoiceScorer,
    ClipScorer,
    MarginScorer,
    VerdictScorer,
    choose_pairs,
    detector_margin,
    question_pair,
    read_choices,
    wrong_answer,
)

RED, BLUE = GENEVAL_COLOURS.index("red"), GENEVAL_COLOURS.index("blue")
TWO_CATS = {
    "tag": "counting",
    "include": [{"class": "cat", "count": 2}],
    "exclude": [{"class": "cat", "count": 3}],
    "prompt": "a photo of two cats",
}
RED_CAT = {
    "tag": "colors",
    "include": [{"class": "cat", "count": 1, "color": "red"}],
    "prompt": "a photo of a red cat",
}


def box(score: float, colour: int = RED) -> list[float]:
    return [0, 0, 10, 10, score, colour]


class FakeDetector:
    """Finds as many cats as a picture is wide, each less surely than the one before."""

    name = "fake"

    def detect(self, images: Sequence[Image.Image]) -> list[dict[str, list[list[float]]]]:
        return [{"cat": [box(0.99 - 0.01 * number) for number in range(image.width)]} for image in images]


def cats(*counts: int) -> list[Image.Image]:
    return [Image.new("RGB", (count, 1)) for count in counts]


def test_verdict_and_margin_score_every_picture_of_every_prompt() -> None:
    images = [cats(1, 2, 3), cats(1)]
    verdict, margin = (kind(FakeDetector(), ["cat"]) for kind in (VerdictScorer, MarginScorer))
    assert verdict.score([TWO_CATS, RED_CAT], images) == [[0, 1, 0], [1]]
    scores = margin.score([TWO_CATS, RED_CAT], images)
    assert scores == [pytest.approx([0.37375, 1.98625, 0.26875]), [pytest.approx(1.99)]]


@pytest.mark.parametrize(
    ("metadata", "boxes", "expected"),
    [
        (TWO_CATS, [box(0.9), box(0.6)], (0.6 + (0.75 + 1) / 2) / 2),
        (TWO_CATS, [box(0.9), box(0.8), box(0.7)], (0.3 + (0.85 + 0.3) / 2) / 2),
        (TWO_CATS, [box(0.9)], (0 + (0.45 + 1) / 2) / 2),
        (TWO_CATS, [], (0 + (0 + 1) / 2) / 2),
        (RED_CAT, [box(0.9, BLUE), box(0.4)], 0.4),
        (RED_CAT, [box(0.9, BLUE)], 0.0),
        (RED_CAT, [], 0.0),
    ],
)
def test_the_margin_is_half_the_worst_score_and_half_the_mean(
    metadata: dict, boxes: list[list[float]], expected: float
) -> None:
    assert detector_margin(metadata, {"cat": boxes, "dog": [box(1.0)]}) == pytest.approx(expected)


def test_a_right_picture_scores_above_every_wrong_one() -> None:
    scorer = MarginScorer(FakeDetector(), ["cat"])
    barely, nearly = [box(0.31)], [box(0.29)]
    assert scorer.score_detections(RED_CAT, {"cat": barely}) > 1 > scorer.score_detections(RED_CAT, {"cat": nearly})


@pytest.mark.parametrize(
    ("metadata", "words"), [({"prompt": "a cat"}, "not a GenEval prompt"), (TWO_CATS, "does not know 'cat'")]
)
def test_prompts_the_detector_cannot_score_are_refused(metadata: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        VerdictScorer(FakeDetector(), ["dog"]).check(metadata)


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random CLIP with a tokenizer of single bytes."""
    return save_clip(tmp_path_factory.mktemp("clip"))


def test_clip_scores_do_not_depend_on_the_batch(clip_dir: Path) -> None:
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (20, 20, 3), dtype=np.uint8)) for _ in range(5)]
    prompts = [{"prompt": "a red cat"}, {"prompt": "a photo of many blue dogs in the garden"}]  # beyond 16 tokens
    small, large = (
        ClipScorer(str(clip_dir), batch_size=size).score(prompts, [images[:2], images[2:]]) for size in (2, 32)
    )
    assert [len(own) for own in small] == [2, 3]
    for few, many in zip(small, large, strict=True):
        assert few == pytest.approx(many, abs=1e-3) and all(-100 <= score <= 100 for score in few)
    assert len({round(score, 3) for own in small for score in own}) == 5


def test_a_folder_without_clip_is_refused(toy_checkpoint: Path, tmp_path: Path) -> None:
    for folder, words in ((tmp_path, "holds no model"), (toy_checkpoint, "of type 'unified'")):
        with pytest.raises(ValueError, match=words):
            ClipScorer(str(folder))


def test_choices_of_people_score_the_two_pictures_they_name(tmp_path: Path) -> None:
    path = tmp_path / "choices.jsonl"
    path.write_text(json.dumps({"prompt": "a", "chosen": 2, "rejected": 0}) + "\n")
    scorer = ChoiceScorer(read_choices(path))
    (scores, none) = scorer.score([{"prompt": "a"}, {"prompt": "b"}], [cats(1, 1, 1, 1), cats(1, 1)])
    assert (scores[0], scores[2]) == (0, 1) and math.isnan(scores[1]) and all(map(math.isnan, none))
    with pytest.raises(ValueError, match="choice 2 over 0 for 'a', which has pictures 0 to 1"):
        scorer.score([{"prompt": "a"}], [cats(1, 1)])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("no", "not JSON"),
        ('["a", 1, 0]', "not an object"),
        ('{"prompt": "b", "chosen": 1}', "write {"),
        ('{"prompt": "b", "chosen": 1, "rejected": true}', "write {"),
        ('{"prompt": "b", "chosen": 1, "rejected": 1}', "name two"),
        ('{"prompt": "b", "chosen": -1, "rejected": 1}', "from 0 on"),
        ('{"prompt": "a", "chosen": 1, "rejected": 2}', "second choice"),
    ],
)
def test_bad_choices_are_refused_by_line(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "choices.jsonl"
    path.write_text(json.dumps({"prompt": "a", "chosen": 2, "rejected": 0}) + f"\n{line}\n")
    with pytest.raises(ValueError, match=rf"choices.jsonl:2: .*{words}"):
        read_choices(path)
    with pytest.raises(ValueError, match="is not a file"):
        read_choices(tmp_path / "none")


@pytest.mark.parametrize(
    ("scores", "max_pairs", "min_gap", "expected"),
    [
        ([0, 1, 0, 1], 1, 0, ([(1, 2)], 0)),
        ([0, 1, 0, 1], 2, 0, ([(1, 2), (3, 0)], 0)),
        ([1, 1, 0, 1], 2, 0, ([(0, 2)], 1)),
        ([1, 1, 1, 1], 2, 0, ([], 2)),
        ([0.3, 0.5, 0.1], 9, 0, ([(1, 2)], 0)),
        ([0.3, 0.5], 1, 0.2, ([], 1)),
        ([0.3, 0.51], 1, 0.2, ([(1, 0)], 0)),
        ([math.nan, 1, math.nan, 0], 2, 0, ([(1, 3)], 0)),
        ([math.nan, 1, math.nan], 2, 0, ([], 0)),
    ],
)
def test_pairs_of_scores(scores: list[float], max_pairs: int, min_gap: float, expected: tuple) -> None:
    kept, dropped = choose_pairs(scores, [codes(number) for number in range(len(scores))], max_pairs, min_gap)
    assert ([tuple(pair) for pair in kept], dropped) == (expected[0], expected[1])


def test_the_same_picture_twice_is_no_pair() -> None:
    assert choose_pairs([0, 1], [codes(1), codes(1)]) == ([], 1)


@pytest.mark.parametrize(
    ("answer", "allowed"),
    [
        ("Yes.", {"No."}),
        ("Two.", {"One.", "Three.", "Four."}),
        ("Left.", {"Right.", "Above.", "Below."}),
        ("The orange is blue.", {f"The orange is {colour}." for colour in GENEVAL_COLOURS if colour != "blue"}),
        ("A photo of a cat.", {None}),
    ],
)
def test_answers_are_made_wrong_by_one_word_of_the_same_kind(answer: str, allowed: set[str | None]) -> None:
    rng = np.random.default_rng(0)
    assert {wrong_answer(answer, rng) for _ in range(200)} == allowed


def test_a_row_about_an_image_becomes_a_pair() -> None:
    asked = [
        turn("user", IMAGE, "How many?"),
        turn("assistant", "Two."),
        turn("user", "Red?"),
        turn("assistant", "No."),
    ]
    row = {"messages": asked, "codes": [codes(1)], "metadata": "{}", "source": "scenes"}
    pair = question_pair(row, np.random.default_rng(0))
    assert pair["messages"] == asked[:1] and pair["chosen"] == asked[1:2] and pair["codes"] == [codes(1)]
    assert pair["rejected"] != pair["chosen"] and modality(pair) == "understanding" and pair["source"] == "scenes"
    for other in (
        {"messages": [turn("user", "Hi."), turn("assistant", "Yes.")], "codes": []},
        {"messages": [turn("user", "a cat"), turn("assistant", IMAGE)]},
        {"messages": [turn("user", IMAGE), turn("assistant", "A cat.")]},
        {"messages": [turn("user", IMAGE)]},
    ):
        assert question_pair(row | other, np.random.default_rng(0)) is None
