"""Ceilings of the Scenes detector's scores: GenEval's verdicts on images whose objects are known.

An image generator's score can hardly exceed that of rendered scenes, nor that of their reconstructions by the image
tokenizer; and the score with wrong captions, its false-positive rate, any generator gets for nothing.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from unified.evaluation.detector import SceneDetector
from unified.evaluation.metrics import GENEVAL_COLOURS, geneval_summary, geneval_verdict
from unified.files.images import image_to_pixels, pixels_to_image
from unified.image_tokenizer.model import VQModel
from unified.scenes.rendering import TAGS, Rng, Scene, draw_scene, sample_scene, tags_of
from unified.scenes.tidy_layout import tidy

NO_COLOUR = -1  # of a natural glyph; no task asks for it

Found = dict[str, list[list[float]]]


def ceiling_scenes(per_task: int, seed: int) -> list[Scene]:
    """`per_task` scenes of each task: in turn free and tidy, in turn training and held-out where a task has both."""
    rng = np.random.default_rng((seed, 0xCE111))  # far from the streams of SceneBatches, which have three numbers
    return [_ceiling_scene(tag, number, rng) for tag in TAGS for number in range(per_task)]


def _ceiling_scene(tag: str, number: int, rng: Rng) -> Scene:
    held_out = number // 2 % 2 == 1 and tag in tags_of("heldout")
    scene = sample_scene(tag, rng, split="heldout" if held_out else "train")
    return tidy(scene) if number % 2 else scene


def true_detections(scene: Scene) -> Found:
    """The detections of a perfect detector."""
    found: Found = {}
    for item in scene.objects:
        colour = NO_COLOUR if item.colour is None else GENEVAL_COLOURS.index(item.colour)
        found.setdefault(item.class_name, []).append([*item.box, 1.0, colour])
    return found


def wrong_captions(scenes: Sequence[Scene], seed: int) -> list[dict[str, Any]]:
    """For every scene the metadata of another of its task, drawn anew until it is not true of the scene as well."""
    rng = np.random.default_rng((seed, 0xFA15E))
    of_task = {tag: [scene.metadata for scene in scenes if scene.tag == tag] for tag in {s.tag for s in scenes}}
    return [next(_untrue(scene, of_task[scene.tag], rng)) for scene in scenes]


def _untrue(scene: Scene, captions: Sequence[dict[str, Any]], rng: Rng) -> Iterator[dict[str, Any]]:
    truth = true_detections(scene)
    for index in rng.permutation(len(captions)):
        if not geneval_verdict(captions[index], truth)[0]:
            yield captions[index]
    raise ValueError(f"every caption of task {scene.tag} is true of one scene; take more scenes per task")


@torch.no_grad()
def reconstructions(vq: VQModel, images: Sequence[Image.Image], batch_size: int = 64) -> list[Image.Image]:
    """The images encoded and decoded by the tokenizer."""
    decoded = []
    for start in range(0, len(images), batch_size):
        pixels = [image_to_pixels(image, vq.config.image_size) for image in images[start : start + batch_size]]
        decoded += [pixels_to_image(p) for p in vq.decode(vq.encode(torch.stack(pixels).to(vq.device)))]
    return decoded


def ceilings(detector: SceneDetector, vq: VQModel, per_task: int, seed: int) -> dict[str, Any]:
    """`geneval_summary` of scenes as rendered and as reconstructed, each with right and with wrong captions.

    Keys: renders, reconstructions (shares scored right), renders_wrong_caption, reconstructions_wrong_caption (shares
    scored right that are not: the false-positive rates).
    """
    scenes = ceiling_scenes(per_task, seed)
    right, wrong = [scene.metadata for scene in scenes], wrong_captions(scenes, seed)
    drawn = [draw_scene(scene) for scene in scenes]
    scores = {}
    for name, images in (("renders", drawn), ("reconstructions", reconstructions(vq, drawn))):
        detections = detector.detect(images)
        scores[name] = summary(right, detections)
        scores[f"{name}_wrong_caption"] = summary(wrong, detections)
    return scores


def summary(captions: Sequence[dict[str, Any]], detections: Sequence[Found]) -> dict[str, Any]:
    """`geneval_summary` of one image for each caption."""
    records = [
        {"tag": metadata["tag"], "metadata": metadata, "correct": geneval_verdict(metadata, found)[0]}
        for metadata, found in zip(captions, detections, strict=True)
    ]
    return geneval_summary(records)
