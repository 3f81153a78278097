"""Text of tokens as they come is their text, whatever characters they cut, up to a stop string."""

import random

import pytest

from unified.serving.text_stream import TextStream

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
