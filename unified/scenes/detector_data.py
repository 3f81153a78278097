"""Training data of the Scenes detector: scenes with exact labels, some torn, some reconstructed by the tokenizer.

The detector scores generated images, so it must know every colouring (held-out ones too: they are held out from the
image generator, not from the detector) and must not detect fragments of objects. What counts as an object is decided
here: one of which at least `WHOLE` is visible; at most `RUIN` visible is background; between, the loss ignores it.

Legend: B batch, G side of the detector's grid, H W pixels, L codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.utils.data import Dataset

from unified.evaluation.detector import BACKGROUND_LABEL, IGNORED, SIDES, STRIDE, DetectorConfig, place_of
from unified.image_tokenizer.model import VQModel
from unified.image_tokenizer.scales import scale_spans
from unified.scenes.rendering import (
    BACKGROUND,
    CANVAS,
    CLASSES,
    COLOURS,
    TAGS,
    Rng,
    Scene,
    SceneObject,
    draw_scene,
    place,
    sample_scene,
)
from unified.scenes.tidy_layout import tidy

WHOLE, RUIN = 0.8, 0.55  # visible shares of an object's box
SHIFT = 2  # pixels an image is moved off the scenes' grid at most; from 4 on, two places are equally near
SHIFTED_SHARE = 0.25
BLANK_SHARE = 0.03
RECAST_SHARE = 0.5
MAX_CODE_NOISE = 0.1

# Ways of reconstruction, and the share of each. Up to a tenth of the last scale's codes may be another image's and
# objects stay recognisable (checked by eye with weights/scenes-vq); codes mixed from all images are no object, nor are
# the smears that are left when an image's features are averaged over its quarters.
UNTOUCHED, RECONSTRUCTED, NOISY, SCRAMBLED, SMEARED = range(5)
RETOUCHES = {RECONSTRUCTED: 0.68, NOISY: 0.17, SCRAMBLED: 0.1, SMEARED: 0.05}
RUINED = (SCRAMBLED, SMEARED)

CLASS_LABELS = {name: 1 + index for index, name in enumerate(CLASSES)}
COLOUR_LABELS = {name: index for index, name in enumerate(COLOURS)}


@dataclass(frozen=True)
class LabeledImage:
    """`pixels` uint8 (H, W, 3) and the objects in them with the visible shares of their boxes."""

    pixels: np.ndarray
    objects: tuple[tuple[SceneObject, float], ...] = ()


BLANK = LabeledImage(np.full((CANVAS, CANVAS, 3), BACKGROUND, dtype=np.uint8))


def draw_labeled_image(scene: Scene) -> LabeledImage:
    """A scene, whole."""
    return LabeledImage(np.asarray(draw_scene(scene)), tuple((item, 1.0) for item in scene.objects))


def sample_labeled_image(rng: Rng, tidy_share: float) -> LabeledImage:
    """A training scene of any task, free or tidy; half of them recast, which also shows every held-out colouring."""
    scene = sample_scene(TAGS[rng.integers(len(TAGS))], rng)
    scene = tidy(scene) if rng.random() < tidy_share else scene
    return draw_labeled_image(recast(scene, rng) if rng.random() < RECAST_SHARE else scene)


def recast(scene: Scene, rng: Rng) -> Scene:
    """The same layout with any class in any colour, natural included, in every cell; the caption no longer fits."""
    names, colours = list(CLASSES), [None, *COLOURS]
    items = [(names[rng.integers(len(names))], colours[rng.integers(len(colours))]) for _ in scene.objects]
    cells = [item.cell for item in scene.objects]
    objects = [place(*item, (x, y), side) for item, (x, y, side) in zip(items, cells, strict=True)]
    return Scene(scene.tag, tuple(objects), {})


def patchwork(over: LabeledImage, under: LabeledImage, shown: np.ndarray) -> LabeledImage:
    """`over` where `shown` (H, W) holds, `under` elsewhere; every object's visible share is counted anew."""
    pixels = np.where(shown[..., None], over.pixels, under.pixels)
    parts = [(picture.objects, mask) for picture, mask in ((over, shown), (under, ~shown))]
    return LabeledImage(pixels, tuple((o, share * _share(o, mask)) for objects, mask in parts for o, share in objects))


def _share(item: SceneObject, mask: np.ndarray) -> float:
    x1, y1, x2, y2 = item.box
    return float(mask[y1:y2, x1:x2].mean())


def tear(picture: LabeledImage, rng: Rng) -> np.ndarray:
    """Mask (H, W) of what stays: all on one side of a line near an object's centre, or all but some blocks."""
    if not picture.objects or rng.random() < 0.4:
        side = CANVAS // STRIDE
        return np.kron(rng.random((side, side)) > rng.uniform(0.05, 0.7), np.ones((STRIDE, STRIDE), dtype=bool))
    x1, y1, x2, y2 = picture.objects[rng.integers(len(picture.objects))][0].box
    angle, offset = rng.uniform(0, 2 * np.pi), rng.uniform(-16, 16)
    y, x = np.mgrid[:CANVAS, :CANVAS]
    return (x - (x1 + x2) / 2) * np.cos(angle) + (y - (y1 + y2) / 2) * np.sin(angle) < offset


def shift(picture: LabeledImage, dx: int, dy: int) -> LabeledImage:
    """The image moved by at most `SHIFT` pixels, background coming in; objects keep their sizes and cells."""
    pixels = BLANK.pixels.copy()
    pixels[max(dy, 0) : CANVAS + min(dy, 0), max(dx, 0) : CANVAS + min(dx, 0)] = picture.pixels[
        max(-dy, 0) : CANVAS + min(-dy, 0), max(-dx, 0) : CANVAS + min(-dx, 0)
    ]
    return LabeledImage(pixels, tuple((_moved(item, dx, dy), share) for item, share in picture.objects))


def _moved(item: SceneObject, dx: int, dy: int) -> SceneObject:
    x1, y1, x2, y2 = item.box
    return SceneObject(item.class_name, item.colour, (x1 + dx, y1 + dy, x2 + dx, y2 + dy), item.cell)


def training_image(rng: Rng, tidy_share: float, torn_share: float) -> LabeledImage:
    """One image before reconstruction: a scene, two scenes or a scene and an empty one patched together, or empty."""
    if rng.random() < BLANK_SHARE:
        return BLANK
    picture = sample_labeled_image(rng, tidy_share)
    if rng.random() < torn_share:
        under = sample_labeled_image(rng, tidy_share) if rng.random() < 0.7 else BLANK
        picture = patchwork(picture, under, tear(picture, rng))
    return picture


def label(objects: Sequence[tuple[SceneObject, float]], grid: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`class_labels` (G, G), `colour_labels` (G, G), `box_labels` (4, G, G) as `SceneDetector.forward` wants them."""
    classes = np.full((grid, grid), BACKGROUND_LABEL, dtype=np.int64)
    colours = np.full((grid, grid), IGNORED, dtype=np.int64)
    boxes = np.zeros((SIDES, grid, grid), dtype=np.float32)
    for item, share in objects:
        if RUIN < share < WHOLE:
            row, column = place_of(item.box)
            classes[max(row - 1, 0) : row + 2, max(column - 1, 0) : column + 2] = IGNORED
    for item, share in objects:
        if share >= WHOLE:
            where = place_of(item.box)
            classes[where], boxes[:, *where] = CLASS_LABELS[item.class_name], item.box
            colours[where] = IGNORED if item.colour is None else COLOUR_LABELS[item.colour]
    return classes, colours, boxes


@dataclass(frozen=True)
class ImageMix:
    """Shares of training images: tidy scenes, torn ones, and those reconstructed by the tokenizer."""

    tidy_share: float = 0.5
    torn_share: float = 0.35
    tokenizer_share: float = 0.5


class SceneBatches(Dataset[dict[str, Tensor]]):
    """Row s is the whole batch of step s, a function of seed, s and rank alone; use `DataLoader(batch_size=None)`.

    A batch has `images` uint8 (B, H, W, 3), `retouch` (B,) for `retouch`, and the labels of `SceneDetector.forward`.
    """

    def __init__(
        self, config: DetectorConfig, mix: ImageMix, batch_size: int, steps: int, seed: int, rank: int = 0
    ) -> None:
        self.config, self.mix, self.batch_size, self.steps = config, mix, batch_size, steps
        self.seed, self.rank = seed, rank

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, step: int) -> dict[str, Tensor]:
        rng = np.random.default_rng((self.seed, step, self.rank))
        rows = [self._row(rng) for _ in range(self.batch_size)]
        return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}

    def _row(self, rng: Rng) -> dict[str, Any]:
        picture = training_image(rng, self.mix.tidy_share, self.mix.torn_share)
        touch = UNTOUCHED
        if rng.random() < self.mix.tokenizer_share:
            touch = int(rng.choice(list(RETOUCHES), p=list(RETOUCHES.values())))
        elif (
            rng.random() < SHIFTED_SHARE
        ):  # the tokenizer was trained on objects on the grid alone and distorts all others
            picture = shift(picture, *rng.integers(-SHIFT, SHIFT + 1, size=2).tolist())
        objects = () if touch in RUINED else picture.objects
        names = ("class_labels", "colour_labels", "box_labels")
        labels = dict(zip(names, label(objects, self.config.grid), strict=True))
        return {"images": picture.pixels, "retouch": np.int64(touch), **labels}


@torch.no_grad()
def retouch(vq: VQModel, pixel_values: Tensor, touches: Tensor, generator: torch.Generator) -> Tensor:
    """`pixel_values` (B, 3, H, W), the rows that `touches` (B,) names reconstructed by the tokenizer.

    NOISY: some codes of the last scale are other images'. SCRAMBLED: every code is that of any image at its place.
    SMEARED: every quarter of the feature map is its mean.
    """
    chosen = touches != UNTOUCHED
    if not chosen.any():
        return pixel_values
    codes, kinds = vq.encode(pixel_values[chosen]), rearrange(touches[chosen], "b -> b 1")
    count, length = codes.shape
    others = torch.randint(count, (count, length), generator=generator).to(codes.device)
    noise = torch.rand(count, length, generator=generator) < MAX_CODE_NOISE * torch.rand(count, 1, generator=generator)
    noise[:, : scale_spans(vq.config.patch_nums)[-1][0]] = False  # a coarse code is a whole object or more
    foreign = (noise.to(codes.device) & (kinds == NOISY)) | (kinds == SCRAMBLED)
    f_hat = vq.quantizer.codes_to_f_hat(torch.where(foreign, codes.gather(0, others), codes))
    smear = F.interpolate(F.adaptive_avg_pool2d(f_hat, 2), size=vq.quantizer.grid, mode="bicubic")
    f_hat = torch.where(rearrange(kinds, "b 1 -> b 1 1 1") == SMEARED, smear, f_hat)
    pixels = pixel_values.clone()
    pixels[chosen] = vq.f_hat_to_pixels(f_hat).clamp(-1, 1).to(pixels.dtype)
    return pixels
