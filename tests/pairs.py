"""Pairs of every modality for the toy checkpoint of conftest.py: images of 5 codes below 32."""

from typing import Any

IMAGE = {"type": "image", "text": None}


def turn(role: str, *parts: str | dict[str, Any]) -> dict[str, Any]:
    """A message; a string is a text part."""
    content = [{"type": "text", "text": part} if isinstance(part, str) else dict(part) for part in parts]
    return {"role": role, "content": content}


def codes(number: int) -> list[int]:
    """Codes of an image, different for every number."""
    return [(7 * number + 3 * position + 1) % 32 for position in range(5)]


def make_pair(
    messages: list[dict[str, Any]], chosen: list[dict[str, Any]], rejected: list[dict[str, Any]], **columns: Any
) -> dict[str, Any]:
    """A pair with the columns of `PAIR_FEATURES`."""
    rest = {"codes": [], "chosen_codes": [], "rejected_codes": [], "score_chosen": None, "score_rejected": None}
    rest |= {"seeds": None, "metadata": "{}", "source": "toy"}
    return {"messages": messages, "chosen": chosen, "rejected": rejected, **rest, **columns}


def image_pair(number: int = 0) -> dict[str, Any]:
    """Two images of a prompt."""
    image_codes = {"chosen_codes": [codes(2 * number)], "rejected_codes": [codes(2 * number + 1)]}
    scores = {"score_chosen": 0.5, "score_rejected": 0.25, "seeds": [1, 2]}
    answer = [turn("assistant", IMAGE)]
    return make_pair([turn("user", f"a photo of {number} red cats")], answer, answer, **image_codes, **scores)


def mixed_pair(number: int = 0) -> dict[str, Any]:
    """An image with text, and another with other text."""
    answers = [turn("assistant", "Here you are.", IMAGE)], [turn("assistant", IMAGE, "That is all.")]
    image_codes = {"chosen_codes": [codes(3 * number)], "rejected_codes": [codes(3 * number + 2)]}
    return make_pair([turn("user", f"Draw {number} dogs.")], *answers, **image_codes)


def question(number: int = 0) -> dict[str, Any]:
    """A right and a wrong answer about one image."""
    answers = [turn("assistant", "One cat.")], [turn("assistant", "There are three dogs.")]
    return make_pair([turn("user", IMAGE, "How many?")], *answers, codes=[codes(number)])


def text_pair(number: int = 0, right: str = "Good morning to you.") -> dict[str, Any]:
    """A friendly and an unfriendly answer."""
    answers = [turn("assistant", right)], [turn("assistant", "Go away.")]
    return make_pair([turn("user", f"Hello {number}!")], *answers)


def toy_pairs(kinds: str) -> list[dict[str, Any]]:
    """A pair for every letter of `kinds`: i(mage), m(ixed), u(nderstanding) or t(ext)."""
    makers = {"i": image_pair, "m": mixed_pair, "u": question, "t": text_pair}
    return [makers[kind](number) for number, kind in enumerate(kinds)]
