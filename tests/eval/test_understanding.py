"""The Scenes understanding benchmark: what is asked, what answers are worth, and the scripts that ask and export."""

import itertools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, load_script

from unified import UnifiedConfig
from unified.models.messages import content_parts
from unified.scenes.understanding import (
    PARTS,
    SETTINGS,
    WORDINGS,
    Domain,
    Question,
    absent_classes,
    questions,
    score_answer,
    summary,
)

EIGHT = ("apple", "banana", "bear", "book", "car", "cat", "cup", "dog")
WORDS = {"1": "One.", "2": "Two.", "3": "Three.", "4": "Four."}


def told(question: Question) -> str:
    """The right answer as a trained model gives it."""
    truth = question.truth
    answers = {"counting": WORDS.get(truth, ""), "colour": f"The {question.about} is {truth}."}
    return answers.get(question.part, f"{truth[0].upper()}{truth[1:].removesuffix(' of')}.")


@pytest.fixture(scope="module")
def few() -> Domain:
    """Eight classes, whose reference scenes are counted once."""
    return Domain(classes=EIGHT)


def asked(domain: Domain, count: int, seed: int = 0, wordings: str = "training") -> list[Question]:
    return [question for part in PARTS for question in questions(part, count, seed, domain, wordings)]


@pytest.mark.parametrize("wordings", WORDINGS)
@pytest.mark.parametrize(("split", "layout"), list(itertools.product(("train", "heldout"), ("free", "tidy"))))
def test_right_answers_score_one(split: str, layout: str, wordings: str) -> None:
    domain = Domain(split, layout)
    found = summary(score_answer(question, told(question)) for question in asked(domain, 24, wordings=wordings))
    assert (found["value"], found["stderr"], found["unreadable"]) == (1, 0, 0)
    assert found["n"] == 24 * 8 and found["parts"]["existence"]["n"] == 24 * 4
    for setting in SETTINGS:
        assert found["existence"][setting] == {
            "accuracy": 1, "precision": 1, "recall": 1, "f1": 1, "yes_share": 0.5, "n": 48
        }  # fmt: skip


def test_questions_depend_on_their_seed_and_place_alone(few: Domain) -> None:
    assert asked(few, 3) == asked(few, 3)
    for part in PARTS:
        longer = questions(part, 5, 0, few)
        assert longer[: len(questions(part, 3, 0, few))] == questions(part, 3, 0, few)
        assert questions(part, 5, 1, few) != longer


def test_existence_is_balanced_and_asks_about_what_is_not_there(few: Domain) -> None:
    for _, group in itertools.groupby(questions("existence", 40, 0, few), key=lambda question: question.number):
        yes, *no = group
        shown = {item.class_name for item in yes.scene.objects}
        assert yes.about in shown and yes.truth == "yes" and yes.settings == SETTINGS
        assert [question.settings for question in no] == [(setting,) for setting in SETTINGS]
        assert all(question.about not in shown and question.truth == "no" for question in no)


def test_popular_and_adversarial_absences_are_the_most_frequent_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Counter(dict(zip(EIGHT, range(80, 0, -10), strict=True)))
    together = {"cat": Counter({"dog": 9, "cup": 5, "apple": 2, "car": 1}), "book": Counter({"car": 9, "bear": 4})}
    monkeypatch.setattr("unified.scenes.understanding._reference", lambda classes, colours: (alone, together))
    domain = Domain(classes=EIGHT)
    assert absent_classes("random", ["cat"], domain) == [name for name in EIGHT if name != "cat"]
    assert absent_classes("popular", ["cat", "banana"], domain) == ["apple", "bear", "book"]
    assert absent_classes("adversarial", ["cat"], domain) == ["dog", "cup", "apple"]
    assert absent_classes("adversarial", ["cat", "book"], domain) == ["car", "dog", "cup"]


def test_counts_are_even_and_scenes_of_the_split(few: Domain) -> None:
    truths = Counter(question.truth for question in questions("counting", 400, 0, few))
    assert set(truths) == set("1234") and min(truths.values()) > 70
    held_out = Counter(question.truth for question in questions("counting", 40, 0, Domain("heldout")))
    assert held_out == {"1": 20, "2": 20}


def test_every_relation_and_both_objects_are_asked_about(few: Domain) -> None:
    found = questions("relation", 80, 0, few)
    assert {question.truth for question in found} == {"left of", "right of", "above", "below"}
    assert {question.about == question.scene.objects[0].class_name for question in found} == {True, False}


def test_unseen_wordings_are_unseen(few: Domain) -> None:
    for part in PARTS:
        assert not set(WORDINGS["training"][part]) & set(WORDINGS["unseen"][part])
        places = {wording.count("{}") for wordings in WORDINGS.values() for wording in wordings[part]}
        assert len(places) == 1


def test_too_few_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="choose more"):
        questions("existence", 4, 0, Domain(classes=("cat",), colours=("red",)))


def test_unreadable_and_wrong_answers_are_told_apart(few: Domain) -> None:
    (yes, *_) = questions("existence", 1, 0, few)
    assert score_answer(yes, "No.").record()["reason"] == "no, not yes"
    unreadable = score_answer(yes, "Perhaps.")
    assert (unreadable.read, unreadable.correct, unreadable.reason) == (None, False, "unreadable")
    caption = questions("caption", 1, 0, few)[0]
    assert score_answer(caption, "cats").read is None and score_answer(caption, "a zebra").reason.startswith("says")


def test_always_yes_is_half_right_and_silence_all_wrong(few: Domain) -> None:
    every = asked(few, 12)
    found = summary(score_answer(question, "Yes.") for question in every)
    assert found["parts"]["existence"]["value"] == 0.5 and found["parts"]["colour"]["unreadable"] == 12
    for setting in SETTINGS:
        numbers = found["existence"][setting]
        assert (numbers["accuracy"], numbers["recall"], numbers["yes_share"]) == (0.5, 1, 1)
    silent = summary(score_answer(question, "") for question in every)
    assert silent["value"] == 0 and silent["unreadable"] == silent["n"] == 12 * 8
    assert silent["existence"]["random"] == {
        "accuracy": 0, "precision": 0, "recall": 0, "f1": 0, "yes_share": 0, "n": 24
    }  # fmt: skip


def test_the_value_is_the_mean_of_the_parts_and_errors_go_by_scenes(few: Domain) -> None:
    right = {"existence": 1, "counting": 1, "colour": 0, "relation": 0, "caption": 1}
    found = summary(score_answer(q, told(q) if right[q.part] else "") for q in asked(few, 6))
    assert found["value"] == pytest.approx(3 / 5)
    # half of the scenes right in every question: as if each were one draw
    halved = [score_answer(q, told(q) if q.number % 2 else "") for q in asked(few, 6)]
    errors = {part: scores["stderr"] for part, scores in summary(halved)["parts"].items()}
    assert errors["existence"] == pytest.approx(errors["colour"]) == pytest.approx((0.25 / 5) ** 0.5)
    assert summary(halved)["stderr"] == pytest.approx((5 * 0.25 / 5) ** 0.5 / 5)


# --- the scripts


@pytest.fixture
def arguments(toy_checkpoint: Path, tmp_path: Path) -> list:
    told = ["--model", toy_checkpoint, "--n", 2, "--out", tmp_path / "out" / "understanding.json", "--layout", "tidy"]
    return [*told, "--classes", *EIGHT, "--batch_size", 5, "--max_new_tokens", 3]


def test_the_script_writes_a_result_and_its_answers(
    run_script: Callable[..., int], arguments: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script("eval/understanding.py", *arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "out" / "understanding.json").read_text())
    assert (result["metric"], result["n"], set(result["parts"])) == ("understanding", 16, set(PARTS))
    assert result["tokenizer"] == UnifiedConfig.from_pretrained(arguments[1]).vq_fingerprint
    assert result["seed"] == 0 and len(result["prompts_sha256"]) == 64
    header, *answers = map(json.loads, Path(result["answers"]).read_text().splitlines())
    assert header == result["config"] and len(answers) == 16
    keys = {"question", "truth", "answer", "read", "correct", "reason", "objects"}
    assert all(keys <= set(line) for line in answers)


def test_a_stopped_run_goes_on_and_gives_the_same_answers(
    run_script: Callable[..., int], arguments: list, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = load_script("eval/understanding.py")
    whole, batches = tmp_path / "whole.json", []
    assert run_script("eval/understanding.py", *arguments, "--out", whole) == 0
    genuine = script.answer

    def stop_at_the_third(*arguments: object) -> list[str]:
        batches.append(arguments)
        if len(batches) == 3:
            raise KeyboardInterrupt
        return genuine(*arguments)

    monkeypatch.setattr(script, "answer", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run_script("eval/understanding.py", *arguments)
    assert run_script("eval/understanding.py", *arguments) == 0
    assert len(batches) == 2 + 1 + 2  # 4 batches, of which the first two are not asked again
    stopped = (tmp_path / "out" / "understanding.answers.jsonl").read_text()
    assert stopped == whole.with_suffix(".answers.jsonl").read_text()


@pytest.mark.parametrize("flags", [[], ["--question_first", "True"]])
def test_the_order_of_question_and_picture_is_a_choice(
    run_script: Callable[..., int], arguments: list, monkeypatch: pytest.MonkeyPatch, flags: list
) -> None:
    orders = set()

    def no(model: object, processor: object, queries: list, budget: int) -> list[str]:
        orders.update(tuple(part["type"] for part in query.messages[0]["content"]) for query in queries)
        return ["No."] * len(queries)

    monkeypatch.setattr(load_script("eval/understanding.py"), "answer", no)
    assert run_script("eval/understanding.py", *arguments, *flags) == 0
    assert orders == {("text", "image") if flags else ("image", "text")}


def test_a_picture_can_be_described_first(
    run_script: Callable[..., int], arguments: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the question follows the model's own words; captions are asked for once."""
    chats: list[list[tuple[str, str]]] = []

    def answered(model: object, processor: object, queries: list, budget: int) -> list[str]:
        texts = [[(turn["role"], content_parts(turn)[-1]["text"]) for turn in query.messages] for query in queries]
        chats.extend(texts)
        return [f"Caption {len(chats)}." if len(text) == 1 else "No." for text in texts]

    monkeypatch.setattr(load_script("eval/understanding.py"), "answer", answered)
    assert run_script("eval/understanding.py", *arguments, "--describe_first", "True") == 0
    opening = ("user", WORDINGS["training"]["caption"][0])
    followed = [chat for chat in chats if len(chat) == 3]
    assert (len(chats), len(followed)) == (16 + 14, 14)  # two of the questions are for captions
    for first, said, (_, question) in followed:
        assert first == opening and said[0] == "assistant" and said[1].startswith("Caption ")
        assert question not in WORDINGS["training"]["caption"]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--n", 0], "--n 0; give at least 1"),
        (["--out", "result.txt"], "--out result.txt does not end with .json"),
        (["--classes", "catt"], "unknown class 'catt'"),
        (["--classes", "cat"], "choose more"),
        (["--model", "nowhere"], "nowhere is not a folder"),
    ],
)
def test_bad_input_is_one_line(
    run_script: Callable[..., int], arguments: list, capsys: pytest.CaptureFixture[str], flags: list, said: str
) -> None:
    assert run_script("eval/understanding.py", *arguments, *flags) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert said in errors[-1] and errors[-1].startswith("error: ")


def test_answers_of_other_weights_are_not_taken(
    run_script: Callable[..., int], arguments: list, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script("eval/understanding.py", *arguments) == 0
    assert run_script("eval/understanding.py", *arguments, "--seed", 1) == 2
    assert "was made with seed 0, not 1" in capsys.readouterr().err


def test_shipped_questions_are_what_the_script_makes(run_script: Callable[..., int], tmp_path: Path) -> None:
    from datasets import Dataset

    assert run_script("eval/export_questions.py", "--out", tmp_path / "scenes.parquet", "--n", 6) == 0
    paths = (tmp_path / "scenes.parquet", ROOT / "eval" / "lmms" / "scenes.parquet")
    made, shipped = (Dataset.from_parquet(str(path), cache_dir=str(tmp_path / "cache")) for path in paths)
    for name in ("part", "question", "answer"):
        assert made[name][:] == shipped[name][:]
    pairs = [[np.array(rows["image"]).astype(int) for rows in pair] for pair in zip(made, shipped, strict=True)]
    assert max(np.abs(a - b).max() for a, b in pairs) <= 16  # edges: Pillow 12 and 13 draw glyphs by that much apart
    assert np.mean([a.tobytes() == b.tobytes() for a, b in pairs]) > 0.8
    assert set(made["answer"]) >= {"yes", "no"} and set(made["part"]) == set(PARTS[:-1])
