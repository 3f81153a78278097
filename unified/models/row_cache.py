"""KV cache of rows of different lengths, which join, leave and are cut back: what a server's batches are made of.

A row's keys are compact from column 0 on, so that no row sees another's padding and a row can be copied as it is. The
capacity grows in blocks: shapes are from a small set, and compiled layers need not be compiled for every length.
Legend: R rows, q new positions, k columns, H key heads, d head dimension.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

BLOCK = 64  # columns by which the capacity grows


@dataclass
class CachedRow:
    """Keys and values (1, H, length, d) of one row, by layer."""

    keys: list[Tensor]
    values: list[Tensor]

    @property
    def length(self) -> int:
        """Number of positions."""
        return self.keys[0].shape[2] if self.keys else 0

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values))

    def cut(self, length: int) -> "CachedRow":
        """The first `length` positions, sharing memory."""
        return CachedRow(*([tensor[:, :, :length] for tensor in part] for part in (self.keys, self.values)))


class RowCache(Cache):
    """Keys and values (R, H, k, d) by layer, of which row r has `lengths[r]`.

    `place` says where the positions of the next forward pass go, which then calls `update` for every layer.
    """

    def __init__(self, rows: Sequence[CachedRow | None]) -> None:
        """A cache of copies of `rows`; None begins an empty one."""
        super().__init__(layers=[])
        self.lengths = [0 if row is None else row.length for row in rows]
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.columns, self.width = torch.empty(len(rows), 0, dtype=torch.long), 0  # of the next forward pass
        filled = [row for row in rows if row is not None and row.length]
        if filled:
            capacity = blocks_for(max(self.lengths))
            for layer in range(len(filled[0].keys)):
                self.keys.append(_stack([None if row is None else row.keys[layer] for row in rows], capacity))
                self.values.append(_stack([None if row is None else row.values[layer] for row in rows], capacity))

    def place(self, counts: Sequence[int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Make room for `counts[r]` positions of every row, and count them in; there may be padding behind a row's.

        Returns the columns (R, q) of the new positions, q the largest count, and which columns hold a row's own
        positions, (R, k) bool.
        """
        begins = torch.tensor(self.lengths, device=device)
        self.columns = begins[:, None] + torch.arange(max(counts), device=device)
        self.width = blocks_for(max(self.lengths) + max(counts))
        self.reserve(self.width)
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]
        ends = torch.tensor(self.lengths, device=device)
        return self.columns, torch.arange(self.width, device=device) < ends[:, None]

    def reserve(self, length: int) -> None:
        """Grow to `length` columns or more."""
        capacity = blocks_for(length)
        for part in (self.keys, self.values):
            for layer, tensor in enumerate(part):
                if tensor.shape[2] < capacity:
                    part[layer] = torch.nn.functional.pad(tensor, (0, 0, 0, capacity - tensor.shape[2]))

    def update(  # type: ignore[override]  # HF's other arguments are its own caches'
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Write keys and values (R, H, q, d) of a layer's new positions; returns all of the layer, (R, H, k, d)."""
        if layer_idx == len(self.keys):
            shape = (*key_states.shape[:2], self.width, key_states.shape[3])
            self.keys.append(key_states.new_zeros(shape))
            self.values.append(value_states.new_zeros(*shape[:3], value_states.shape[3]))
        for part, states in ((self.keys, key_states), (self.values, value_states)):
            index = self.columns[:, None, :, None].expand_as(states)
            part[layer_idx].scatter_(2, index, states.to(part[layer_idx].dtype))
        return self.keys[layer_idx][:, :, : self.width], self.values[layer_idx][:, :, : self.width]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Length of the longest row."""
        return max(self.lengths)

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """All columns, from the first on, in every layer: windows are masks here."""
        return self.width, 0

    def row(self, index: int) -> CachedRow:
        """A copy of one row."""
        own = slice(index, index + 1), slice(None), slice(self.lengths[index])
        return CachedRow(*([tensor[own].clone() for tensor in part] for part in (self.keys, self.values)))

    def keep(self, rows: Sequence[int]) -> None:
        """Drop all rows but these, which get this order."""
        for part in (self.keys, self.values):
            for layer, tensor in enumerate(part):
                part[layer] = tensor[torch.tensor(rows, dtype=torch.long, device=tensor.device)]
        self.lengths = [self.lengths[row] for row in rows]

    def join(self, other: "RowCache") -> None:
        """Append the rows of `other`, whose tensors may be taken over."""
        capacity = max(cache.keys[0].shape[2] for cache in (self, other))
        for cache in (self, other):
            cache.reserve(capacity)
        self.keys = [torch.cat(pair) for pair in zip(self.keys, other.keys, strict=True)]
        self.values = [torch.cat(pair) for pair in zip(self.values, other.values, strict=True)]
        self.lengths = self.lengths + other.lengths


def blocks_for(length: int) -> int:
    """`length` rounded up to whole blocks of columns."""
    return -(-length // BLOCK) * BLOCK


def _stack(rows: Sequence[Tensor | None], capacity: int) -> Tensor:
    """Rows (1, H, length, d) of one layer as (R, H, capacity, d); None is an empty one."""
    some = next(row for row in rows if row is not None and row.shape[2])
    stacked = some.new_zeros(len(rows), some.shape[1], capacity, some.shape[3])
    for index, row in enumerate(rows):
        if row is not None:
            stacked[index, :, : row.shape[2]] = row[0]
    return stacked
