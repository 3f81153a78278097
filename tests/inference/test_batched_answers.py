"""Batched answers, and the file they are kept in."""

import json
from pathlib import Path

import pytest
from PIL import Image

from unified import UnifiedForCausalLM, UnifiedProcessor
from unified.checkpoints.loading import load
from unified.inference.batched_answers import AnswerLog, Query, answer, encode, follow_up, image_question
from unified.inference.chat import Chat

RED, BLUE = (Image.new("RGB", (16, 16), name) for name in ("red", "blue"))


@pytest.fixture(scope="module")
def toy(toy_checkpoint: Path) -> tuple[UnifiedForCausalLM, UnifiedProcessor]:
    return load(toy_checkpoint, device="cpu")


def test_a_batch_answers_as_one_by_one_and_as_chat(toy: tuple) -> None:
    queries = [
        image_question(RED, "How many cats are there?"),
        image_question(BLUE, "?"),
        Query([{"role": "user", "content": "Hi."}]),
    ]
    together = answer(*toy, queries, 6)
    assert together == [answer(*toy, [query], 6)[0] for query in queries]
    chat = Chat(*toy, max_images=0, max_new_tokens=6)
    chat.show(BLUE)
    assert together[1] == "".join(part["text"] for part in chat.ask("?")).strip()


def test_a_second_question_is_the_same_chat(toy: tuple) -> None:
    chat = Chat(*toy, max_images=0, max_new_tokens=6)
    chat.show(BLUE)
    said, then = ("".join(part["text"] for part in chat.ask(question)).strip() for question in ("?", "How many cats?"))
    first = image_question(BLUE, "?")
    assert answer(*toy, [follow_up(first, said, "How many cats?"), image_question(RED, "Hi.")], 6)[0] == then
    assert len(first.messages) == 1


def test_a_question_can_come_before_its_image(toy: tuple) -> None:
    after, before = (
        image_question(RED, "How many cats are there?", question_first) for question_first in (False, True)
    )
    assert before.messages[0]["content"] == after.messages[0]["content"][::-1]
    one, other = (encode([query], toy[1])["input_ids"][0].tolist() for query in (after, before))
    assert one != other and sorted(one) == sorted(other)


def test_every_image_is_encoded(toy: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    encode = toy[0].model.vq_model.encode
    monkeypatch.setattr(toy[0].model.vq_model, "encode", lambda pixels: seen.append(pixels) or encode(pixels))
    answer(*toy, [image_question(RED, "?"), image_question(BLUE, "?")], 2)
    assert [pixels[:, :, 0, 0].tolist() for pixels in seen] == [[[1, -1, -1], [-1, -1, 1]]]


def test_an_answer_ends_with_the_context(toy: tuple) -> None:
    words = "cats " * 200
    with pytest.raises(ValueError, match="the model's context has 512"):
        answer(*toy, [image_question(RED, words * 5)])
    short = answer(*toy, [image_question(RED, words)], 10_000)
    assert len(toy[1].tokenizer(short[0])["input_ids"]) < 512


def test_a_log_continues_after_its_last_complete_batch(tmp_path: Path) -> None:
    path, who = tmp_path / "new" / "answers.jsonl", {"model": "toy", "classes": ("cat",)}
    log = AnswerLog(path, who, 2)
    log.add([{"answer": "a"}, {"answer": "b"}])
    log.add([{"answer": "c"}])
    with path.open("a") as file:
        file.write('{"answer": "d')  # killed here
    assert AnswerLog(path, who, 2).records == [{"answer": "a"}, {"answer": "b"}]
    assert len(path.read_text().splitlines()) == 3


def test_a_log_cut_off_in_its_first_line_begins_again(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text('{"model": "to')
    assert AnswerLog(path, {"model": "toy"}, 2).records == []
    assert json.loads(path.read_text()) == {"model": "toy"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"model": "other"}\n', "was made with model 'other', not 'toy'"),
        ('{"model": "toy", "n": 3}\n', "was made with n 3, not None"),
        ("[]\n", "no file of answers"),
        ('{"model": "toy"}\nnonsense\n{"answer": "a"}\n', "no file of answers, or damaged"),
    ],
)
def test_a_log_of_something_else_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        AnswerLog(path, {"model": "toy"}, 2)
    assert path.read_text() == text
