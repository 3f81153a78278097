"""The Scenes understanding benchmark: questions about images the model was not trained on, and their scores.

Five parts, each on scenes of its own: existence in POPE's form, counting, colour, relation, and captions. Answers are
generated and parsed (`unified.scenes.answer_parsing`), never scored by likelihood; an unreadable answer is wrong.

Existence is POPE's (Li et al. 2023, arXiv:2305.10355): for every scene one question about a class that is there (yes),
and in each setting one about a class that is not (no):
    random       any absent class, all alike;
    popular      one of the three absent classes that most scenes show;
    adversarial  one of the three absent classes that most scenes show together with a class of this one.
"Most scenes" are counted over `REFERENCE_SCENES` training-style scenes of the same classes and colours. POPE asks
about all three of its top three; one of them, drawn alike, keeps yes and no balanced in scenes of one or two classes.
Scenes draws classes and pairs almost evenly, so these two settings show a model's own biases more than the data's.
"""

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from unified.evaluation.metrics import binary_scores, clustered_mean
from unified.scenes.answer_parsing import (
    check_caption,
    read_caption,
    read_colour,
    read_count,
    read_relation,
    read_yes_no,
)
from unified.scenes.rendering import CLASSES, COLOURS, TAGS, Rng, Scene, pick, relations, sample_scene, tags_of
from unified.scenes.texts import (
    COLOUR_WORDINGS,
    COUNT_WORDINGS,
    DESCRIBE_WORDINGS,
    EXISTENCE_WORDINGS,
    RELATION_WORDINGS,
    be,
    caption,
    plural,
    singular,
)
from unified.scenes.tidy_layout import tidy

PARTS = ("existence", "counting", "colour", "relation", "caption")
SETTINGS = ("random", "popular", "adversarial")
WORDINGS: dict[str, dict[str, Sequence[str]]] = {
    "training": {
        "existence": EXISTENCE_WORDINGS,
        "counting": COUNT_WORDINGS,
        "colour": COLOUR_WORDINGS,
        "relation": RELATION_WORDINGS,
        "caption": DESCRIBE_WORDINGS,
    },
    # none of these is trained on; the places in braces are filled with the same words in the same order
    "unseen": {
        "existence": ("Does this picture show {}?", "Is {} visible here?"),
        "counting": ("What is the number of {} in this picture?", "Count the {}."),
        "colour": ("Tell me what color {} the {}.", "In which colour {} the {} painted?"),
        "relation": ("On which side {} the {}, seen from the {}?", "Tell me where {} the {}, seen from the {}."),
        "caption": ("Tell me what is shown here.", "Summarize this photo."),
    },
}
STREAM = 2305_10355  # first word of every seed here; rendered training scenes have seeds of another length
REFERENCE_SCENES = 6000
TOP = 3


@dataclass(frozen=True)
class Domain:
    """Which scenes are asked about: split and layout as in data_prep/render_scenes.py, classes and colours."""

    split: str = "train"
    layout: str = "free"
    classes: tuple[str, ...] = tuple(CLASSES)
    colours: tuple[str, ...] = tuple(COLOURS)

    def sample(self, tag: str, rng: Rng) -> Scene:
        """One scene of a task."""
        scene = sample_scene(tag, rng, self.classes, self.colours, self.split)
        return tidy(scene) if self.layout == "tidy" else scene


@dataclass(frozen=True)
class Question:
    """One question about the `number`-th scene of its part; `about` is the class in it, `settings` POPE's."""

    part: str
    number: int
    scene: Scene
    text: str
    truth: str
    about: str = ""
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class ScoredAnswer:
    """An answer, what was parsed from it (None: unreadable), whether that is right, and if not, why."""

    question: Question
    answer: str
    read: str | None
    correct: bool
    reason: str

    def record(self) -> dict[str, Any]:
        """As one line of JSON."""
        question, scene = self.question, self.question.scene
        objects = [{"class": o.class_name, "color": o.colour, "box": list(o.box)} for o in scene.objects]
        asked = {"part": question.part, "number": question.number, "settings": list(question.settings)}
        asked |= {"tag": scene.tag, "prompt": scene.metadata["prompt"], "objects": objects}
        asked |= {"question": question.text, "truth": question.truth, "answer": self.answer}
        return asked | {"read": self.read, "correct": self.correct, "reason": self.reason}


# --- questions


def questions(part: str, count: int, seed: int, domain: Domain, wordings: str = "training") -> list[Question]:
    """The questions of one part about `count` scenes; a function of the arguments alone.

    Raises ValueError where the classes and colours leave no scene, or no class that could be absent.
    """
    words, ask = WORDINGS[wordings][part], _ASKERS[part]
    found: list[Question] = []
    for number in range(count):
        rng = np.random.default_rng([STREAM, seed, PARTS.index(part), number])
        found += ask(number, rng, words, domain)
    return found


def _ask_existence(number: int, rng: Rng, words: Sequence[str], domain: Domain) -> Iterator[Question]:
    scene = domain.sample(_turn(tags_of(domain.split), number), rng)
    shown = list(dict.fromkeys(item.class_name for item in scene.objects))

    def question(name: str, truth: str, settings: tuple[str, ...]) -> Question:
        text = pick(rng, words, "wording").format(singular(name))
        return Question("existence", number, scene, text, truth, name, settings)

    yield question(pick(rng, shown, "class"), "yes", SETTINGS)
    for setting in SETTINGS:
        absent = absent_classes(setting, shown, domain)
        yield question(pick(rng, absent, "class that could be absent"), "no", (setting,))


def absent_classes(setting: str, shown: Sequence[str], domain: Domain) -> list[str]:
    """Classes that a scene which shows `shown` may be asked about in vain."""
    absent = [name for name in domain.classes if name not in shown]
    if setting == "random":
        return absent
    alone, together = _reference(domain.classes, domain.colours)
    counts = alone if setting == "popular" else sum((together[name] for name in shown), Counter())
    return sorted(absent, key=lambda name: -counts[name])[:TOP]


@cache
def _reference(classes: tuple[str, ...], colours: tuple[str, ...]) -> tuple[Counter[str], dict[str, Counter[str]]]:
    """In how many training-style scenes a class is shown, and for every class, with which others."""
    alone: Counter[str] = Counter()
    together: dict[str, Counter[str]] = defaultdict(Counter)
    rng = np.random.default_rng([STREAM])
    for number in range(REFERENCE_SCENES):
        names = {item.class_name for item in sample_scene(_turn(TAGS, number), rng, classes, colours).objects}
        alone.update(names)
        for first, second in itertools.permutations(names, 2):
            together[first][second] += 1
    return alone, together


def _ask_counting(number: int, rng: Rng, words: Sequence[str], domain: Domain) -> Iterator[Question]:
    """One to four of a class, all alike; held-out scenes have none that repeats: one of a class, or two objects."""
    if domain.split == "heldout":
        scene = domain.sample(_turn(("two_object", "position", "color_attr"), number // 2), rng)
        name = pick(rng, scene.objects, "object").class_name if number % 2 else "object"
        count = 1 if number % 2 else len(scene.objects)
    else:
        scene = domain.sample(_turn(("single_object", "counting", "counting", "counting"), number), rng)
        name, count = scene.objects[0].class_name, len(scene.objects)
    text = pick(rng, words, "wording").format(plural(name))
    yield Question("counting", number, scene, text, str(count), name)


def _ask_colour(number: int, rng: Rng, words: Sequence[str], domain: Domain) -> Iterator[Question]:
    scene = domain.sample(_turn(("colors", "color_attr"), number), rng)
    item = pick(rng, scene.objects, "object")
    text = pick(rng, words, "wording").format(be(item.class_name), item.class_name)
    yield Question("colour", number, scene, text, str(item.colour), item.class_name)


def _ask_relation(number: int, rng: Rng, words: Sequence[str], domain: Domain) -> Iterator[Question]:
    scene = domain.sample("position", rng)
    subject, reference = scene.objects if rng.integers(2) else scene.objects[::-1]
    (truth,) = relations(subject, reference)  # position scenes are laid out so that one and only one holds
    names = subject.class_name, reference.class_name
    text = pick(rng, words, "wording").format(be(names[0]), *names)
    yield Question("relation", number, scene, text, truth, names[0])


def _ask_caption(number: int, rng: Rng, words: Sequence[str], domain: Domain) -> Iterator[Question]:
    scene = domain.sample(_turn(tags_of(domain.split), number), rng)
    yield Question("caption", number, scene, pick(rng, words, "wording"), caption(scene))


_ASKERS = {
    "existence": _ask_existence,
    "counting": _ask_counting,
    "colour": _ask_colour,
    "relation": _ask_relation,
    "caption": _ask_caption,
}


def _turn(tags: Sequence[str], number: int) -> str:
    return tags[number % len(tags)]


# --- answers


def score_answer(question: Question, answer: str) -> ScoredAnswer:
    """Parse an answer and compare it with the truth; captions are checked mention by mention (`check_caption`)."""
    if question.part == "caption":
        said = read_caption(answer)
        correct, reason = check_caption(said, question.scene)
        return ScoredAnswer(question, answer, None if said is None else answer, correct, reason)
    read = _read(question, answer)
    reason = "" if read == question.truth else "unreadable" if read is None else f"{read}, not {question.truth}"
    return ScoredAnswer(question, answer, read, read == question.truth, reason)


def _read(question: Question, answer: str) -> str | None:
    if question.part == "existence":
        return read_yes_no(answer)
    if question.part == "colour":
        return read_colour(answer, question.about)
    if question.part == "relation":
        return read_relation(answer)
    count = read_count(answer)
    return None if count is None else str(count)


def summary(scored: Iterable[ScoredAnswer]) -> dict[str, Any]:
    """What `write_result` takes: `value`, `n`, `stderr`, `parts`, POPE's numbers per setting, captions per task.

    The value is the unweighted mean of the five parts' accuracies, existence being that of its three settings.
    Standard errors take the questions about one scene together; the parts' scenes are independent.
    """
    by_part: dict[str, list[ScoredAnswer]] = {part: [] for part in PARTS}
    for item in scored:
        by_part[item.question.part].append(item)
    parts = {part: _accuracy(found) for part, found in by_part.items()}
    errors = [part["stderr"] for part in parts.values()]
    return {
        "value": sum(part["value"] for part in parts.values()) / len(parts),
        "n": sum(part["n"] for part in parts.values()),
        "stderr": None if None in errors else sum(error**2 for error in errors) ** 0.5 / len(parts),
        "unreadable": sum(part["unreadable"] for part in parts.values()),
        "parts": parts,
        "existence": {setting: _pope(by_part["existence"], setting) for setting in SETTINGS},
        "caption": {tag: _accuracy(found) for tag, found in _by_tag(by_part["caption"]).items()},
    }


def _accuracy(scored: Sequence[ScoredAnswer]) -> dict[str, Any]:
    """Share of right answers; a yes of existence counts in each of its settings."""
    scenes: dict[int, list[float]] = defaultdict(list)
    for item in scored:
        scenes[item.question.number] += [float(item.correct)] * max(len(item.question.settings), 1)
    value, stderr = clustered_mean(scenes.values())
    unreadable = sum(item.read is None for item in scored)
    return {"value": value, "stderr": stderr, "n": len(scored), "unreadable": unreadable}


def _pope(scored: Sequence[ScoredAnswer], setting: str) -> dict[str, Any]:
    """POPE's numbers of one setting; an unreadable answer is no yes, and wrong in all but the share of yes."""
    asked = [item for item in scored if setting in item.question.settings]
    truths = [item.question.truth == "yes" for item in asked]
    answers = [truth == item.correct for item, truth in zip(asked, truths, strict=True)]
    yes_share = sum(item.read == "yes" for item in asked) / len(asked)
    return binary_scores(answers, truths) | {"yes_share": yes_share, "n": len(asked)}


def _by_tag(scored: Iterable[ScoredAnswer]) -> dict[str, list[ScoredAnswer]]:
    tags: dict[str, list[ScoredAnswer]] = defaultdict(list)
    for item in scored:
        tags[item.question.scene.tag].append(item)
    return tags
