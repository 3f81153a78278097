"""What HF's decoding loops are given for one stretch of text, between images: processors, criteria, streamer.

HF's processors and criteria count columns of `input_ids`. They are shown the columns of text, with an image as its end
token, so that `max_new_tokens`, `min_new_tokens` and the like count text alone; a caller's own are shown every column.
Legend: B batch, T columns so far, V vocabulary.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    LogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
)
from transformers.generation import EosTokenCriteria, MaxLengthCriteria, StoppingCriteria
from transformers.generation.streamers import BaseStreamer

from unified.models.sampling import Generators, sample

# HF's processors that know their rows by number, and so cannot be asked about one of them
OF_WHOLE_BATCHES = (
    EncoderNoRepeatNGramLogitsProcessor,
    EncoderRepetitionPenaltyLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    SynthIDTextWatermarkLogitsProcessor,
)
SEED_RANGE = 2**31  # of a stretch's own generator, which is seeded from the caller's


class AllowedIds(LogitsProcessor):
    """Restricts sampling to `ids` except `suppressed`."""

    def __init__(self, ids: range, suppressed: Iterable[int] = ()) -> None:
        self.ids, self.suppressed = slice(ids.start, ids.stop), list(suppressed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        allowed = torch.full_like(scores, float("-inf"))
        allowed[:, self.ids] = scores[:, self.ids]
        allowed[:, self.suppressed] = float("-inf")
        return allowed


class ChosenIds(LogitsProcessor):
    """Samples here, with generators of this call; what is left of `scores` is the chosen id, which HF's loop takes.

    HF draws from torch's global generator, which threads share. `kept` are the scores that were sampled from.
    """

    def __init__(self, generator: Generators, keep: bool) -> None:
        self.generator, self.keep = generator, keep
        self.kept: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.keep:
            self.kept.append(scores)
        chosen = sample(scores, generator=self.generator)
        return torch.full_like(scores, float("-inf")).scatter(1, chosen[:, None], 0.0)


def text_generators(generator: Generators, active: Tensor) -> Generators:
    """Generators of one stretch of text, in which the rows `active` (B,) write, seeded from those of the call.

    Their own, so that steps in which a row waits for others change none of its images.
    """
    if generator is None:
        return None
    if isinstance(generator, torch.Generator):
        return _descendant(generator)
    if len(generator) != len(active):
        raise ValueError(f"{len(generator)} generators for a batch of {len(active)}; pass one per row, or one for all")
    rows = zip(generator, active.tolist(), strict=True)
    return [_descendant(parent) if writes else torch.Generator(parent.device) for parent, writes in rows]


def _descendant(parent: torch.Generator) -> torch.Generator:
    seed = int(torch.randint(SEED_RANGE, (1,), generator=parent, device=parent.device))
    return torch.Generator(parent.device).manual_seed(seed)


class TextColumns:
    """Columns of growing `input_ids` (B, T) that HF's processors and criteria are shown; `kept` (T,) bool so far."""

    def __init__(self, prompt_length: int) -> None:
        self.kept = torch.ones(prompt_length, dtype=torch.bool)

    def __call__(self, input_ids: Tensor) -> Tensor:
        """The columns of text of `input_ids` (B, T'), T' at least T."""
        count = len(self.kept)
        kept = self.kept.to(input_ids.device)
        return torch.cat([input_ids[:, :count][:, kept], input_ids[:, count:]], dim=1)

    def grow(self, columns: int) -> None:
        """`columns` more of text."""
        self.kept = torch.cat([self.kept, torch.ones(columns, dtype=torch.bool)])

    def grow_by_image(self, codes: int) -> None:
        """An image: its start is the last column; of it and `codes` the column of its end is left."""
        self.kept[-1] = False
        self.kept = torch.cat([self.kept, torch.zeros(codes, dtype=torch.bool), torch.ones(1, dtype=torch.bool)])


class ShownText(LogitsProcessor):
    """A processor of HF's that is shown the columns of text; of rows that skipped some, each its own alone.

    `skipped` (B, T) are these columns so far, None where no row has any.
    """

    def __init__(self, processor: LogitsProcessor, columns: TextColumns, skipped: Tensor | None) -> None:
        self.processor, self.columns = processor, columns
        self.skipped = None if isinstance(processor, OF_WHOLE_BATCHES) else skipped

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.skipped is None:
            scores_then: Tensor = self.processor(self.columns(input_ids), scores)
            return scores_then
        count = self.skipped.shape[1]
        rows = []
        for ids, skipped, row in zip(input_ids, self.skipped, scores, strict=True):
            kept = self.columns.kept.to(ids.device) & ~skipped
            rows.append(self.processor(torch.cat([ids[:count][kept], ids[count:]])[None], row[None]))
        return torch.cat(rows)


class RowEnds(StoppingCriteria):
    """Where each row's text ends: at one of `ids`, after its `budget` (B,) of tokens, or by another criterion.

    `ended` (B,) is a row's number of columns then, -1 before; rows that are `idle` (B,) have none in this stretch.
    `others` are the criteria of HF and of the `callers`.
    """

    def __init__(
        self,
        others: Sequence[StoppingCriteria],
        callers: Sequence[StoppingCriteria],
        ids: Tensor,
        budget: Tensor,
        idle: Tensor,
        columns: TextColumns,
    ) -> None:
        counted = (EosTokenCriteria, MaxLengthCriteria)  # which `ids` and `budget` stand for
        self.others = [criterion for criterion in others if type(criterion) not in counted]
        self.callers, self.budget, self.columns, self.start = list(callers), budget, columns, len(columns.kept)
        self.eos_token_id = ids  # HF pads rows that have ended where a criterion has this
        self.ended = torch.where(idle, self.start, -1)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        count = input_ids.shape[1]
        done = torch.isin(input_ids[:, -1], self.eos_token_id) | (count - self.start >= self.budget)
        for criterion in self.others:
            own = any(criterion is caller for caller in self.callers)
            done = done | criterion(input_ids if own else self.columns(input_ids), scores, **kwargs)
        self.ended = torch.where((self.ended < 0) & done, count, self.ended)
        return self.ended >= 0


class OneStreamer(BaseStreamer):
    """A caller's `streamer` in HF's loops, which would end it after every stretch of text."""

    def __init__(self, streamer: BaseStreamer) -> None:
        self.streamer = streamer
        self.idle = torch.zeros(0, dtype=torch.bool)
        self.pad_token_id = 0

    def begin(self, idle: Tensor, pad_token_id: int) -> None:
        """A stretch of text, in which the rows `idle` (B,) have no part."""
        self.idle, self.pad_token_id = idle.cpu(), pad_token_id

    def put(self, value: Tensor) -> None:
        """Ids (B,) of a step, or (1, n) of several."""
        self.streamer.put(torch.where(self.idle, self.pad_token_id, value) if value.ndim == 1 else value)

    def put_image(self, ids: Tensor) -> None:
        """Columns (B, n) of an image: at once for a single row, as HF's streamers of text take them."""
        for step in ids.cpu()[None] if len(ids) == 1 else ids.cpu().unbind(dim=1):
            self.streamer.put(step)

    def end(self) -> None:
        """Nothing: the call ends later."""
