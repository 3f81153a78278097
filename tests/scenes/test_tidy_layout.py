"""Tidy scenes keep what a scene says and decide where it is."""

import numpy as np
import pytest

from unified.scenes.rendering import CANVAS, TAGS, relations, sample_scene
from unified.scenes.tidy_layout import tidy


@pytest.mark.parametrize("tag", TAGS)
def test_the_place_follows_from_the_prompt(tag: str) -> None:
    rng, places = np.random.default_rng(0), {}
    for _ in range(300):
        scene = tidy(sample_scene(tag, rng, classes=["cat", "dog", "cup"], colours=["red", "blue", "green", "white"]))
        boxes = [(o.class_name, o.colour, o.box) for o in scene.objects]
        assert places.setdefault(scene.metadata["prompt"], boxes) == boxes
    assert len(places) > 2


@pytest.mark.parametrize("tag", TAGS)
def test_objects_stay_what_they_were_inside_and_apart(tag: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        free = sample_scene(tag, rng)
        scene = tidy(free)
        assert scene.metadata == free.metadata
        assert [(o.class_name, o.colour) for o in scene.objects] == [(o.class_name, o.colour) for o in free.objects]
        cells = [o.cell for o in scene.objects]
        for x, y, side in cells:
            assert min(x, y) >= 0 and max(x, y) + side <= CANVAS
        for index, (ax, ay, side) in enumerate(cells):
            assert all(max(abs(ax - bx), abs(ay - by)) >= side for bx, by, _ in cells[index + 1 :])


def test_relations_hold() -> None:
    rng = np.random.default_rng(2)
    for _ in range(100):
        scene = tidy(sample_scene("position", rng))
        reference, subject = scene.objects
        assert relations(subject, reference) == [scene.metadata["include"][1]["position"][0]]
