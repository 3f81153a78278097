"""Parsing of answers and captions, and that captions are checked mention by mention."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unified.scenes.answer_parsing import (
    Caption,
    Mention,
    check_caption,
    read_caption,
    read_colour,
    read_count,
    read_relation,
    read_yes_no,
)
from unified.scenes.rendering import CLASSES, COLOURS, RELATIONS, TAGS, Scene, place, sample_scene
from unified.scenes.texts import caption, plural, singular

MIRRORED = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("Yes.", "yes"),
        ("no", "no"),
        ("Yes, there is a cat. It is not red.", "yes"),
        ("There is not.", "no"),
        ("There is no cat.", "no"),
        ("Yes and no.", None),
        ("A cat.", None),
        ("Nothing.", None),
        ("", None),
        ("\n", None),
    ],
)
def test_yes_and_no(answer: str, read: str | None) -> None:
    assert read_yes_no(answer) == read


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("Three.", 3),
        ("There are 12 dogs.", 12),
        ("three (3)", 3),
        ("None.", 0),
        ("two or three", None),
        ("Many.", None),
        ("someone", None),
    ],
)
def test_counts(answer: str, read: int | None) -> None:
    assert read_count(answer) == read


@pytest.mark.parametrize(
    ("answer", "class_name", "read"),
    [
        ("The dog is red.", "dog", "red"),
        ("The orange is green.", "orange", "green"),
        ("The orange is orange.", "orange", "orange"),
        ("Orange.", "orange", "orange"),
        ("black and white", "zebra", None),
        ("The skis are gray.", "skis", None),
        ("It is bored.", "dog", None),
    ],
)
def test_colours(answer: str, class_name: str, read: str | None) -> None:
    assert read_colour(answer, class_name) == read


@pytest.mark.parametrize(
    ("answer", "read"),
    [
        ("Left.", "left of"),
        ("To the right of the cup.", "right of"),
        ("over it", "above"),
        ("Underneath.", "below"),
        ("left and above", None),
        ("there", None),
    ],
)
def test_relations(answer: str, read: str | None) -> None:
    assert read_relation(answer) == read


@pytest.mark.parametrize(
    ("text", "mentions", "relations"),
    [
        ("An apple and a red dog.", [("apple", 1, None), ("dog", 1, "red")], []),
        ("two sheep", [("sheep", 2, None)], []),
        ("A photo of four computer mice", [("computer mouse", 4, None)], []),
        ("3 benchs", None, None),
        ("Three buss, two toothbrushs", [("bus", 3, None), ("toothbrush", 2, None)], []),
        ("a pair of red skis above a head of broccoli", [("skis", 1, "red"), ("broccoli", 1, None)], ["above"]),
        ("an orange orange and an orange", [("orange", 1, "orange"), ("orange", 1, None)], []),
        ("The picture shows a hot dog to the left of a dog.", [("hot dog", 1, None), ("dog", 1, None)], ["left of"]),
        ("A cup is underneath the vase", [("cup", 1, None), ("vase", 1, None)], ["below"]),
        ("a unicorn and a cat", None, None),
        ("cats", None, None),
        ("pairs of scissors", None, None),
        ("There is nothing.", None, None),
        ("a cat to the left", None, None),
        ("Above a cat", None, None),
        ("a catdog", None, None),
        ("", None, None),
    ],
)
def test_captions_are_read(text: str, mentions: list | None, relations: list | None) -> None:
    read = read_caption(text)
    if mentions is None:
        assert read is None
        return
    assert read.mentions == tuple(Mention(*mention) for mention in mentions)
    assert [side for _, side, _ in read.relations] == relations


@given(st.sampled_from(sorted(CLASSES)), st.sampled_from([None, *COLOURS]), st.integers(1, 10))
def test_every_name_is_read_in_the_singular_and_the_plural(name: str, colour: str | None, count: int) -> None:
    words = name if colour is None else f"{colour} {name}"
    assert read_caption(singular(words)) == Caption((Mention(name, 1, colour),))
    assert read_caption(f"{count} {plural(name)}") == Caption((Mention(name, count),))


@given(st.sampled_from(TAGS), st.integers(0, 2**32 - 1))
def test_a_scenes_own_caption_is_right(tag: str, seed: int) -> None:
    scene = sample_scene(tag, np.random.default_rng(seed))
    assert check_caption(read_caption(caption(scene)), scene) == (True, "")
    assert check_caption(read_caption(scene.metadata["prompt"]), scene) == (True, "")


@given(st.sampled_from(("two_object", "color_attr", "position")), st.integers(0, 2**32 - 1))
def test_a_caption_that_leaves_out_an_object_or_adds_one_is_wrong(tag: str, seed: int) -> None:
    scene = sample_scene(tag, np.random.default_rng(seed))
    whole = read_caption(caption(scene))
    assert not check_caption(dataclasses.replace(whole, mentions=whole.mentions[:1]), scene)[0]
    absent = next(name for name in CLASSES if name not in {item.class_name for item in scene.objects})
    assert not check_caption(dataclasses.replace(whole, mentions=(*whole.mentions, Mention(absent, 1))), scene)[0]
    assert check_caption(dataclasses.replace(whole, mentions=(*whole.mentions, Mention(absent, 0))), scene)[0]


@given(st.sampled_from(RELATIONS), st.integers(0, 2**32 - 1))
def test_relations_hold_from_both_sides_and_are_not_left_out(side: str, seed: int) -> None:
    scene = sample_scene("position", np.random.default_rng(seed))
    first, second = (item.class_name for item in scene.objects)
    mentions = (Mention(first, 1), Mention(second, 1))
    shown = MIRRORED[scene.metadata["include"][1]["position"][0]]
    right, reason = check_caption(Caption(mentions, ((first, side, second),)), scene)
    assert right == (side == shown) and (right or f"not {first} {side} {second}" in reason)
    assert check_caption(Caption(mentions, ((second, MIRRORED[side], first),)), scene)[0] == right
    assert check_caption(Caption(mentions), scene) == (False, "says no relation")


def two(first: tuple[str, str | None], second: tuple[str, str | None]) -> Scene:
    """Two objects side by side, the first on the left."""
    objects = (place(*first, (0, 16), 32), place(*second, (32, 16), 32))
    include = [{"class": name, "count": 1} | ({} if colour is None else {"color": colour}) for name, colour in
               (first, second)]  # fmt: skip
    return Scene("two_object", objects, {"tag": "two_object", "include": include, "prompt": ""})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a red dog and a blue cat", ""),
        ("a blue cat to the right of a red dog", ""),
        ("a blue dog and a red cat", "says 1 blue dog, shown 0"),
        ("a dog and a blue cat", "shown 1"),
        ("two red dogs and a blue cat", "says 2 red dog, shown 1"),
        ("a red dog", "says 0 blue cat, shown 1"),
        ("a red dog above a blue cat", "not dog above cat"),
        ("gibberish", "unreadable"),
    ],
)
def test_the_reason_says_what_is_wrong(text: str, reason: str) -> None:
    right, why = check_caption(read_caption(text), two(("dog", "red"), ("cat", "blue")))
    assert right == (reason == "") and reason in why


def test_objects_in_natural_colours_have_none_to_be_named() -> None:
    scene = two(("apple", None), ("dog", None))
    assert check_caption(read_caption("an apple and a dog"), scene)[0]
    assert not check_caption(read_caption("a red apple and a dog"), scene)[0]
