"""Scenes: GenEval's six tasks rendered with OpenMoji glyphs on a small canvas, with exact metadata for every object.

A scene is sampled (`sample_scene`), then rendered (`draw_scene`); sampling alone is cheap, enough for text and tests.
Tasks and metadata form: GenEval (Ghosh et al. 2023, arXiv:2310.11513).
"""

import difflib
import hashlib
import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeVar

import numpy as np
from PIL import Image

from unified.evaluation.metrics import geneval_relations
from unified.scenes.glyphs import CLASSES, COLOURS, SHARED_CELL, SINGLE_CELL, glyph

CANVAS = 64
BACKGROUND = (236, 236, 236)
GRID = 8  # cells sit on this grid so that the tokenizer's codes of an object repeat from scene to scene
PAIRED = ("scissors", "skis")  # plural words for one thing; GenEval never counts them
TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four"}
HELD_OUT_SEED = "scenes-1"
HELD_OUT_SHARE = 0.1

Rng = np.random.Generator
Names = Sequence[str]
Item = TypeVar("Item")
Colouring = tuple[str, str | None]  # class, colour (None: the natural ones)
Corner = tuple[int, int]  # x, y of a cell


@dataclass(frozen=True)
class SceneObject:
    """One rendered object: `box` is its ink (x1, y1, x2, y2) and `cell` its (x, y, size), both in pixels."""

    class_name: str
    colour: str | None  # None: the glyph's natural colours
    box: tuple[int, int, int, int]
    cell: tuple[int, int, int]


@dataclass(frozen=True)
class Scene:
    """A layout with its GenEval metadata; `objects` follow the order of `metadata["include"]`."""

    tag: str
    objects: tuple[SceneObject, ...]
    metadata: dict


# --- the held-out split


def _held_out() -> frozenset[tuple[str, str, str]]:
    colourings = [("colour", name, colour) for name in CLASSES for colour in COLOURS]
    pairs = [("pair", *names) for names in itertools.combinations(sorted(CLASSES), 2)]
    return frozenset(key for key in colourings + pairs if _uniform("|".join(key)) < HELD_OUT_SHARE)


def _uniform(text: str) -> float:
    """In [0, 1), the same in every run (Python's own hash() is not)."""
    return int.from_bytes(hashlib.sha256(f"{HELD_OUT_SEED}|{text}".encode()).digest()[:8], "big") / 2**64


# ("colour", class, colour) and ("pair", class, class), alphabetical. No training scene of any task shows one.
HELD_OUT: frozenset[tuple[str, str, str]] = _held_out()


def is_held_out_colouring(class_name: str, colour: str) -> bool:
    """Whether this class in this colour is kept out of training."""
    return ("colour", class_name, colour) in HELD_OUT


def is_held_out_pair(first: str, second: str) -> bool:
    """Whether these two classes are kept from meeting in a training scene (order does not matter)."""
    return ("pair", *sorted((first, second))) in HELD_OUT


def held_out_parts(scene: Scene) -> list[tuple[str, ...]]:
    """The members of `HELD_OUT` that a scene shows; empty for every training scene."""
    coloured = [("colour", o.class_name, o.colour) for o in scene.objects if o.colour is not None]
    names = sorted({o.class_name for o in scene.objects})
    return [key for key in (*coloured, *(("pair", *p) for p in itertools.combinations(names, 2))) if key in HELD_OUT]


def tags_of(split: str) -> tuple[str, ...]:
    """The tasks a split has: one natural object, or several of one class, cannot be a held-out combination."""
    if split not in ("train", "heldout"):
        raise ValueError(f"split={split!r} is neither train nor heldout: choose one of them")
    return TAGS if split == "train" else ("two_object", "colors", "position", "color_attr")


# --- drawing


def draw_scene(scene: Scene) -> Image.Image:
    """The scene as an RGB image of `CANVAS` x `CANVAS` pixels."""
    canvas = Image.new("RGB", (CANVAS, CANVAS), BACKGROUND)
    for item in scene.objects:
        picture = glyph(item.class_name, item.colour, item.cell[2])
        canvas.paste(picture, item.box[:2], picture)
    return canvas


# --- layout


@cache
def _placements(count: int) -> tuple[tuple[Corner, ...], ...]:
    """Every way to put `count` shared cells on the grid without overlap, as unordered corners (x, y)."""
    side = range(0, CANVAS - SHARED_CELL + 1, GRID)
    corners = list(itertools.product(side, side))
    return tuple(p for p in itertools.combinations(corners, count) if _apart(p))


def _apart(corners: Sequence[Corner]) -> bool:
    pairs = itertools.combinations(corners, 2)
    return all(max(abs(a[0] - b[0]), abs(a[1] - b[1])) >= SHARED_CELL for a, b in pairs)


@cache
def _related_placements(relation: str) -> tuple[tuple[Corner, Corner], ...]:
    """Corners (subject, reference) with the subject `relation` the reference, and little off the other axis."""
    axis, sign = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}[relation]
    ordered = ((a, b) for pair in _placements(2) for a, b in (pair, pair[::-1]))
    clear = ((a, b) for a, b in ordered if sign * (a[axis] - b[axis]) >= SHARED_CELL)
    return tuple((a, b) for a, b in clear if abs(a[1 - axis] - b[1 - axis]) <= SHARED_CELL // 2)


def relations(subject: SceneObject, reference: SceneObject) -> list[str]:
    """Every `RELATIONS` member that holds between two objects by GenEval's rule."""
    return [name for name in RELATIONS if name in geneval_relations(subject.box, reference.box)]


def place(class_name: str, colour: str | None, corner: Corner, cell_size: int) -> SceneObject:
    width, height = glyph(class_name, colour, cell_size).size
    x, y = corner[0] + (cell_size - width) // 2, corner[1] + (cell_size - height) // 2
    return SceneObject(class_name, colour, (x, y, x + width, y + height), (*corner, cell_size))


# --- sampling


@dataclass(frozen=True)
class _Choice:
    """What a sampler may use, and whether the scene must show a member of `HELD_OUT` or must not."""

    classes: tuple[str, ...]
    colours: tuple[str, ...]
    held_out: bool


def sample_scene(
    tag: str, rng: Rng, classes: Names = tuple(CLASSES), colours: Names = tuple(COLOURS), split: str = "train"
) -> Scene:
    """One layout of a GenEval task: `train` shows no member of `HELD_OUT`, `heldout` always shows at least one.

    Raises ValueError for an unknown tag, class, colour or split, and where the choice leaves no scene.
    """
    check_names("class", classes, CLASSES)
    check_names("colour", colours, COLOURS)
    check_names("tag", (tag,), tags_of(split))
    choice = _Choice(tuple(dict.fromkeys(classes)), tuple(dict.fromkeys(colours)), split == "heldout")
    return _SAMPLERS[tag](rng, choice)


def check_names(kind: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises ValueError for the first name that is not known, and tells the nearest ones that are."""
    known = list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) if len(known) > 10 else []
            valid = f"the nearest of {len(known)} are {', '.join(near)}" if near else f"take one of {', '.join(known)}"
            raise ValueError(f"unknown {kind} {name!r} in this split: {valid}")


def pick(rng: Rng, choices: Sequence[Item], what: str) -> Item:
    """One of the choices, uniformly. Raises ValueError, naming `what` is missing, if there is none."""
    if not choices:
        raise ValueError(f"no {what} among the chosen classes and colours: choose more of them")
    return choices[int(rng.integers(len(choices)))]


def with_article(words: str) -> str:
    """The words after "a" or "an"."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def named(item: dict) -> str:
    """One entry of `metadata["include"]` in words: colour, if asked, and class."""
    return f"{item['color']} {item['class']}" if "color" in item else item["class"]


@cache
def _pairs(classes: tuple[str, ...], held_out: bool) -> tuple[tuple[str, str], ...]:
    return tuple(p for p in itertools.permutations(classes, 2) if is_held_out_pair(*p) == held_out)


@cache
def _colourings(classes: tuple[str, ...], colours: tuple[str, ...], held_out: bool) -> tuple[tuple[str, str], ...]:
    both = itertools.product(classes, colours)
    return tuple(c for c in both if is_held_out_colouring(*c) == held_out)


def _scene(tag: str, include: list[dict], objects: list[SceneObject], prompt: str, **extra: list[dict]) -> Scene:
    return Scene(tag, tuple(objects), {"tag": tag, "include": include, **extra, "prompt": f"a photo of {prompt}"})


def _one_object(tag: str, rng: Rng, class_name: str, colour: str | None) -> Scene:
    x, y = (rng.integers((CANVAS - SINGLE_CELL) // GRID + 1, size=2) * GRID).tolist()
    entry = _entry(class_name, colour)
    return _scene(tag, [entry], [place(class_name, colour, (x, y), SINGLE_CELL)], with_article(named(entry)))


def _two_objects(tag: str, rng: Rng, items: list[Colouring]) -> Scene:
    corners = rng.permutation(pick(rng, _placements(2), "place")).tolist()
    objects = [place(*item, tuple(corner), SHARED_CELL) for item, corner in zip(items, corners, strict=True)]
    include = [_entry(*item) for item in items]
    return _scene(tag, include, objects, " and ".join(with_article(named(entry)) for entry in include))


def _entry(class_name: str, colour: str | None) -> dict:
    return {"class": class_name, "count": 1} | ({} if colour is None else {"color": colour})


def _sample_single_object(rng: Rng, choice: _Choice) -> Scene:
    return _one_object("single_object", rng, pick(rng, choice.classes, "class"), None)


def _sample_colors(rng: Rng, choice: _Choice) -> Scene:
    allowed = _colourings(choice.classes, choice.colours, choice.held_out)
    return _one_object("colors", rng, *pick(rng, allowed, "colouring of this split"))


def _sample_two_object(rng: Rng, choice: _Choice) -> Scene:
    pair = pick(rng, _pairs(choice.classes, choice.held_out), "pair of this split")
    return _two_objects("two_object", rng, [(name, None) for name in pair])


def _sample_color_attr(rng: Rng, choice: _Choice) -> Scene:
    attributes = _held_out_attributes if choice.held_out else _training_attributes
    return _two_objects("color_attr", rng, attributes(rng, choice))


def _training_attributes(rng: Rng, choice: _Choice) -> list[Colouring]:
    first, second = pick(rng, _pairs(choice.classes, False), "training pair")
    name, colour = pick(rng, _colourings((first,), choice.colours, False), f"training colour of {first!r}")
    others = tuple(c for c in choice.colours if c != colour)
    return [(name, colour), pick(rng, _colourings((second,), others, False), f"training colour of {second!r}")]


def _held_out_attributes(rng: Rng, choice: _Choice) -> list[Colouring]:
    """Either the pair is held out, or one object's colour is (a fair coin); the rest is free."""
    if rng.integers(2):
        names = pick(rng, _pairs(choice.classes, True), "held-out pair")
        colours = pick(rng, list(itertools.permutations(choice.colours, 2)), "two colours")
        return list(zip(names, colours, strict=True))
    name, colour = pick(rng, _colourings(choice.classes, choice.colours, True), "held-out colouring")
    other = pick(rng, [n for n in choice.classes if n != name], "second class")
    second = pick(rng, [c for c in choice.colours if c != colour], "second colour")
    items: list[Colouring] = [(name, colour), (other, second)]
    return items if rng.integers(2) else items[::-1]


def _sample_counting(rng: Rng, choice: _Choice) -> Scene:
    name = pick(rng, [n for n in choice.classes if n not in PAIRED], "class that can be counted")
    count = int(rng.integers(2, 5))
    objects = [place(name, None, corner, SHARED_CELL) for corner in pick(rng, _placements(count), "place")]
    plural = name + ("es" if name.endswith("s") else "s")  # GenEval's own rule: "two benchs", "three buses"
    limit = [{"class": name, "count": count + 1}]
    return _scene("counting", [{"class": name, "count": count}], objects, f"{NUMBERS[count]} {plural}", exclude=limit)


def _sample_position(rng: Rng, choice: _Choice) -> Scene:
    subject, reference = pick(rng, _pairs(choice.classes, choice.held_out), "pair of this split")
    relation = pick(rng, RELATIONS, "relation")
    corners = pick(rng, _related_placements(relation), "place")
    objects = [place(reference, None, corners[1], SHARED_CELL), place(subject, None, corners[0], SHARED_CELL)]
    include = [_entry(reference, None), _entry(subject, None) | {"position": [relation, 0]}]  # [what, of include[0]]
    return _scene("position", include, objects, f"{with_article(subject)} {relation} {with_article(reference)}")


_SAMPLERS: dict[str, Callable[[Rng, _Choice], Scene]] = {
    "single_object": _sample_single_object, "two_object": _sample_two_object, "counting": _sample_counting,
    "colors": _sample_colors, "position": _sample_position, "color_attr": _sample_color_attr,
}  # fmt: skip
