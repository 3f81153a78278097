"""Texts about a scene: captions in several wordings, and questions with answers taken from its metadata.

`messages_for` turns a scene into one conversation of a kind: `draw` (text in, image out), `ask` (image and questions
in, answers out), `poll` (the same, about which classes are there: yes or no), `describe` (image in, caption out) or
`recall` (the caption, then the questions of `ask`, which can be answered from it). Images are `{"type": "image"}`
parts; there is no system turn.
"""

import itertools

from unified.scenes.rendering import (
    CLASSES,
    COLOURS,
    NUMBERS,
    PAIRED,
    Names,
    Rng,
    Scene,
    SceneObject,
    is_held_out_colouring,
    is_held_out_pair,
    named,
    pick,
    relations,
    with_article,
)

KINDS = ("draw", "ask", "poll", "describe", "recall")
POLLED = 3  # questions of a poll
IRREGULAR_PLURALS = {
    "couch": "couches",
    "broccoli": "heads of broccoli",
    "computer mouse": "computer mice",
    "knife": "knives",
    "person": "people",
    "sandwich": "sandwiches",
    "scissors": "pairs of scissors",
    "sheep": "sheep",
    "skis": "pairs of skis",
    "toothbrush": "toothbrushes",
    "bus": "buses",
    "wine glass": "wine glasses",
}
# GenEval's own wording, "a photo of ...", is not among these: it has a share of its own, the largest.
DRAW_WORDINGS = (
    "draw {}",
    "Draw {}.",
    "Please paint {}.",
    "paint {}",
    "Show me {}.",
    "Can you make a picture of {}?",
    "Please make an image of {}.",
    "I would like a picture of {}.",
    "Generate a photo of {}.",
    "a picture of {}",
)
GENEVAL_WORDING_SHARE = 0.5
DESCRIBE_WORDINGS = (
    "Describe the picture.",
    "Describe this image.",
    "What is in the picture?",
    "What do you see?",
    "What does this image show?",
    "Please write a caption.",
)
EXISTENCE_WORDINGS = ("Is there {} in the image?", "Is there {} in the picture?", "Can you see {}?")
COUNT_WORDINGS = ("How many {} are there?", "How many {} are in the image?", "How many {} do you see?")
COLOUR_WORDINGS = ("What color {} the {}?", "What colour {} the {}?", "Which color {} the {}?")
RELATION_WORDINGS = ("Where {} the {} relative to the {}?", "Where {} the {} compared to the {}?")
RELATION_PHRASES = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}
IMAGE = {"type": "image"}

Question = tuple[str, str]


def plural(class_name: str) -> str:
    """The correct English plural of a class ("sheep", "knives"), where GenEval's prompts only add an s."""
    return IRREGULAR_PLURALS.get(class_name, class_name + "s")


def singular(words: str) -> str:
    """One object in correct English, with its article: "an apple", "a green apple", "a pair of red skis"."""
    if words.split()[-1] in PAIRED:
        return f"a pair of {words}"
    return f"a head of {words}" if words.endswith("broccoli") else with_article(words)


def caption(scene: Scene) -> str:
    """What the scene shows, in correct English without a final stop: "two sheep", "a dog to the left of a cup"."""
    include = scene.metadata["include"]
    first = include[0]
    if first["count"] > 1:
        return f"{NUMBERS[first['count']]} {plural(first['class'])}"
    if scene.tag == "position":
        relation = RELATION_PHRASES[include[1]["position"][0]]
        return f"{singular(include[1]['class'])} {relation} {singular(first['class'])}"
    return " and ".join(singular(named(item)) for item in include)


def messages_for(
    scene: Scene,
    kind: str,
    rng: Rng,
    classes: Names = tuple(CLASSES),
    colours: Names = tuple(COLOURS),
    question_first: float = 0.0,
) -> list[dict]:
    """One conversation about the scene, as Hugging Face messages whose content is a list of parts.

    Questions whose answer is no ask for another of `classes` and `colours`. Of conversations about an image, a share
    `question_first` asks before it, the others behind it. Raises ValueError for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(KINDS)}: choose one of them")
    if kind == "draw":
        return [_turn("user", _text(_request(scene, rng))), _turn("assistant", IMAGE)]
    asked: list[Question] = []
    if kind in ("describe", "recall"):
        asked.append((pick(rng, DESCRIBE_WORDINGS, "wording"), _sentence(caption(scene))))
    if kind in ("ask", "recall"):
        asked += questions(scene, rng, classes, colours)
    if kind == "poll":
        asked += polled(scene, rng, classes)
    (question, answer), *later = asked
    first = [_asked(question, rng, question_first), _turn("assistant", _text(answer))]
    return first + [_turn(*turn) for q, a in later for turn in (("user", _text(q)), ("assistant", _text(a)))]


def questions(
    scene: Scene, rng: Rng, classes: Names = tuple(CLASSES), colours: Names = tuple(COLOURS)
) -> list[Question]:
    """Two or three different questions with short answers, all taken from the objects."""
    asked = [_about_existence(scene, rng, classes, colours), _about_count(scene, rng)]
    coloured = [item for item in scene.objects if item.colour is not None]
    if coloured:
        asked.append(_about_colour(pick(rng, coloured, "object"), rng))
    related = [pair for pair in itertools.permutations(scene.objects, 2) if _clearly_related(*pair)]
    if related:
        asked.append(_about_relation(*pick(rng, related, "pair"), rng))
    wanted = min(len(asked), int(rng.integers(2, 4)))
    return [asked[i] for i in rng.permutation(len(asked))[:wanted]]


def polled(scene: Scene, rng: Rng, classes: Names = tuple(CLASSES)) -> list[Question]:
    """Up to `POLLED` questions whether a class is there, in POPE's form, of which none repeats another.

    The first is answered yes as often as no; behind a yes the next ones are less likely to be, as little is shown.
    """
    found: dict[str, bool] = {}
    for _ in range(4 * POLLED):  # tries
        found.setdefault(*_there_or_not(scene, rng, classes, ()))
    return [_is_there(asked, yes, rng) for asked, yes in itertools.islice(found.items(), POLLED)]


def _text(words: str) -> dict:
    return {"type": "text", "text": words}


def _turn(role: str, *parts: dict) -> dict:
    return {"role": role, "content": [dict(part) for part in parts]}


def _asked(question: str, rng: Rng, question_first: float) -> dict:
    """A user turn of the image and the question; nothing is drawn from `rng` where there is no choice."""
    before = question_first > 0 and rng.random() < question_first
    return _turn("user", *((_text(question), IMAGE) if before else (IMAGE, _text(question))))


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}."


def be(class_name: str) -> str:
    """The verb that goes with a class: scissors are, a cat is."""
    return "are" if class_name in PAIRED else "is"


def _request(scene: Scene, rng: Rng) -> str:
    if rng.random() < GENEVAL_WORDING_SHARE:
        return scene.metadata["prompt"]
    return pick(rng, DRAW_WORDINGS, "wording").format(caption(scene))


def _about_existence(scene: Scene, rng: Rng, classes: Names, colours: Names) -> Question:
    return _is_there(*_there_or_not(scene, rng, classes, colours), rng)


def _there_or_not(scene: Scene, rng: Rng, classes: Names, colours: Names) -> tuple[str, bool]:
    """A class, or a class in a colour, there or not with equal chance (POPE, Li et al. 2023, arXiv:2305.10355).

    Without `colours` a class alone. Always there where nothing is left that could be missing.
    """
    shown = pick(rng, scene.objects, "object")
    there, missing = shown.class_name, _missing_classes(scene, classes)
    if colours and shown.colour is not None and rng.integers(2):
        there = f"{shown.colour} {shown.class_name}"
        missing = [f"{colour} {shown.class_name}" for colour in _missing_colours(shown.class_name, scene, colours)]
    yes = not missing or bool(rng.integers(2))
    return (there if yes else pick(rng, missing, "missing object")), yes


def _is_there(asked: str, yes: bool, rng: Rng) -> Question:
    return pick(rng, EXISTENCE_WORDINGS, "wording").format(singular(asked)), "Yes." if yes else "No."


# A training scene never shows a held-out combination: asking for one would train the answer to be always no.
def _missing_classes(scene: Scene, classes: Names) -> list[str]:
    shown = {item.class_name for item in scene.objects}
    return [c for c in classes if c not in shown and not any(is_held_out_pair(c, other) for other in shown)]


def _missing_colours(class_name: str, scene: Scene, colours: Names) -> list[str]:
    shown = {item.colour for item in scene.objects if item.class_name == class_name}
    return [c for c in colours if c not in shown and not is_held_out_colouring(class_name, c)]


def _about_count(scene: Scene, rng: Rng) -> Question:
    name = pick(rng, scene.objects, "object").class_name
    asked, count = plural(name), sum(item.class_name == name for item in scene.objects)
    if count < len(scene.objects) and rng.integers(2):
        asked, count = "objects", len(scene.objects)
    return pick(rng, COUNT_WORDINGS, "wording").format(asked), _sentence(NUMBERS[count])


def _about_colour(item: SceneObject, rng: Rng) -> Question:
    verb = be(item.class_name)
    question = pick(rng, COLOUR_WORDINGS, "wording").format(verb, item.class_name)
    return question, f"The {item.class_name} {verb} {item.colour}."


def _clearly_related(subject: SceneObject, reference: SceneObject) -> bool:
    return subject.class_name != reference.class_name and len(relations(subject, reference)) == 1


def _about_relation(subject: SceneObject, reference: SceneObject, rng: Rng) -> Question:
    wording = pick(rng, RELATION_WORDINGS, "wording")
    question = wording.format(be(subject.class_name), subject.class_name, reference.class_name)
    return question, _sentence(relations(subject, reference)[0].removesuffix(" of"))
