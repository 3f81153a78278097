"""Answer parsing: yes or no, a count, a colour, a side, and the objects a caption mentions. Pure functions of text.

Nothing is guessed: an answer that has none of these, or two of them, is unreadable (None).
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

from unified.scenes.rendering import CLASSES, COLOURS, NUMBERS, Scene, relations
from unified.scenes.texts import plural

COUNTS = {word: number for number, word in NUMBERS.items()} | {
    "zero": 0, "no": 0, "none": 0, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
}  # fmt: skip
YES_NO = {"yes": "yes", "no": "no", "not": "no"}
SIDES = {
    "left": "left of", "right": "right of", "above": "above", "over": "above", "below": "below", "under": "below",
    "underneath": "below", "beneath": "below",
}  # fmt: skip
# words around the mentions of a caption that mention nothing themselves; any other word makes it unreadable
FILLERS = "there is are in the this it shows showing show see and with picture image photo of i on can drawing".split()

Value = TypeVar("Value")


@dataclass(frozen=True)
class Mention:
    """So many objects of a class, in a colour if one is named."""

    class_name: str
    count: int
    colour: str | None = None


@dataclass(frozen=True)
class Caption:
    """A parsed caption: mentions in order, and relations as (subject, relation, reference) of their classes."""

    mentions: tuple[Mention, ...]
    relations: tuple[tuple[str, str, str], ...] = ()


def read_yes_no(answer: str) -> str | None:
    """ "yes" or "no" by the first sentence, as POPE reads answers, but None where it has neither or both."""
    return _only(YES_NO[word] for word in _words(re.split(r"[.!?\n]", answer.strip())[0]) if word in YES_NO)


def read_count(answer: str) -> int | None:
    """The one number of an answer, in digits or as a word up to ten."""
    return _only(int(w) if w.isdigit() else COUNTS[w] for w in _words(answer) if w.isdigit() or w in COUNTS)


def read_colour(answer: str, class_name: str) -> str | None:
    """The one colour of an answer; "the <class>" is passed over, since an orange may be green."""
    words = re.sub(rf"\bthe {class_name}\b", " ", answer.lower())
    return _only(word for word in _words(words) if word in COLOURS)


def read_relation(answer: str) -> str | None:
    """The one side of an answer, as a member of `RELATIONS`."""
    return _only(SIDES[word] for word in _words(answer) if word in SIDES)


def read_caption(text: str) -> Caption | None:
    """The parsed caption; None where a word is neither part of a mention nor a filler, or where nothing is mentioned.

    A mention is `[number or article] [pair of | head of] [colour] class`; a plural without a number has no count and
    is unreadable. A relation stands between the two mentions it joins.
    """
    mentions: list[Mention] = []
    found: list[tuple[int, str]] = []
    position, text = 0, " ".join(text.lower().split())
    while position < len(text):
        match = _grammar().match(text, position)
        if match is None:
            return None
        position = match.end()
        if match["class"] is not None:
            mention = _mention(match)
            if mention is None:
                return None
            mentions.append(mention)
        elif match["side"] is not None:
            found.append((len(mentions), SIDES[match["side"]]))
    if not mentions or any(not 0 < place < len(mentions) for place, _ in found):
        return None
    joined = [(mentions[place - 1].class_name, side, mentions[place].class_name) for place, side in found]
    return Caption(tuple(mentions), tuple(joined))


def check_caption(caption: Caption | None, scene: Scene) -> tuple[bool, str]:
    """Whether a caption is right about a scene, and else why not: GenEval's rules on the exact objects.

    Right is a caption whose mentions are the scene's objects, no more and none left out, counted by class and colour
    (GenEval's `include` with the count as `exclude`'s limit; objects in natural colours have none to be named), whose
    relations all hold by GenEval's rule, and which names one where the scene's metadata do.
    """
    if caption is None:
        return False, "unreadable"
    said: Counter[tuple[str, str | None]] = Counter()
    for mention in caption.mentions:
        said[mention.class_name, mention.colour] += mention.count
    shown = Counter((item.class_name, item.colour) for item in scene.objects)
    wrong = [f"says {said[key]} {_name(key)}, shown {shown[key]}" for key in said | shown if said[key] != shown[key]]
    wrong += [f"not {first} {side} {second}" for first, side, second in caption.relations
              if not _holds(scene, first, side, second)]  # fmt: skip
    if not caption.relations and any("position" in entry for entry in scene.metadata["include"]):
        wrong.append("says no relation")
    return not wrong, "; ".join(wrong)


def _holds(scene: Scene, first: str, side: str, second: str) -> bool:
    pairs = [(a, b) for a in scene.objects for b in scene.objects if (a.class_name, b.class_name) == (first, second)]
    return any(side in relations(a, b) for a, b in pairs if a is not b)


def _name(key: tuple[str, str | None]) -> str:
    return " ".join(part for part in key[::-1] if part)


def _words(text: str) -> list[str]:
    return re.findall(r"[a-z]+|\d+", text.lower())


def _only(values: Iterable[Value]) -> Value | None:
    """The value, if all are one."""
    different = set(values)
    return different.pop() if len(different) == 1 else None


@cache
def _names() -> dict[str, tuple[str, bool]]:
    """Every spelling of a class to the class and whether it is a plural; GenEval's own plurals are among them."""
    names: dict[str, tuple[str, bool]] = {}
    for name in CLASSES:
        right = plural(name).removeprefix("pairs of ").removeprefix("heads of ")
        names |= {spelling: (name, True) for spelling in (right, f"{name}s", f"{name}es")}
    return names | {name: (name, False) for name in CLASSES}


@cache
def _grammar() -> re.Pattern[str]:
    """One mention, side, filler or mark of punctuation; the longest class name wins."""

    def among(words: Sequence[str]) -> str:
        return "|".join(sorted(map(re.escape, words), key=len, reverse=True))

    count = rf"(?:(?P<count>an?|\d+|{among(list(COUNTS))}) )?"
    measure = r"(?:(?P<measure>pair|head|pairs|heads) of )?"
    mention = rf"{count}{measure}(?:(?P<colour>{among(list(COLOURS))}) )?(?P<class>{among(list(_names()))})\b"
    side = rf"(?:(?:to|on|at) the )?(?P<side>{among(list(SIDES))})(?: of)?\b"
    filler = rf"(?:an? )?(?:{among(FILLERS)})\b"
    return re.compile(rf"(?:{mention}|{side}|{filler}|[.,!])\s*")


def _mention(match: re.Match[str]) -> Mention | None:
    name, is_plural = _names()[match["class"]]
    word = match["count"]
    if word is None and (is_plural or match["measure"] in ("pairs", "heads")):
        return None
    count = 1 if word in (None, "a", "an") else int(word) if word.isdigit() else COUNTS[word]
    return Mention(name, count, match["colour"])
