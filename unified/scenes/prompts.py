"""Prompts in GenEval's form from what Scenes can show: sampled, kept from another set, or turned into near misses.

A prompt's metadata is GenEval's `{tag, include, [exclude], prompt}`, as `sample_scene` writes it.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unified.files.atomic import write_text
from unified.scenes.rendering import (
    CLASSES,
    COLOURS,
    NUMBERS,
    TAGS,
    Names,
    Rng,
    check_names,
    pick,
    sample_scene,
    tags_of,
)

SPLITS = ("train", "heldout", "unseen_counts")
# GenEval counts at most 16 objects of a class: of more than 15 it could not say that there are too many
UNSEEN_COUNTS = dict(
    enumerate("five six seven eight nine ten eleven twelve thirteen fourteen fifteen".split(), start=5)
)
OPPOSITES = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}
PATIENCE = 50  # draws without a new prompt, for every prompt found, before there are taken to be no more

Metadata = dict[str, Any]


def write_prompts(path: Path, prompts: Sequence[Metadata]) -> str:
    """Write a prompt set, a prompt's metadata a line; returns the file's SHA-256."""
    text = "".join(json.dumps(metadata) + "\n" for metadata in prompts)
    write_text(path, text)
    return hashlib.sha256(text.encode()).hexdigest()


def prompt_tags(split: str) -> tuple[str, ...]:
    """The tasks of a split. Raises ValueError for an unknown split."""
    check_names("split", (split,), SPLITS)
    return ("counting",) if split == "unseen_counts" else tags_of(split)


def sample_prompts(
    count: int,
    seed: int = 0,
    split: str = "train",
    tags: Names = (),
    classes: Names = tuple(CLASSES),
    colours: Names = tuple(COLOURS),
    counts: Sequence[int] = (5, 6),
) -> list[Metadata]:
    """`count` different prompts, shared out among the tasks as evenly as can be, task after task.

    Splits: `train` asks for what training scenes may show, `heldout` for combinations that they never show,
    `unseen_counts` for `counts` of one class. No two prompts ask for the same objects, in whatever order. What a task
    gets depends on `seed` and on its own number of prompts, not on the other tasks.
    Raises ValueError for unknown names, counts that cannot be scored, and more prompts than there are.
    """
    tags = tuple(dict.fromkeys(tags)) or prompt_tags(split)
    check_names("tag", tags, prompt_tags(split))
    if count < len(tags) or seed < 0:
        raise ValueError(
            f"count={count}, seed={seed}: give a prompt for each of {len(tags)} tasks and no negative seed"
        )
    if split == "unseen_counts":
        _check_counts(counts)
    prompts = []
    for index, tag in enumerate(tags):
        wanted = count // len(tags) + (index < count % len(tags))
        prompts += _different(tag, wanted, _sampler(tag, seed, split, classes, colours, counts))
    return prompts


def _check_counts(counts: Sequence[int]) -> None:
    for count in counts:
        if count not in UNSEEN_COUNTS:
            raise ValueError(
                f"count {count} of objects is not unseen ({min(NUMBERS)} to {max(NUMBERS)} are in training) or cannot "
                f"be scored (GenEval stops at 16 objects): choose from {min(UNSEEN_COUNTS)} to {max(UNSEEN_COUNTS)}"
            )
    if not counts:
        raise ValueError(f"no counts: choose from {min(UNSEEN_COUNTS)} to {max(UNSEEN_COUNTS)}")


def _sampler(
    tag: str, seed: int, split: str, classes: Names, colours: Names, counts: Sequence[int]
) -> Callable[[], Metadata]:
    rng = np.random.default_rng([seed, TAGS.index(tag)])
    if split == "unseen_counts":
        return lambda: _recounted(sample_scene(tag, rng, classes, colours).metadata, pick(rng, counts, "count"))
    return lambda: sample_scene(tag, rng, classes, colours, split).metadata


def _recounted(metadata: Metadata, count: int) -> Metadata:
    name, shown = metadata["include"][0]["class"], metadata["include"][0]["count"]
    include, exclude = [{"class": name, "count": count}], [{"class": name, "count": count + 1}]
    prompt = metadata["prompt"].replace(f" {NUMBERS[shown]} ", f" {UNSEEN_COUNTS[count]} ", 1)
    return {"tag": metadata["tag"], "include": include, "exclude": exclude, "prompt": prompt}


def _different(tag: str, count: int, draw: Callable[[], Metadata]) -> list[Metadata]:
    found: dict[str, Metadata] = {}
    misses = 0
    while len(found) < count:
        metadata = draw()
        meaning = json.dumps(sorted(json.dumps(clause) for clause in metadata["include"]))
        misses = misses + 1 if meaning in found else 0
        found.setdefault(meaning, metadata)
        if misses > PATIENCE * (len(found) + 1):
            raise ValueError(
                f"{tag} has only {len(found)} different prompts among the chosen classes and colours, {count} were "
                "asked for: lower --count, or leave the task out of --tags"
            )
    return list(found.values())


def renderable_prompts(
    prompts: Sequence[Metadata],
    tags: Names = (),
    classes: Names = tuple(CLASSES),
    colours: Names = tuple(COLOURS),
) -> list[Metadata]:
    """Those of `prompts` that ask only for these tasks (none: all), classes and colours, in their order.

    Raises ValueError where nothing is left.
    """
    check_names("tag", tags, TAGS)
    check_names("class", classes, CLASSES)
    check_names("colour", colours, COLOURS)
    kept = [
        metadata
        for metadata in prompts
        if metadata["tag"] in (tags or (metadata["tag"],))
        and all(clause["class"] in classes for clause in metadata.get("include", []) + metadata.get("exclude", []))
        and all("color" not in clause or clause["color"] in colours for clause in metadata.get("include", []))
    ]
    if not kept:
        raise ValueError(f"none of {len(prompts)} prompts asks for the chosen tasks, classes and colours: choose more")
    return kept


def near_miss(metadata: Metadata, rng: Rng, classes: Names = tuple(CLASSES)) -> Metadata:
    """Metadata of the same task, without words, of which an image of `metadata` lacks one thing.

    One class is another, the count one off, the colour another, the colours swapped, or the relation turned round.
    """
    include = copy.deepcopy(metadata["include"])
    last = include[-1]
    missed = {"tag": metadata["tag"], "include": include}
    if metadata["tag"] == "counting":
        last["count"] += int(rng.choice((-1, 1)))
        missed["exclude"] = [{"class": last["class"], "count": last["count"] + 1}]
    elif metadata["tag"] == "position":
        last["position"] = [OPPOSITES[last["position"][0]], last["position"][1]]
    elif metadata["tag"] == "color_attr" and include[0]["color"] != last["color"]:
        include[0]["color"], last["color"] = last["color"], include[0]["color"]
    elif "color" in last:
        last["color"] = pick(rng, [colour for colour in COLOURS if colour != last["color"]], "other colour")
    else:
        shown = {clause["class"] for clause in include}
        last["class"] = pick(rng, [name for name in classes if name not in shown], "other class")
    return missed
