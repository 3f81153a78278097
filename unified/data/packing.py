"""Packing examples into rows (first-fit decreasing), and dropping positions of output images.

Legend: B rows, T positions of a row, T' kept positions of it, L codes of one image.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from unified.models.processing import IGNORE_INDEX, UnifiedProcessor

DROPPING_STREAM = 1  # random stream of (seed, epoch, index); caption dropout uses another
CAPACITIES_TRIED = 16  # row lengths between the longest example and pack_length; more save under 1 %
NO_DOCUMENT = -1  # document id and kept position of padding


@dataclass
class PackedRow:
    """Examples that share a row: their indices in the batch, and their total length after dropping."""

    length: int = 0
    members: list[int] = field(default_factory=list)


def pack_first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[PackedRow]:
    """Assign each length, longest first, to the first row with space; ValueError if one exceeds `capacity`."""
    rows: list[PackedRow] = []
    for member in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[member]
        if length > capacity:
            raise ValueError(f"an example takes {length} positions, above pack_length {capacity}; raise pack_length")
        row = next((row for row in rows if row.length + length <= capacity), None)
        if row is None:
            rows.append(row := PackedRow())
        row.length += length
        row.members.append(member)
    return rows


def pack_tightly(lengths: Sequence[int], capacity: int) -> list[PackedRow]:
    """First-fit-decreasing rows of at most `capacity` with the smallest padded batch.

    Among equal sizes the one with shorter rows, as attention is quadratic in their length. Raises ValueError as
    `pack_first_fit_decreasing`.
    """
    shortest = max(lengths, default=0)
    span = max(capacity - shortest, 0)
    capacities = {shortest + span * part // CAPACITIES_TRIED for part in range(CAPACITIES_TRIED)} | {capacity}
    packed = [pack_first_fit_decreasing(lengths, tried) for tried in sorted(capacities) if tried <= capacity]
    return min(packed, key=lambda rows: len(rows) * max((row.length for row in rows), default=0))


@dataclass(frozen=True)
class LastScaleDropping:
    """Keeps a random `fraction` of the last scale's positions of every output image, and all earlier scales.

    The very last position is always kept. The others are a function of `seed` and the example's epoch and index, so
    that a resumed run trains the same positions.
    """

    image_length: int
    last_scale_length: int
    fraction: float
    seed: int

    @classmethod
    def of(cls, processor: UnifiedProcessor, fraction: float, seed: int) -> "LastScaleDropping":
        """For a processor's scales; raises ValueError for a fraction outside (0, 1], or below 1 in raster order."""
        if not 0 < fraction <= 1:
            raise ValueError(f"last_scale_fraction {fraction} is not in (0, 1]; 1 trains every position")
        if fraction < 1 and processor.image_order == "raster":
            raise ValueError(
                f"last_scale_fraction {fraction} with image_order raster: a code depends on those before; set it to 1"
            )
        h, w = processor.patch_nums[-1]
        return cls(processor.image_length, h * w, fraction, seed)

    @property
    def kept_per_image(self) -> int:
        """Kept positions of the last scale."""
        return math.ceil(self.fraction * self.last_scale_length)

    def kept_length(self, length: int, output_images: int) -> int:
        """Kept positions of an example with `length` positions."""
        return length - output_images * (self.last_scale_length - self.kept_per_image)

    def keep_positions(self, is_image: Tensor, epoch: int, index: int) -> Tensor:
        """Sorted kept positions (T',) of an example with image tokens where `is_image` (T,)."""
        if self.fraction == 1:
            return torch.arange(len(is_image))
        generator = np.random.default_rng((self.seed, epoch, index, DROPPING_STREAM))
        images = is_image.nonzero().flatten().view(-1, self.image_length)
        kept = torch.ones_like(is_image)
        for last_scale in images[:, -self.last_scale_length :]:
            order = torch.from_numpy(generator.permutation(self.last_scale_length - 1))
            kept[last_scale[order[self.kept_per_image - 1 :]]] = False
        return kept.nonzero().flatten()


@dataclass
class Document:
    """One example of a row: `input_ids`, `labels` (T,) and kept positions (T',)."""

    input_ids: Tensor
    labels: Tensor
    keep_positions: Tensor


def stack_rows(rows: Sequence[Sequence[Document]], pad_token_id: int) -> dict[str, Tensor]:
    """Concatenate documents to rows, padded on the right.

    Returns `input_ids`, `attention_mask`, `document_ids` (-1 at padding), `labels` (-100 at padding), all (B, T), and
    `keep_positions` (B, T'), -1 at padding.
    """
    numbered = [[torch.full_like(doc.input_ids, i) for i, doc in enumerate(row)] for row in rows]
    document_ids = pad_right(numbered, NO_DOCUMENT)
    return {
        "input_ids": pad_right([[doc.input_ids for doc in row] for row in rows], pad_token_id),
        "attention_mask": (document_ids != NO_DOCUMENT).long(),
        "document_ids": document_ids,
        "labels": pad_right([[doc.labels for doc in row] for row in rows], IGNORE_INDEX),
        "keep_positions": pad_right([_kept_of_row(row) for row in rows], NO_DOCUMENT),
    }


def _kept_of_row(row: Sequence[Document]) -> list[Tensor]:
    starts = [0, *accumulate(len(doc.input_ids) for doc in row)]
    return [doc.keep_positions + start for doc, start in zip(row, starts[:-1], strict=True)]


def pad_right(rows: Sequence[Sequence[Tensor]], value: int) -> Tensor:
    """Concatenate each row's tensors and pad with `value`, (B, longest)."""
    return pad_sequence([torch.cat(list(row)) for row in rows], batch_first=True, padding_value=value)
