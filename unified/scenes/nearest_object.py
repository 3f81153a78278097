"""A nearest-neighbour classifier of the objects in tidy images, for objects that no detector was trained on.

Reference images are every class in its natural and in all colours, as rendered and as the image tokenizer reconstructs
them, since generated images come out of it. A window (the whole image for one object, its halves for two) is compared
with them after average pooling over `POOL` x `POOL` pixels, which forgives the tokenizer's grain. Distances are root
mean squares in grey levels, 0 to 255.

The nearest class counts only if it is nearer than `threshold` (`ACCEPTED` of true images are, moved by one pixel so
that none is a reference, and reconstructed), and by a tenth nearer than any other (`LEAD`). So a mean of two objects,
which is as far from one as from the other, is neither. The empty canvas is a reference of no object, and so are all
objects faded by half: without these, means of a red flag and a thin object pass for pink flags. With them 5 to 8 of
the 423 means of a new object and another pass in a half of the image, and none in the middle.

Legend: N images, F features of a window, R reference images, C classes.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image, ImageChops
from torch import Tensor

from unified.scenes.new_objects import object_scene
from unified.scenes.rendering import BACKGROUND, CANVAS, COLOURS, Colouring, Rng, draw_scene

POOL = 4
ACCEPTED = 0.99
LEAD = 0.9
STEPS = [(x, y) for x in (-1, 0, 1) for y in (-1, 0, 1) if x or y]
WINDOWS = {1: ((0, CANVAS),), 2: ((0, CANVAS // 2), (CANVAS // 2, CANVAS))}  # columns, by number of objects
NOTHING = "nothing"  # the class of the empty canvas
TAGS = ("single_object", "colors", "two_object", "color_attr")

Images = Sequence[Image.Image]
Reconstruct = Callable[[Images], Images]  # images -> the tokenizer's reconstructions, encode then decode


@dataclass(frozen=True)
class Prediction:
    """A window's nearest class (or `NOTHING`), its nearest of ten colours, and whether the nearest class counts."""

    class_name: str
    colour: str | None
    distance: float
    clear: bool

    def matches(self, item: Colouring) -> bool:
        """Whether it is this class, and this colour if one is asked for."""
        return self.clear and self.class_name == item[0] and item[1] in (None, self.colour)

    def words(self, with_colour: bool) -> str:
        """For people: "red star", "nothing", "unclear, nearest star"."""
        name = f"{self.colour} {self.class_name}" if with_colour and self.colour else self.class_name
        return name if self.clear or name == NOTHING else f"unclear, nearest {name}"


class ObjectClassifier:
    """Classifies images of `count` objects (1: in the middle, 2: side by side) among all `class_names`.

    `reconstruct` is the image tokenizer, encode then decode. `seed` moves the images that thresholds are fitted on,
    and chooses the second object of each, on which the reconstruction of the first depends a little.
    """

    def __init__(self, count: int, class_names: Sequence[str], reconstruct: Reconstruct, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        labels: list[Colouring] = [(name, colour) for name in class_names for colour in (None, *COLOURS)]
        alike, mixed, fitted = [(label,) * count for label in labels], mix(labels, count, rng), mix(labels, count, rng)
        drawn, nothing = [draw(items) for items in alike], ((NOTHING, None),) * count
        faded = [Image.blend(image, empty(), 0.5) for image in drawn]
        known = [*drawn, *reconstruct([*map(draw, mixed), empty()]), empty(), *faded]
        shown = [*alike, *mixed, *[nothing] * (2 + len(faded))]
        steps = rng.choice(STEPS, len(fitted)).tolist()
        shifted = reconstruct([moved(draw(items), *step) for items, step in zip(fitted, steps, strict=True)])
        self.windows = [
            _Window(columns, [items[place] for items in shown], known, [items[place] for items in fitted], shifted)
            for place, columns in enumerate(WINDOWS[count])
        ]

    @property
    def thresholds(self) -> list[float]:
        """Of every window."""
        return [window.threshold for window in self.windows]

    def classify(self, images: Images) -> list[list[Prediction]]:
        """Predictions of every window of every image. Raises ValueError for an image of another size."""
        for image in images:
            if image.size != (CANVAS, CANVAS):
                raise ValueError(f"a picture of {image.width} x {image.height}, not {CANVAS} x {CANVAS}; draw it anew")
        return [
            list(predictions)
            for predictions in zip(*(window.classify(images) for window in self.windows), strict=True)
        ]

    def false_positive(self, items: Sequence[Colouring]) -> float:
        """Share of true images of other objects, moved and reconstructed, that count as one of `items`.

        Mean over the items and windows. Other objects are other classes and, where a colour is asked for, the class
        in any other of the ten colours.
        """
        shares = []
        for window, item in itertools.product(self.windows, items):
            labelled = zip(window.fitted, window.shifted, strict=True)
            taken = [prediction.matches(item) for label, prediction in labelled if differs(label, item)]
            shares.append(sum(taken) / len(taken))
        return sum(shares) / len(shares)


class _Window:
    """Reference images of some columns and their labels; `shifted` are predictions for the threshold's images."""

    def __init__(
        self,
        columns: tuple[int, int],
        shown: list[Colouring],
        known: Images,
        fitted: list[Colouring],
        shifted: Images,
    ) -> None:
        self.columns, self.fitted = columns, fitted
        self.classes, self.colours = list(dict.fromkeys(name for name, _ in shown)), list(COLOURS)
        self.known = features(known, columns)  # (R, F)
        self.class_of = torch.tensor([self.classes.index(name) for name, _ in shown])
        self.colour_of = torch.tensor([-1 if colour is None else self.colours.index(colour) for _, colour in shown])
        own = torch.tensor([self.classes.index(name) for name, _ in fitted])
        distances = self._by_class(torch.cdist(features(shifted, columns), self.known))
        self.threshold = float(distances.gather(1, own[:, None]).quantile(ACCEPTED))
        self.shifted = self.classify(shifted)

    def _by_class(self, distances: Tensor) -> Tensor:
        """(N, R) -> (N, C), the smallest of every class."""
        least = torch.full((len(distances), len(self.classes)), torch.inf)
        return least.scatter_reduce(1, self.class_of.expand_as(distances), distances, "amin")

    def classify(self, images: Images) -> list[Prediction]:
        """One prediction for the window of every image."""
        distances = torch.cdist(features(images, self.columns), self.known)
        (best, second), (nearest, _) = (part.unbind(1) for part in self._by_class(distances).topk(2, largest=False))
        near = (best <= self.threshold) & (best <= LEAD * second)
        coloured = (self.class_of == nearest[:, None]) & (self.colour_of >= 0)
        colours = self.colour_of[distances.where(coloured, torch.inf).argmin(1)]
        predictions = []
        for index, colour, distance, is_near in zip(nearest, colours, best, near, strict=True):
            name = self.classes[index]
            is_object = name != NOTHING
            colour_name = self.colours[colour] if is_object else None
            predictions.append(Prediction(name, colour_name, float(distance), bool(is_near) and is_object))
        return predictions


def draw(items: Sequence[Colouring]) -> Image.Image:
    """The tidy image of one or two objects."""
    return draw_scene(object_scene(items))


def mix(labels: Sequence[Colouring], count: int, rng: Rng) -> list[tuple[Colouring, ...]]:
    """Labels of images of `count` objects, so that every label is once at every place."""
    others = [[labels[index] for index in rng.permutation(len(labels))] for _ in range(count - 1)]
    return list(zip(labels, *others, strict=True))


def features(images: Images, columns: tuple[int, int]) -> Tensor:
    """(N, F): a window less the background, averaged; scaled so that distances are root mean squares."""
    pixels = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    window = rearrange(pixels[:, :, slice(*columns)].float(), "n h w c -> n c h w") - BACKGROUND[0]
    flat = F.avg_pool2d(window, POOL).flatten(1)
    return flat / flat.shape[1] ** 0.5


def moved(image: Image.Image, x: int, y: int) -> Image.Image:
    """The image moved by `x`, `y` pixels; its border must be background."""
    return ImageChops.offset(image, x, y)


def empty() -> Image.Image:
    """The canvas without an object."""
    return Image.new("RGB", (CANVAS, CANVAS), BACKGROUND)


def differs(label: Colouring, item: Colouring) -> bool:
    """Whether an image of `label` is wrong where `item` is asked for; natural colours may be any of the ten."""
    return label[0] != item[0] or None not in (label[1], item[1]) and label[1] != item[1]


def items_of(metadata: dict[str, Any], class_names: Sequence[str]) -> list[Colouring]:
    """The objects a prompt asks for. Raises ValueError for a prompt that tidy images of one or two cannot answer."""
    include, tag = metadata.get("include", []), metadata["tag"]
    single = len(include) in WINDOWS and all(clause["count"] == 1 for clause in include)
    if tag not in TAGS or not single or "exclude" in metadata:
        raise ValueError(f"task {tag} is not for one or two single objects; give prompts of {', '.join(TAGS)}")
    for clause in include:
        if clause["class"] not in class_names:
            raise ValueError(f"class {clause['class']!r} is not known; it is neither in Scenes nor in --objects")
    return [(clause["class"], clause.get("color")) for clause in include]


def verdict(items: Sequence[Colouring], predictions: Sequence[Prediction]) -> tuple[bool, str]:
    """Whether the windows' predictions match the items, in any order, and the predictions in words."""
    right = any(all(map(Prediction.matches, order, items)) for order in itertools.permutations(predictions))
    with_colour = any(colour is not None for _, colour in items)
    return right, " and ".join(prediction.words(with_colour) for prediction in predictions)
