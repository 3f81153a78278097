"""Tidy scenes: the same objects, always in the same places, so that a prompt has one image.

A scale is sampled in one parallel step, every code from its own distribution. Where objects may lie anywhere, those
distributions are mixtures over places, and codes sampled from them independently do not form one object; a short
training cannot get round that. With tidy scenes the place follows from the prompt.
"""

from unified.scenes.rendering import CANVAS, SHARED_CELL, SINGLE_CELL, Scene, place

FAR = CANVAS - SHARED_CELL
MIDDLE = FAR // 2
LEFT, RIGHT, TOP, BOTTOM = (0, MIDDLE), (FAR, MIDDLE), (MIDDLE, 0), (MIDDLE, FAR)
COUNTED = {2: [LEFT, RIGHT], 3: [(0, 0), (FAR, 0), BOTTOM], 4: [(0, 0), (FAR, 0), (0, FAR), (FAR, FAR)]}
# corners of the reference and of the subject, as `sample_scene` orders them
RELATED = {
    "left of": [RIGHT, LEFT],
    "right of": [LEFT, RIGHT],
    "above": [BOTTOM, TOP],
    "below": [TOP, BOTTOM],
}


def tidy(scene: Scene) -> Scene:
    """`scene` with one object in the middle, two from left to right as they are named, relations along their axis."""
    if len(scene.objects) == 1:
        corners, side = [((CANVAS - SINGLE_CELL) // 2,) * 2], SINGLE_CELL
    elif scene.tag == "position":
        corners, side = RELATED[scene.metadata["include"][1]["position"][0]], SHARED_CELL
    else:
        corners, side = COUNTED[len(scene.objects)], SHARED_CELL
    objects = [place(o.class_name, o.colour, corner, side) for o, corner in zip(scene.objects, corners, strict=True)]
    return Scene(scene.tag, tuple(objects), scene.metadata)
