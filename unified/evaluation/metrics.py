"""Pure functions that score: no model, no files.

GenEval's rules are those of Ghosh et al. 2023 (arXiv:2310.11513) as its published tool applies them, reasons included.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

GENEVAL_COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
GENEVAL_RELATIONS = ("left of", "right of", "above", "below")

Boxes = Sequence[Sequence[float]]  # of one class: [x1, y1, x2, y2, score, index into GENEVAL_COLOURS] each


@dataclass(frozen=True)
class GenevalRules:
    """The numbers in GenEval's rules; the defaults are the published ones, scores with others are not GenEval's."""

    score_threshold: float = field(default=0.3, metadata={"help": "GenEval: boxes count with a score above this"})
    counting_threshold: float = field(default=0.9, metadata={"help": "GenEval: the same for the counting task"})
    max_objects: int = field(default=16, metadata={"help": "GenEval: boxes of a class that count, best scores first"})
    size_tolerance: float = field(
        default=0.1, metadata={"help": "GenEval: share of both boxes' sizes that their centres' offset is reduced by"}
    )
    direction_threshold: float = field(
        default=0.5, metadata={"help": "GenEval: a relation holds if the reduced offset over the whole one exceeds it"}
    )
    least_offset: float = field(default=1e-3, metadata={"help": "GenEval: a reduced offset below it has no direction"})

    def __post_init__(self) -> None:
        for name in ("score_threshold", "counting_threshold", "direction_threshold"):
            if not 0 <= vars(self)[name] <= 1:
                raise ValueError(f"{name}={vars(self)[name]} is not within 0 and 1; GenEval's own is the default")
        for name, least in (("max_objects", 1), ("size_tolerance", 0), ("least_offset", 0)):
            if vars(self)[name] < least:
                raise ValueError(f"{name}={vars(self)[name]} is below {least}; GenEval's own is the default")


def psnr(a: Tensor, b: Tensor, data_range: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio in dB of every image, `(B, ...)` twice -> `(B,)`; equal images give inf.

    `data_range` is the distance between the darkest and the brightest value: 2 for pixel_values in [-1, 1].
    Raises ValueError when the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"psnr compares images of one shape, got {tuple(a.shape)} and {tuple(b.shape)}; resize one")
    error = (a.float() - b.float()).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(data_range**2 / error)


def frechet_distance(mean_a: Tensor, cov_a: Tensor, mean_b: Tensor, cov_b: Tensor) -> float:
    """Squared Frechet distance of two Gaussians, means `(D,)` and covariances `(D, D)`; FID if of Inception features.

    |mean_a - mean_b|^2 + tr(cov_a + cov_b - 2 (cov_a cov_b)^1/2), Dowson and Landau 1982, in float64. The trace of
    the root is the sum of the singular values of cov_a^1/2 cov_b^1/2: real, never negative, and exact to rounding
    where a covariance is singular (fewer images than D), which a root of the product itself is not.
    Raises ValueError when shapes do not fit or values are not finite.
    """
    mean_a, cov_a, mean_b, cov_b = (torch.as_tensor(x).double().cpu() for x in (mean_a, cov_a, mean_b, cov_b))
    size = mean_a.shape[0] if mean_a.ndim == 1 else -1
    if (mean_a.shape, cov_a.shape, mean_b.shape, cov_b.shape) != ((size,), (size, size), (size,), (size, size)):
        shapes = ", ".join(str(tuple(x.shape)) for x in (mean_a, cov_a, mean_b, cov_b))
        raise ValueError(f"frechet_distance got shapes {shapes}; give (D,), (D, D), (D,), (D, D) of one D")
    if not all(x.isfinite().all() for x in (mean_a, cov_a, mean_b, cov_b)):
        raise ValueError("frechet_distance got values that are not finite; check for broken images or too few of them")
    overlap = torch.linalg.svdvals(_root(cov_a) @ _root(cov_b)).sum()
    distance = (mean_a - mean_b).square().sum() + cov_a.trace() + cov_b.trace() - 2 * overlap
    return max(float(distance), 0.0)


def _root(covariance: Tensor) -> Tensor:
    """Symmetric square root of a symmetric matrix whose eigenvalues are not negative but for rounding."""
    values, vectors = torch.linalg.eigh((covariance + covariance.mT) / 2)
    return vectors * values.clamp(min=0).sqrt() @ vectors.mT


def binary_scores(answers: Sequence[bool], truths: Sequence[bool]) -> dict[str, float]:
    """accuracy, precision, recall, f1 and yes_share of yes/no answers: POPE's numbers (Li et al. 2023, 2305.10355).

    A share of nothing (precision without a yes, recall without a truth) is 0. Raises ValueError when there are no
    answers or not as many truths.
    """
    if not answers or len(answers) != len(truths):
        raise ValueError(f"{len(answers)} answers to {len(truths)} questions; give as many of both, at least one")
    right = sum(bool(a) == bool(t) for a, t in zip(answers, truths, strict=True))
    hits = sum(bool(a and t) for a, t in zip(answers, truths, strict=True))
    yes, true = sum(map(bool, answers)), sum(map(bool, truths))
    return {
        "accuracy": right / len(answers),
        "precision": hits / yes if yes else 0.0,
        "recall": hits / true if true else 0.0,
        "f1": 2 * hits / (yes + true) if yes + true else 0.0,
        "yes_share": yes / len(answers),
    }


def clustered_mean(clusters: Iterable[Sequence[float]]) -> tuple[float, float | None]:
    """Mean over all values and its standard error, where values of one cluster may be correlated.

    Clusters are the images of a prompt or the questions about an image; every value alone gives the usual standard
    error. One cluster has no standard error (None). Linearised ratio estimator, Cochran 1977, section 9A.
    Raises ValueError when there is no value.
    """
    clusters = [list(cluster) for cluster in clusters if len(cluster)]
    count = sum(map(len, clusters))
    if not count:
        raise ValueError("there is nothing to average; give at least one value")
    mean = sum(map(sum, clusters)) / count
    if len(clusters) == 1:
        return mean, None
    spread = sum((sum(cluster) - len(cluster) * mean) ** 2 for cluster in clusters)
    return mean, (spread * len(clusters) / (len(clusters) - 1)) ** 0.5 / count


# --- GenEval


def check_geneval_metadata(metadata: Any) -> None:
    """Raise ValueError unless `metadata` is a prompt in GenEval's form: `{tag, include, [exclude], prompt}`."""
    if not isinstance(metadata, dict) or not isinstance(metadata.get("tag"), str):
        raise ValueError(f"{metadata!r:.80} is not a GenEval prompt; give an object with `tag` and `include`")
    include, exclude = metadata.get("include", []), metadata.get("exclude", [])
    if not isinstance(include, list) or not isinstance(exclude, list) or not include + exclude:
        raise ValueError("`include` and `exclude` must be lists and not both empty; write [{class, count}, ...]")
    for index, clause in enumerate(include):
        _check_clause(clause)
        if clause.get("color", "red") not in GENEVAL_COLOURS:
            raise ValueError(f"color {clause['color']!r} is not GenEval's; take one of {', '.join(GENEVAL_COLOURS)}")
        if "position" in clause:
            _check_position(clause["position"], index)
    for clause in exclude:
        _check_clause(clause)


def _check_clause(clause: Any) -> None:
    good = isinstance(clause, dict) and isinstance(clause.get("class"), str) and type(clause.get("count")) is int
    if not good or clause["count"] < 1:
        raise ValueError(f"clause {clause!r:.80} is not {{class, count}}; name a class and a count of 1 or more")


def _check_position(position: Any, index: int) -> None:
    known = isinstance(position, list | tuple) and len(position) == 2 and position[0] in GENEVAL_RELATIONS
    if not known or type(position[1]) is not int or not 0 <= position[1] < index:
        raise ValueError(
            f"position {position!r:.80} of include[{index}] is not [relation, number of an earlier clause]; "
            f"relations are {', '.join(GENEVAL_RELATIONS)}"
        )


def geneval_verdict(
    metadata: Mapping[str, Any], detections: Mapping[str, Boxes], rules: GenevalRules | None = None
) -> tuple[bool, str]:
    """Whether an image shows what its prompt asks for, and if not, one line per reason.

    `metadata` is the prompt's, `detections` the boxes of every class before any threshold. Raises ValueError where
    `check_geneval_metadata` does, and for a box that has no colour where one is asked for.
    """
    check_geneval_metadata(metadata)
    rules = rules or GenevalRules()
    found = geneval_objects(metadata["tag"], detections, rules)
    reasons: list[str] = []
    matched: list[Boxes | None] = []  # of every clause so far; None where it failed
    for clause in metadata.get("include", ()):
        boxes = found.get(clause["class"], [])[: clause["count"]]
        reason = _too_few(clause, boxes) or _wrong_colour(clause, boxes) or _wrong_place(clause, boxes, matched, rules)
        matched.append(None if reason else boxes)
        reasons += [reason] if reason else []
    for clause in metadata.get("exclude", ()):
        count = len(found.get(clause["class"], []))
        if count >= clause["count"]:
            reasons.append(f"expected {clause['class']}<{clause['count']}, found {count}")
    return not reasons, "\n".join(reasons)


def geneval_objects(tag: str, detections: Mapping[str, Boxes], rules: GenevalRules) -> dict[str, Boxes]:
    """The boxes that count for a task, best scores first; classes without any are left out."""
    threshold = rules.counting_threshold if tag == "counting" else rules.score_threshold
    found = {}
    for name, boxes in detections.items():
        # of two equal scores the later comes first, as in the published tool, which reverses an ascending order
        ascending = sorted((box for box in boxes if box[4] > threshold), key=lambda box: box[4])
        found[name] = ascending[::-1][: rules.max_objects]
    return {name: boxes for name, boxes in found.items() if boxes}


def geneval_relations(box: Sequence[float], target: Sequence[float], rules: GenevalRules | None = None) -> list[str]:
    """Members of `GENEVAL_RELATIONS` that hold from `box` to `target`, x1 y1 x2 y2 first: none, one, or two.

    The offset of the centres, reduced by a share of both sizes, is measured against the whole offset.
    """
    rules = rules or GenevalRules()
    offset = [(box[i] + box[i + 2]) / 2 - (target[i] + target[i + 2]) / 2 for i in (0, 1)]
    sizes = [abs(box[i + 2] - box[i]) + abs(target[i + 2] - target[i]) for i in (0, 1)]
    reduced = [max(abs(o) - rules.size_tolerance * size, 0.0) for o, size in zip(offset, sizes, strict=True)]
    if max(reduced) < rules.least_offset:
        return []
    length = (offset[0] ** 2 + offset[1] ** 2) ** 0.5
    x, y = (r / length if o > 0 else -r / length for r, o in zip(reduced, offset, strict=True))
    shares = (-x, x, -y, y)
    return [r for r, share in zip(GENEVAL_RELATIONS, shares, strict=True) if share > rules.direction_threshold]


def _too_few(clause: Mapping[str, Any], boxes: Boxes) -> str:
    if len(boxes) >= clause["count"]:
        return ""
    return f"expected {clause['class']}>={clause['count']}, found {len(boxes)}"


def _wrong_colour(clause: Mapping[str, Any], boxes: Boxes) -> str:
    if "color" not in clause:
        return ""
    wanted, seen = clause["color"], [_colour(box) for box in boxes]
    if seen.count(wanted) >= clause["count"]:
        return ""
    listed = ", ".join(f"{seen.count(colour)} {colour}" for colour in GENEVAL_COLOURS if colour in seen)
    return f"expected {wanted} {clause['class']}>={clause['count']}, found {seen.count(wanted)} {wanted}; and {listed}"


def _colour(box: Sequence[float]) -> str:
    if len(box) < 6 or not 0 <= box[5] < len(GENEVAL_COLOURS):
        raise ValueError(f"box {list(box)} has no colour; its sixth number must be an index from 0 to 9")
    return GENEVAL_COLOURS[int(box[5])]


def _wrong_place(clause: Mapping[str, Any], boxes: Boxes, matched: Sequence[Boxes | None], rules: GenevalRules) -> str:
    if "position" not in clause:
        return ""
    relation, index = clause["position"]
    targets = matched[index]
    if targets is None:
        return f"no target for {clause['class']} to be {relation}"
    for box, target in ((box, target) for box in boxes for target in targets):
        holding = geneval_relations(box, target, rules)
        if relation not in holding:
            return f"expected {clause['class']} {relation} target, found {' and '.join(holding)} target"
    return ""


def geneval_summary(records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Scores of images whose records have `tag`, `correct` and `metadata` (which identifies the prompt).

    overall: unweighted mean of the task means, tasks in order of appearance; correct_images: share of all images;
    correct_prompts: share of prompts with any correct image. Standard errors cluster the images of a prompt, and are
    None where a task has a single prompt. Raises ValueError without records.
    """
    tasks: dict[str, dict[str, list[bool]]] = {}
    for record in records:
        images = tasks.setdefault(record["tag"], {}).setdefault(str(record["metadata"]), [])
        images.append(bool(record["correct"]))
    prompts = [images for task in tasks.values() for images in task.values()]
    correct_images, images_stderr = clustered_mean(prompts)
    correct_prompts, prompts_stderr = clustered_mean([[any(images)] for images in prompts])
    scores = {tag: _task_score(list(task.values())) for tag, task in tasks.items()}
    errors = [score["stderr"] for score in scores.values()]
    return {
        "overall": sum(score["value"] for score in scores.values()) / len(scores),
        "stderr": None if None in errors else sum(e**2 for e in errors) ** 0.5 / len(errors),
        "correct_images": correct_images,
        "correct_images_stderr": images_stderr,
        "correct_prompts": correct_prompts,
        "correct_prompts_stderr": prompts_stderr,
        "images": sum(map(len, prompts)),
        "prompts": len(prompts),
        "tasks": scores,
    }


def _task_score(prompts: list[list[bool]]) -> dict[str, Any]:
    value, stderr = clustered_mean(prompts)
    return {"value": value, "stderr": stderr, "images": sum(map(len, prompts)), "prompts": len(prompts)}
