"""The score of a folder of images with the nearest-neighbour classifier of `unified.scenes.nearest_object`."""

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unified.evaluation.geneval_files import Sample, read_folder, read_settings
from unified.evaluation.metrics import clustered_mean
from unified.files.images import read_image
from unified.files.jsonl import read_lines
from unified.files.results import prompts_digest, write_result
from unified.image_tokenizer.loading import load_vq
from unified.image_tokenizer.model import VQModel
from unified.scenes.detector_ceilings import reconstructions
from unified.scenes.glyphs import NEW_OBJECTS
from unified.scenes.nearest_object import (
    STEPS,
    Images,
    ObjectClassifier,
    Reconstruct,
    draw,
    items_of,
    moved,
    verdict,
)
from unified.scenes.rendering import CLASSES, Colouring, check_names

Items = tuple[Colouring, ...]  # what a prompt asks for


@dataclass
class NearestArguments:
    """What is scored."""

    images: str = field(metadata={"help": "folder that eval/generate_images.py has written"})
    objects: str = field(metadata={"help": "folder that data_prep/render_objects.py has written"})
    out: str = field(metadata={"help": "JSON for the score"})
    vq: str = field(default="weights/scenes-vq", metadata={"help": "image tokenizer the pictures come out of"})
    seed: int = field(default=0, metadata={"help": "how the pictures are moved that thresholds are fitted on"})


@dataclass(frozen=True)
class Scored:
    """An image's prompt, whether it is right, and the prediction for it."""

    sample: Sample
    items: Items
    right: bool
    found: str


def score_folder(args: NearestArguments) -> dict[str, Any]:
    """Classify every image of a folder; the result, which is written to `args.out`.

    Raises ValueError as `read_folder`, `read_objects`, `prompt_items` and `check_tokenizer`.
    """
    started = time.monotonic()
    shown = read_objects(Path(args.objects))
    class_names = [*CLASSES, *(name for name in NEW_OBJECTS if any(name in dict(items) for items in shown))]
    samples = read_folder(args.images)
    asked = [prompt_items(sample, class_names) for sample in samples]
    made = read_settings(args.images)
    vq = load_vq(args.vq, "cpu")
    check_tokenizer(vq, made, args)

    def reconstruct(images: Images) -> Images:
        return reconstructions(vq, images)

    classifiers = {
        count: ObjectClassifier(count, class_names, reconstruct, args.seed)
        for count in sorted({len(items) for items in asked})
    }
    scored = [
        Scored(s, items, *classify(classifiers, items, read_image(s.path, str(s.path), exact=True)))
        for s, items in zip(samples, asked, strict=True)
    ]
    value, stderr = share(scored)
    prompts = dict.fromkeys(json.dumps(sample.metadata) for sample in samples)
    config = {"objects": args.objects, "vq": args.vq, "seed": args.seed, "classes": class_names, "generation": made}
    return write_result(
        Path(args.out), "nearest_object_accuracy", value, len(scored), made.get("model", args.images), config,
        stderr=stderr, tokenizer=vq.fingerprint(), prompts_sha256=prompts_digest(prompts), seed=made.get("seed"),
        **limits(classifiers, list(dict.fromkeys(asked)), reconstruct), **parts(scored, shown),
        seconds=time.monotonic() - started,
    )  # fmt: skip


def read_objects(folder: Path) -> set[Items]:
    """What the images of --objects show, two objects in either order."""
    path = folder / "metadata.jsonl"
    if not path.is_file():
        raise ValueError(f"--objects {folder} has no metadata.jsonl; give a folder of data_prep/render_objects.py")
    shown = set()
    for number, record in read_lines(path):
        objects = record.get("objects")
        if not isinstance(objects, list) or not all(
            isinstance(o, dict) and {"class", "color"} <= set(o) for o in objects
        ):
            raise ValueError(f"{path}:{number}: no `objects` with class and color; render the folder again")
        check_names("class", [o["class"] for o in objects], CLASSES | NEW_OBJECTS)
        shown.add(unordered([(o["class"], o["color"]) for o in objects]))
    return shown


def unordered(items: Sequence[Colouring]) -> Items:
    """The same for both orders of two objects."""
    return tuple(sorted(items, key=str))


def prompt_items(sample: Sample, class_names: Sequence[str]) -> Items:
    """What the image should show; ValueError names the file of a prompt that cannot be scored."""
    try:
        return tuple(items_of(sample.metadata, class_names))
    except ValueError as error:
        raise ValueError(f"{sample.path.parents[1] / 'metadata.jsonl'}: {error}") from None


def check_tokenizer(vq: VQModel, made: dict[str, Any], args: NearestArguments) -> None:
    """Raise ValueError where the images came out of another tokenizer than the reference images will."""
    decoded_by = made.get("vq_fingerprint", vq.fingerprint())
    if decoded_by != vq.fingerprint():
        raise ValueError(
            f"--images {args.images} came out of the tokenizer {decoded_by[:12]}, --vq {args.vq} is "
            f"{vq.fingerprint()[:12]}; give the one the model generates images with"
        )


def classify(classifiers: dict[int, ObjectClassifier], items: Items, image: Any) -> tuple[bool, str]:
    """Whether an image shows what was asked for, and the prediction in words."""
    return verdict(items, classifiers[len(items)].classify([image])[0])


def share(scored: Sequence[Scored]) -> tuple[float, float | None]:
    """Share of right images, and its standard error over prompts."""
    prompts = defaultdict(list)
    for item in scored:
        prompts[item.sample.path.parents[1]].append(float(item.right))
    return clustered_mean(prompts.values())


def parts(scored: Sequence[Scored], shown: set[Items]) -> dict[str, Any]:
    """Shares by task and by whether --objects shows the very thing, and what wrong images show."""
    confusion: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for item in scored:
        if not item.right:
            confusion[item.sample.metadata["prompt"]][item.found] += 1
    groups: dict[str, Callable[[Scored], str]] = {
        "tasks": lambda item: item.sample.metadata["tag"],
        "taught": lambda item: "shown" if unordered(item.items) in shown else "not shown",  # a key on disk
    }
    return {name: by_group(scored, group) for name, group in groups.items()} | {
        "confusion": {prompt: dict(found.most_common()) for prompt, found in confusion.items()}
    }


def by_group(scored: Sequence[Scored], group: Callable[[Scored], str]) -> dict[str, Any]:
    """Share, standard error and number of images of every group."""
    names = dict.fromkeys(map(group, scored))
    found = {name: [item for item in scored if group(item) == name] for name in names}
    return {
        name: dict(zip(("value", "stderr"), share(items), strict=True), n=len(items)) for name, items in found.items()
    }


def limits(
    classifiers: dict[int, ObjectClassifier], asked: Sequence[Items], reconstruct: Reconstruct
) -> dict[str, Any]:
    """What the score is worth: thresholds, its ceilings on true images, and how often wrong images pass."""
    true = [draw(items) for items in asked]
    shifted = [(items, moved(image, *step)) for items, image in zip(asked, true, strict=True) for step in STEPS]
    right = {
        "reconstructions": passed(classifiers, asked, reconstruct(true)),
        "moved": passed(classifiers, [items for items, _ in shifted], reconstruct([image for _, image in shifted])),
    }
    wrong = [classifiers[len(items)].false_positive(items) for items in asked]
    thresholds = {str(count): classifier.thresholds for count, classifier in classifiers.items()}
    return {"thresholds": thresholds, "ceiling": right, "false_positive": sum(wrong) / len(wrong)}


def passed(classifiers: dict[int, ObjectClassifier], asked: Sequence[Items], images: Images) -> float:
    """Share of images that count as what was asked."""
    return sum(classify(classifiers, *pair)[0] for pair in zip(asked, images, strict=True)) / len(asked)


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    rows = {"all": {key: result[key] for key in ("value", "stderr", "n")}} | result["tasks"] | result["taught"]
    lines = [f"{'':<16}{'right':>8}{'+-':>8}{'pictures':>10}\n"]
    for name, row in rows.items():
        error = "" if row["stderr"] is None else f"{row['stderr']:.4f}"
        lines.append(f"{name:<16}{row['value']:>8.4f}{error:>8}{row['n']:>10}\n")
    ceiling = " ".join(f"{name} {value:.4f}" for name, value in result["ceiling"].items())
    return "".join(lines) + f"ceiling: {ceiling}; false positives {result['false_positive']:.5f}\n"
