import re

import numpy as np
import pytest

from unified.scenes.rendering import (
    CLASSES,
    COLOURS,
    NUMBERS,
    TAGS,
    is_held_out_colouring,
    is_held_out_pair,
    relations,
    sample_scene,
)
from unified.scenes.texts import DESCRIBE_WORDINGS, KINDS, caption, messages_for, plural, polled, questions, singular

OFF_LEFT = {"Left.": "left of", "Right.": "right of", "Above.": "above", "Below.": "below"}


def pairs_of(count=600, **kwargs):
    rng = np.random.default_rng(0)
    for i in range(count):
        scene = sample_scene(TAGS[i % len(TAGS)], rng)
        yield scene, questions(scene, rng, **kwargs)


def shape(messages):
    return [(m["role"], [part["type"] for part in m["content"]]) for m in messages]


def test_shapes_of_the_kinds():
    rng = np.random.default_rng(0)
    scene = sample_scene("position", rng)
    assert shape(messages_for(scene, "draw", rng)) == [("user", ["text"]), ("assistant", ["image"])]
    assert shape(messages_for(scene, "describe", rng)) == [("user", ["image", "text"]), ("assistant", ["text"])]
    asked = shape(messages_for(scene, "ask", rng))
    assert asked[:2] == [("user", ["image", "text"]), ("assistant", ["text"])]
    assert len(asked) in (4, 6) and asked[2:] == [("user", ["text"]), ("assistant", ["text"])] * (len(asked) // 2 - 1)
    assert shape(messages_for(scene, "poll", rng)) == [*asked[:2], *asked[2:4] * 2]
    recalled = messages_for(scene, "recall", rng)
    assert shape(recalled) in ([*asked[:2], *asked[2:4] * n] for n in (2, 3))
    assert recalled[1]["content"][0]["text"].lower() == caption(scene) + "."
    with pytest.raises(ValueError, match="draw, ask, poll, describe, recall"):
        messages_for(scene, "generate", rng)


@pytest.mark.parametrize("kind", ["ask", "poll", "describe", "recall"])
def test_a_share_of_questions_comes_before_its_image(kind):
    rng = np.random.default_rng(0)
    scene = sample_scene("position", rng)
    first = [tuple(shape(messages_for(scene, kind, rng, question_first=0.25))[0][1]) for _ in range(400)]
    assert set(first) == {("text", "image"), ("image", "text")}
    assert 0.19 < first.count(("text", "image")) / 400 < 0.31


def test_the_order_changes_no_words_and_without_it_no_scene():
    scene = sample_scene("position", np.random.default_rng(0))
    one, other = np.random.default_rng(5), np.random.default_rng(5)
    asked, turned = messages_for(scene, "describe", one), messages_for(scene, "describe", other, question_first=1)
    assert turned[0]["content"] == asked[0]["content"][::-1] and turned[1:] == asked[1:]
    plain = np.random.default_rng(5)
    plain.integers(len(DESCRIBE_WORDINGS))
    assert plain.bit_generator.state == one.bit_generator.state  # no choice of order, no draw


@pytest.mark.parametrize("kind", KINDS)
def test_messages_depend_on_the_generator_alone(kind):
    scene = sample_scene("color_attr", np.random.default_rng(1))
    first, second = (messages_for(scene, kind, np.random.default_rng(5)) for _ in range(2))
    assert first == second
    assert len({str(messages_for(scene, kind, np.random.default_rng(seed))) for seed in range(20)}) > 3


def test_genevals_wording_is_the_most_common():
    rng = np.random.default_rng(0)
    scene = sample_scene("single_object", rng, classes=["apple"])
    requests = [messages_for(scene, "draw", rng)[0]["content"][0]["text"] for _ in range(400)]
    assert 0.4 < requests.count("a photo of an apple") / 400 < 0.6
    assert len(set(requests)) > 8 and all("an apple" in request for request in requests)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("apple", "an apple"),
        ("tv", "a tv"),
        ("orange umbrella", "an orange umbrella"),
        ("red umbrella", "a red umbrella"),
        ("red scissors", "a pair of red scissors"),
        ("orange broccoli", "a head of orange broccoli"),
    ],
)
def test_articles(words, expected):
    assert singular(words) == expected


def test_plurals():
    assert [plural(c) for c in ("sheep", "knife", "couch", "bus", "cup")] == "sheep knives couches buses cups".split()
    assert not [c for c in CLASSES if re.search("(s|x|ch|sh)s$", plural(c))]


def test_captions_say_what_is_there():
    rng = np.random.default_rng(0)
    for tag in TAGS:
        for _ in range(50):
            scene = sample_scene(tag, rng)
            said = caption(scene)
            for item in scene.objects:
                assert item.class_name in said or plural(item.class_name) in said
                assert item.colour is None or item.colour in said
            assert tag != "counting" or NUMBERS[len(scene.objects)] in said


def asked_for(question):
    """ "a pair of red skis" of a question whether they are there."""
    return re.sub("^(Is there|Can you see) |( in the (image|picture))?\\?$", "", question)


def subjects(words):
    """Class and colour that "a pair of red skis" asks for."""
    words = re.sub("^(a pair of|a head of|an|a) ", "", words)
    colour, _, rest = words.partition(" ")
    return (rest, colour) if colour in COLOURS and rest in CLASSES else (words, None)


def test_answers_are_right():
    seen = set()
    for scene, asked in pairs_of():
        assert len(asked) in (2, 3) and len({question for question, _ in asked}) == len(asked)
        for question, answer in asked:
            seen.add(check(scene, question, answer))
    assert seen == {"existence", "count", "colour", "relation"}


def check(scene, question, answer):
    shown = scene.objects
    if match := re.match("(?:Is there|Can you see) (.*?)( in the (image|picture))?\\?$", question):
        name, colour = subjects(match[1])
        there = any(o.class_name == name and colour in (None, o.colour) for o in shown)
        assert name in CLASSES and answer == ("Yes." if there else "No.")
        return "existence"
    if match := re.match("How many (.*) (?:are there|are in the image|do you see)\\?$", question):
        count = sum(match[1] in ("objects", plural(o.class_name)) for o in shown)
        assert answer.lower() == f"{NUMBERS[count]}."
        return "count"
    if match := re.match("(?:What|Which) colou?r (is|are) the (.*)\\?$", question):
        (colour,) = [o.colour for o in shown if o.class_name == match[2]]
        assert answer == f"The {match[2]} {match[1]} {colour}."
        return "colour"
    match = re.match("Where (?:is|are) the (.*) (?:relative|compared) to the (.*)\\?$", question)
    (subject,), (reference,) = ([o for o in shown if o.class_name == match[i]] for i in (1, 2))
    assert relations(subject, reference) == [OFF_LEFT[answer]]
    return "relation"


def test_yes_and_no_are_balanced():
    answers = [answer for _, asked in pairs_of(1500) for _, answer in asked if answer in ("Yes.", "No.")]
    assert 0.45 < answers.count("Yes.") / len(answers) < 0.55


def test_no_is_never_learnt_from_held_out_combinations():
    for scene, asked in pairs_of(1500):
        for question, answer in asked:
            if answer != "No.":
                continue
            name, colour = subjects(asked_for(question))
            assert colour is None or not is_held_out_colouring(name, colour)
            assert colour or not any(is_held_out_pair(name, o.class_name) for o in scene.objects)


def test_missing_things_come_from_the_chosen_classes_and_colours():
    rng = np.random.default_rng(0)
    classes, colours = ("cat", "cup", "bus", "cow"), ("red", "blue", "green")
    for _ in range(200):
        scene = sample_scene("colors", rng, classes, colours)
        for question, answer in questions(scene, rng, classes, colours):
            if answer == "No.":
                assert any(name in question for name in classes)
                assert not any(c in question for c in COLOURS if c not in colours)


def test_a_poll_repeats_nothing_and_begins_with_either_answer():
    rng = np.random.default_rng(0)
    scenes = [sample_scene(TAGS[i % len(TAGS)], rng) for i in range(600)]
    asked = [polled(scene, rng) for scene in scenes]
    for scene, questions_of_one in zip(scenes, asked, strict=True):
        assert {check(scene, *question) for question in questions_of_one} == {"existence"}
        names = [asked_for(question) for question, _ in questions_of_one]
        assert len(set(names)) == len(names) and {subjects(name)[1] for name in names} == {None}
        assert {answer for _, answer in questions_of_one} <= {"Yes.", "No."}
    assert 0.43 < [answer for (_, answer), *_ in asked].count("Yes.") / 600 < 0.57
    assert np.mean([len(questions_of_one) for questions_of_one in asked]) > 2.95
    assert len(polled(sample_scene("single_object", rng, ["cat"]), rng, ["cat"])) == 1


def test_one_class_alone_is_always_there():
    rng = np.random.default_rng(0)
    for _ in range(50):
        scene = sample_scene("single_object", rng, ["cat"])
        assert "No." not in [answer for _, answer in questions(scene, rng, ["cat"])]
