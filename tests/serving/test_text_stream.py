"""Text of tokens as they come is their text, whatever characters they cut, up to a stop string."""

import random

import pytest

from unified.serving.text_stream import InterleavedStream, TextStream

WORDS = "a cat, eine Katze, 猫が三匹 🐈‍⬛ und naïve Ünder"


def decode(tokens: list[int]) -> str:
    return bytes(tokens).decode(errors="replace")


def streamed(text: str, stops: list[str]) -> list[str]:
    stream, said = TextStream(decode, stops), []
    for token in text.encode():
        said.append(stream.add(token))
    return [*said, stream.end()]


def test_bytes_give_whole_characters() -> None:
    said = streamed(WORDS, [])
    assert "".join(said) == WORDS and "\N{REPLACEMENT CHARACTER}" not in "".join(said)
    assert sum(map(bool, said)) > len(WORDS) / 2


@pytest.mark.parametrize("stop", ["Katze", "猫", ",", "three", "a", "🐈", "Ünders", "tt"])
def test_nothing_comes_from_a_stop_string_on(stop: str) -> None:
    assert "".join(streamed(WORDS, [stop])) == WORDS.split(stop)[0]


def test_the_first_of_several_stop_strings_counts() -> None:
    alphabet, dice = "abc", random.Random(0)
    for _ in range(300):
        text = "".join(dice.choices(alphabet, k=20))
        stops = ["".join(dice.choices(alphabet, k=dice.randint(1, 4))) for _ in range(3)]
        ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
        said = "".join(streamed(text, stops))
        if not ends:
            assert said == text
        else:  # as soon as one is complete
            done = min(ends)
            assert said == text[: min(text.find(stop) for stop in stops if stop in text[:done])]


def test_an_unfinished_character_at_the_end_is_shown_as_such() -> None:
    stream = TextStream(decode)
    assert stream.add("猫".encode()[0]) == "" and stream.end() == "\N{REPLACEMENT CHARACTER}"


def interleaved(pieces: list[str | int], stops: list[str]) -> list[str | int]:
    """What is said of words and pictures (numbers), words that follow each other as one."""
    stream: InterleavedStream[int] = InterleavedStream(decode, stops)
    said: list[str | int] = []
    for piece in pieces:
        if isinstance(piece, int):
            said += stream.show(piece)
        else:
            for token in piece.encode():
                said += stream.add(token)
    return joined([*said, *stream.end()])


def joined(pieces: list[str | int]) -> list[str | int]:
    found: list[str | int] = []
    for piece in pieces:
        if found and isinstance(piece, str) and isinstance(found[-1], str):
            found[-1] += piece
        elif piece != "":
            found.append(piece)
    return found


@pytest.mark.parametrize(
    ("pieces", "stop", "said"),
    [
        (["ab", 0, "cd"], "bc", ["a"]),
        (["ab", 0, "xd"], "bc", ["ab", 0, "xd"]),
        (["a", 0, "bcd"], "bc", ["a", 0]),
        (["ab", 0, 1, "cd"], "bc", ["a"]),
        (["ab", 0, "c", 1, "de"], "bcd", ["a"]),
        (["ab", 0, "c", 1, "e"], "bcd", ["ab", 0, "c", 1, "e"]),
        (["a", 0, "b", 1, "b", 2, "c"], "bc", ["a", 0, "b", 1]),
        (["ab", 0], "bc", ["ab", 0]),
        ([0, "bc", 1], "bc", [0]),
        ([0, 1], "bc", [0, 1]),
        (["猫", 0, "犬"], "猫犬", []),
    ],
)
def test_a_stop_string_may_run_across_pictures(pieces: list[str | int], stop: str, said: list[str | int]) -> None:
    assert interleaved(pieces, [stop]) == said


def test_words_and_pictures_keep_their_order_whatever_is_held_back() -> None:
    dice = random.Random(1)
    for _ in range(300):
        pieces: list[str | int] = []
        for number in range(5):
            pieces += ["".join(dice.choices("abc", k=dice.randint(0, 4))), number]
        stops = ["".join(dice.choices("abc", k=dice.randint(2, 4))) for _ in range(2)]
        text = "".join(piece for piece in pieces if isinstance(piece, str))
        ends = [text.find(stop) + len(stop) for stop in stops if stop in text]
        place = len(text)
        if ends:
            place = min(text.find(stop) for stop in stops if stop in text[: min(ends)])
        expected: list[str | int] = []
        for piece in pieces:  # `place` characters are left
            if isinstance(piece, str):
                expected.append(piece[:place])
                place -= len(piece)
            elif place >= 0:
                expected.append(piece)
            if place < 0:
                break
        assert interleaved(pieces, stops) == joined(expected), (pieces, stops)


def test_a_picture_is_shown_at_once_where_nothing_is_held() -> None:
    stream: InterleavedStream[int] = InterleavedStream(decode, ["bc"])
    assert stream.add(ord("a")) == ["a"] and stream.show(0) == [0]
    assert stream.add(ord("b")) == [] and stream.show(1) == []
    assert stream.add(ord("d")) == ["b", 1, "d"]
