"""Which of several answers is better: scorers of images, the pairs their scores give, and wrong answers in words.

A scorer gets prompts as metadata (`{"prompt", ...}`, GenEval's keys where a detector scores) and the images of each.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from unified.data.preferences import Pair, as_pair
from unified.evaluation.detections import Detections, Detector
from unified.evaluation.metrics import GENEVAL_COLOURS, GenevalRules, check_geneval_metadata, geneval_verdict
from unified.files.images import to_rgb
from unified.files.jsonl import read_lines
from unified.files.weights import load_strict
from unified.models.messages import content_parts, count_images

Metadata = Mapping[str, Any]
# words of which one instead of another makes an answer wrong
ALTERNATIVES = (("yes", "no"), ("one", "two", "three", "four"), GENEVAL_COLOURS, ("left", "right", "above", "below"))
UNSCORED = math.nan  # the score of an image that a scorer says nothing about; it is in no pair


class Scorer(Protocol):
    """Scores images."""

    def check(self, metadata: Metadata) -> None:
        """Raise ValueError for a prompt that cannot be scored, before anything is drawn."""
        ...

    def score(self, prompts: Sequence[Metadata], images: Sequence[Sequence[Image.Image]]) -> list[list[float]]:
        """Scores of every prompt's images, higher is better; `UNSCORED` where there is nothing to say."""
        ...


class VerdictScorer:
    """1 where GenEval's rules hold on what `detector` finds, else 0; it knows `class_names`."""

    def __init__(self, detector: Detector, class_names: Sequence[str], rules: GenevalRules | None = None) -> None:
        self.detector, self.class_names, self.rules = detector, set(class_names), rules or GenevalRules()

    def check(self, metadata: Metadata) -> None:
        """Raise ValueError unless the prompt is in GenEval's form and asks for what the detector knows."""
        check_geneval_metadata(metadata)
        for clause in [*metadata.get("include", ()), *metadata.get("exclude", ())]:
            if clause["class"] not in self.class_names:
                raise ValueError(f"the detector does not know {clause['class']!r}; take another one, or leave it out")

    def score_detections(self, metadata: Metadata, detections: Detections) -> float:
        """Score of one image by its detections."""
        return float(geneval_verdict(metadata, detections, self.rules)[0])

    def score(self, prompts: Sequence[Metadata], images: Sequence[Sequence[Image.Image]]) -> list[list[float]]:
        """See `Scorer`."""
        found = iter(self.detector.detect([image for own in images for image in own]))
        return [
            [self.score_detections(metadata, next(found)) for _ in own]
            for metadata, own in zip(prompts, images, strict=True)
        ]


class MarginScorer(VerdictScorer):
    """The verdict plus `detector_margin`: right images score from 1 to 2, wrong ones from 0 to 1."""

    def score_detections(self, metadata: Metadata, detections: Detections) -> float:
        """Score of one image by its detections."""
        return super().score_detections(metadata, detections) + detector_margin(metadata, detections)


def detector_margin(metadata: Metadata, detections: Detections) -> float:
    """How confidently the prompt's objects are detected, in [0, 1]; positions are the verdict's matter.

    A clause that wants n objects (of a colour) is worth the n best scores, one that forbids n 1 - the n-th best score.
    The margin is the mean of two numbers: the worst single score, and the mean of all clauses, which also ranks images
    that lack something: one of two objects is better than none.
    """
    wanted = [_best_scores(clause, detections) for clause in metadata.get("include", ())]
    forbidden = [[1 - _best_scores(clause, detections)[-1]] for clause in metadata.get("exclude", ())]
    clauses = wanted + forbidden
    least = min(min(scores) for scores in clauses)
    return (least + sum(sum(scores) / len(scores) for scores in clauses) / len(clauses)) / 2


def _best_scores(clause: Mapping[str, Any], detections: Detections) -> list[float]:
    """The best scores of a clause's objects, as many as it counts; 0 for objects that are not there."""
    boxes = detections.get(clause["class"], [])
    if "color" in clause:
        boxes = [box for box in boxes if box[5] == GENEVAL_COLOURS.index(clause["color"])]
    scores = sorted((box[4] for box in boxes), reverse=True) + [0.0] * clause["count"]
    return scores[: clause["count"]]


class ClipScorer:
    """100 x the cosine of image and prompt in the embedding of a CLIP model (CLIPScore, arXiv:2104.08718)."""

    def __init__(self, folder: str, device: str = "cpu", batch_size: int = 32) -> None:
        """`folder` holds the model, its tokenizer and image processor; ValueError where there is no such model."""
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel  # only this needs them

        if not (Path(folder) / "config.json").is_file():
            raise ValueError(f"--clip {folder} holds no model; give a folder, e.g. of openai/clip-vit-large-patch14")
        kind = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8")).get("model_type")
        if kind != "clip":
            raise ValueError(f"--clip {folder} holds a model of type {kind!r}; give one of type 'clip'")
        clip = load_strict(CLIPModel, folder, dtype=torch.float32).eval()
        self.clip = clip.to(device)  # type: ignore[arg-type]  # HF wraps nn.Module.to
        self.tokenizer, self.view = AutoTokenizer.from_pretrained(folder), AutoImageProcessor.from_pretrained(folder)
        self.batch_size = batch_size

    def check(self, metadata: Metadata) -> None:
        """Any prompt can be scored."""

    @torch.no_grad()
    def score(self, prompts: Sequence[Metadata], images: Sequence[Sequence[Image.Image]]) -> list[list[float]]:
        """See `Scorer`; a prompt beyond CLIP's 77 tokens is cut off there."""
        texts = [metadata["prompt"] for metadata in prompts]
        longest = self.clip.config.text_config.max_position_embeddings  # type: ignore[union-attr]
        tokens = self.tokenizer(texts, padding=True, truncation=True, max_length=longest, return_tensors="pt")
        tokens = tokens.to(self.clip.device)
        wanted = F.normalize(self.clip.get_text_features(**tokens).pooler_output, dim=-1)
        flat = [to_rgb(image) for own in images for image in own]
        embedded = []
        for start in range(0, len(flat), self.batch_size):
            pixels = self.view(flat[start : start + self.batch_size], return_tensors="pt").to(self.clip.device)
            embedded.append(F.normalize(self.clip.get_image_features(**pixels).pooler_output, dim=-1))
        parts = torch.cat(embedded).split([len(own) for own in images])
        return [(100 * part @ text).tolist() for part, text in zip(parts, wanted, strict=True)]


class ChoiceScorer:
    """What people chose among the images of a prompt: the preferred one 1, the other 0, the rest `UNSCORED`."""

    def __init__(self, choices: Mapping[str, tuple[int, int]]) -> None:
        self.choices = choices

    def check(self, metadata: Metadata) -> None:
        """A prompt without a choice gives no pair; that is no mistake."""

    def score(self, prompts: Sequence[Metadata], images: Sequence[Sequence[Image.Image]]) -> list[list[float]]:
        """See `Scorer`; raises ValueError for a choice of an image that is not there."""
        scores = [[UNSCORED] * len(own) for own in images]
        for metadata, own in zip(prompts, scores, strict=True):
            chosen, rejected = self.choices.get(metadata["prompt"], (-1, -1))
            if max(chosen, rejected) >= len(own):
                raise ValueError(
                    f"choice {chosen} over {rejected} for {metadata['prompt']!r}, which has pictures 0 to "
                    f"{len(own) - 1}; give the numbers of the sheet"
                )
            if chosen >= 0:
                own[chosen], own[rejected] = 1.0, 0.0
        return scores


def read_choices(path: str | Path) -> dict[str, tuple[int, int]]:
    """Choices by prompt, from JSONL of `{"prompt", "chosen", "rejected"}` with numbers of images counted from 0.

    Raises ValueError naming the line where one is not so, or has a prompt that came before.
    """
    if not Path(path).is_file():
        raise ValueError(f"--choices {path} is not a file; write one line of JSON for every choice")
    choices: dict[str, tuple[int, int]] = {}
    kinds = {"prompt": str, "chosen": int, "rejected": int}
    for number, choice in read_lines(path):
        where = f"{path}:{number}"
        if any(type(choice.get(key)) is not kind for key, kind in kinds.items()):
            raise ValueError(f'{where}: {choice!r:.80}; write {{"prompt": "...", "chosen": 0, "rejected": 3}}')
        if min(choice["chosen"], choice["rejected"]) < 0 or choice["chosen"] == choice["rejected"]:
            raise ValueError(f"{where}: {choice['chosen']} over {choice['rejected']}; name two pictures, from 0 on")
        if choice["prompt"] in choices:
            raise ValueError(f"{where}: a second choice for {choice['prompt']!r}; keep one")
        choices[choice["prompt"]] = choice["chosen"], choice["rejected"]
    return choices


def choose_pairs(
    scores: Sequence[float], codes: Sequence[Sequence[int]], max_pairs: int = 1, min_gap: float = 0.0
) -> tuple[list[tuple[int, int]], int]:
    """Pairs (better, worse) of a prompt's images: best with worst, second with last but one, each image once.

    Dropped are pairs whose scores tie or differ by no more than `min_gap`, and pairs of the same image; their number
    comes second. `codes` are (N, L). Among equal scores the image that was drawn first counts as better.
    """
    scored = [index for index, score in enumerate(scores) if not math.isnan(score)]
    order = sorted(scored, key=lambda index: -scores[index])
    pairs = [(order[rank], order[-1 - rank]) for rank in range(min(max_pairs, len(order) // 2))]
    kept = [(a, b) for a, b in pairs if scores[a] - scores[b] > min_gap and list(codes[a]) != list(codes[b])]
    return kept, len(pairs) - len(kept)


def wrong_answer(answer: str, rng: np.random.Generator) -> str | None:
    """`answer` with its last yes, number, colour or place replaced by another of its kind; None where it has none."""
    for word in reversed(list(re.finditer(r"\w+", answer))):
        for group in ALTERNATIVES:
            if word[0].lower() in group:
                others = [other for other in group if other != word[0].lower()]
                other = others[int(rng.integers(len(others)))]
                other = other.capitalize() if word[0][0].isupper() else other
                return answer[: word.start()] + other + answer[word.end() :]
    return None


def question_pair(row: Mapping[str, Any], rng: np.random.Generator) -> Pair | None:
    """A pair from an encoded row about an image: its first answer, and the same made wrong.

    None for a row without an input image, without an answer in words, or without a word to replace.
    """
    place = next((index for index, turn in enumerate(row["messages"]) if turn["role"] == "assistant"), 0)
    prompt, answer = row["messages"][:place], row["messages"][place : place + 1]
    if not count_images(prompt) or count_images(answer):
        return None
    wrong = wrong_answer("".join(part["text"] for part in content_parts(answer[0])), rng)
    if wrong is None:
        return None
    codes = row["codes"][: count_images(prompt)]
    return as_pair({**row, "messages": prompt, "chosen": answer, "rejected": wrong, "codes": codes})
