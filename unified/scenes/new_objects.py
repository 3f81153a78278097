"""Tidy scenes of objects that Scenes has not, for fine-tuning a model trained on Scenes: one in the middle, or two.

A scene may show any glyph, `NEW_OBJECTS` as well as `CLASSES`; its metadata is GenEval's.
"""

import itertools
from collections.abc import Sequence

from unified.scenes.glyphs import NEW_OBJECTS
from unified.scenes.rendering import SINGLE_CELL, Colouring, Scene, named, place, with_article
from unified.scenes.tidy_layout import tidy

CAPTIONS = ("a photo of {}", "a picture of {}", "{}")  # the first is GenEval's


def object_scene(items: Sequence[Colouring]) -> Scene:
    """One object in the middle, or two side by side in this order, as `tidy` has them; None is the natural colour."""
    include = [{"class": name, "count": 1} | ({} if colour is None else {"color": colour}) for name, colour in items]
    coloured = any(colour is not None for _, colour in items)
    tag = ("single_object", "colors", "two_object", "color_attr")[2 * (len(items) - 1) + coloured]
    prompt = CAPTIONS[0].format(" and ".join(with_article(named(item)) for item in include))
    objects = tuple(place(*item, (0, 0), SINGLE_CELL) for item in items)  # `tidy` gives them their places
    return tidy(Scene(tag, objects, {"tag": tag, "include": include, "prompt": prompt}))


def new_object_scenes(colours: Sequence[str], pairs: bool) -> list[Scene]:
    """Every new object in its natural colours, then in each of `colours`, then any two of them in both orders."""
    shown: list[list[Colouring]] = [[(name, colour)] for colour in (None, *colours) for name in NEW_OBJECTS]
    if pairs:
        shown += [[(first, None), (second, None)] for first, second in itertools.permutations(NEW_OBJECTS, 2)]
    return [object_scene(items) for items in shown]


def captions(scene: Scene) -> list[str]:
    """Captions as people might write them; the first one is the scene's prompt."""
    shown = scene.metadata["prompt"].removeprefix(CAPTIONS[0].format(""))
    return [wording.format(shown) for wording in CAPTIONS]
