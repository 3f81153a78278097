"""What runs together: text of all answers token by token, images of equal progress scale by scale.

Legend: R rows, S images, n positions of a scale, D hidden, C code dim.
"""

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unified.models.modeling import UnifiedForCausalLM
from unified.models.row_cache import CachedRow, RowCache
from unified.models.sampling import apply_guidance, check_sampled, ramped_guidance_scale, sample_unchecked
from unified.serving.rows import Row, run_first_scale, run_ids, run_scale
from unified.serving.sequences import Sequence

MIXED = 4  # prompts of one batch: the longest has at most so many times the positions of the shortest


class TextBatch:
    """Answers that go on with text, one token a step; ids that are new to them, as a prompt's, in the same step."""

    def __init__(self, sequences: list[Sequence]) -> None:
        self.sequences = sequences
        self.cache = RowCache([sequence.cached for sequence in sequences])
        for sequence in sequences:
            sequence.cached = None

    @property
    def alone(self) -> bool:
        """Whether it is one answer that failed in a batch."""
        return any(sequence.alone for sequence in self.sequences)

    def joins(self, other: "TextBatch") -> bool:
        """Whether another may be taken in."""
        return not (self.alone or other.alone)

    def join(self, other: "TextBatch") -> None:
        """Take another's in, which has been stepped."""
        self.sequences += other.sequences
        self.cache.join(other.cache)

    @torch.no_grad()
    def step(self, model: UnifiedForCausalLM) -> None:
        """The next token of every answer."""
        hidden = run_ids(model, [sequence.row for sequence in self.sequences], self.cache)
        for sequence, scores in zip(self.sequences, model.text_logits(hidden), strict=True):
            scores[sequence.suppressed()] = float("-inf")
            settings = sequence.job.text_sampling
            token, invalid = sample_unchecked(
                scores[None], settings.temperature, settings.top_k, settings.top_p, [sequence.text_generator]
            )
            check_sampled(invalid)
            sequence.add_token(int(token))

    def leave(self, stays: Callable[[Sequence], bool]) -> list[Sequence]:
        """Drop the answers that do not stay, which are returned with what is cached of them."""
        gone = [place for place, sequence in enumerate(self.sequences) if not stays(sequence)]
        if gone and self.cache.keys:
            for place in gone:
                self.sequences[place].cached = self.cache.row(place)
        leaving = [self.sequences[place] for place in gone]
        if gone:
            kept = [place for place in range(len(self.sequences)) if place not in gone]
            self.cache.keep(kept)
            self.sequences = [self.sequences[place] for place in kept]
        return leaving


@dataclass
class ImageBatch:
    """Images at one scale. A row is an image's context or, under guidance, the unconditional one; `owners` says whose.

    f_hat (S, C, h_K, w_K) and the next scale's input states (S, n, D).
    """

    sequences: list[Sequence]
    rows: list[Row]
    owners: list[int]
    cache: RowCache
    f_hat: Tensor
    states: Tensor
    scale: int = 0
    unconditional: list[bool] = field(default_factory=list)

    @classmethod
    def begin(cls, sequences: list[Sequence], model: UnifiedForCausalLM, blank: tuple[CachedRow, int]) -> "ImageBatch":
        """Images that begin; `blank` is what is cached of the unconditional prompt, and its last RoPE position."""
        guided = [place for place, sequence in enumerate(sequences) if sequence.guided]
        no_codes = torch.empty(0, model.config.image_length, dtype=torch.long)
        rows = [sequence.row for sequence in sequences] + [Row([], no_codes, blank[1]) for _ in guided]
        cache = RowCache([*(sequence.cached for sequence in sequences), *(blank[0] for _ in guided)])
        for sequence in sequences:
            sequence.cached = None
        owners = [*range(len(sequences)), *guided]
        unconditional = [False] * len(sequences) + [True] * len(guided)
        return cls(sequences, rows, owners, cache, *model.first_scale(len(sequences)), 0, unconditional)

    @property
    def alone(self) -> bool:
        """Whether it is one image that failed in a batch."""
        return any(sequence.alone for sequence in self.sequences)

    def joins(self, other: "ImageBatch") -> bool:
        """Whether another may be taken in."""
        return self.scale == other.scale and not (self.alone or other.alone)

    def join(self, other: "ImageBatch") -> None:
        """Take in another batch at the same scale."""
        assert self.scale == other.scale, f"images at scales {self.scale} and {other.scale} take no step together"
        self.owners += [owner + len(self.sequences) for owner in other.owners]
        self.sequences += other.sequences
        self.rows, self.unconditional = self.rows + other.rows, self.unconditional + other.unconditional
        self.cache.join(other.cache)
        self.f_hat, self.states = torch.cat([self.f_hat, other.f_hat]), torch.cat([self.states, other.states])

    @torch.no_grad()
    def step(self, model: UnifiedForCausalLM) -> bool:
        """The next scale of every image; returns whether it was the last."""
        scales, scale = len(model.config.patch_nums), self.scale
        states = self.states[torch.tensor(self.owners, device=self.states.device)]
        if scale:
            hidden = run_scale(model, self.rows, self.cache, states, scale)
        else:
            hidden = run_first_scale(model, self.rows, self.cache, states)
        drawn = self.draw(
            model.code_logits(hidden), ramp=lambda strength: ramped_guidance_scale(strength, scale, scales)
        )
        last = scale + 1 == scales
        if not last:
            self.f_hat, self.states = model.next_scale(self.f_hat, torch.cat([codes for codes, _ in drawn]), scale)
        self.scale += 1
        for place, (sequence, (codes, invalid)) in enumerate(zip(self.sequences, drawn, strict=True)):
            shown = scale in sequence.job.partial_scales and not last
            sequence.add_scale(codes[0], invalid, self.f_hat[place : place + 1] if shown else None)
        return last

    def draw(self, logits: Tensor, ramp: Callable[[float], float]) -> list[tuple[Tensor, Tensor]]:
        """Codes (1, n) of every image, each with its own settings and generator; see `sample_unchecked`."""
        blank = {owner: row for row, owner in enumerate(self.owners) if self.unconditional[row]}
        own = {owner: row for row, owner in enumerate(self.owners) if not self.unconditional[row]}
        drawn = []
        for place, sequence in enumerate(self.sequences):
            settings, scores = sequence.job.image_sampling, logits[own[place]]
            if place in blank:
                scores = apply_guidance(scores, logits[blank[place]], ramp(settings.guidance_scale))
            drawn.append(
                sample_unchecked(
                    scores[None], settings.temperature, settings.top_k, settings.top_p, [sequence.generator]
                )
            )
        return drawn

    def finish(self) -> None:
        """All images are there; what is cached of each is its own again."""
        for row, owner in enumerate(self.owners):
            if not self.unconditional[row]:
                self.sequences[owner].cached = self.cache.row(row)
        for sequence in self.sequences:
            sequence.finish_image()

    def leave(self, stays: Callable[[Sequence], bool]) -> list[Sequence]:
        """Drop the images that do not stay, which are returned."""
        kept = [place for place, sequence in enumerate(self.sequences) if stays(sequence)]
        leaving = [sequence for sequence in self.sequences if not stays(sequence)]
        if not leaving:
            return []
        rows = [row for row, owner in enumerate(self.owners) if owner in kept]
        self.cache.keep(rows)
        self.owners = [kept.index(self.owners[row]) for row in rows]
        self.rows = [self.rows[row] for row in rows]
        self.unconditional = [self.unconditional[row] for row in rows]
        self.sequences = [self.sequences[place] for place in kept]
        index = torch.tensor(kept, dtype=torch.long, device=self.f_hat.device)
        self.f_hat, self.states = self.f_hat[index], self.states[index]
        return leaving


def alike(sequences: Seq[Sequence]) -> list[list[Sequence]]:
    """Sequences by the number of their pending ids: those of one list run together without much padding."""
    groups: list[list[Sequence]] = []
    for sequence in sorted(sequences, key=lambda sequence: len(sequence.row.pending)):
        shortest = len(groups[-1][0].row.pending) if groups else 0
        alone = sequence.alone or (groups and groups[-1][0].alone)
        if groups and not alone and len(sequence.row.pending) <= MIXED * max(shortest, 16):
            groups[-1].append(sequence)
        else:
            groups.append([sequence])
    return groups
