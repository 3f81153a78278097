"""Rows of a batch: contexts of different lengths, which run the ids that are new to them, or a scale, together.

Legend: R rows, q positions of the longest, n positions of a scale, D hidden.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unified.models.modeling import UnifiedForCausalLM
from unified.models.row_cache import RowCache
from unified.models.sequence_layout import Layout, read_layout


@dataclass
class Row:
    """A context: `pending` ids that are not in the cache yet, and of those that are the last RoPE position.

    input_codes: of the input images among the pending ids, (M, L). image_seen: whether the cache holds an image.
    """

    pending: list[int]
    input_codes: Tensor
    position: int = -1
    image_seen: bool = False


@dataclass
class _Pending:
    """The pending ids of rows (R, q), padded on the right, and what follows from them."""

    ids: Tensor
    layout: Layout
    states: Tensor
    positions: Tensor
    last: Tensor = field(repr=False)  # (R, 1): RoPE position of each row's last id


@torch.no_grad()
def run_ids(model: UnifiedForCausalLM, rows: Sequence[Row], cache: RowCache) -> Tensor:
    """Run every row's pending ids, at least one; returns the hidden state (R, D) of each row's last."""
    counts = [len(row.pending) for row in rows]
    pending = _embed(model, rows)
    blocks = pending.layout.blocks.masked_fill(_behind(counts, pending.ids), -1)
    hidden = _run(model, rows, cache, counts, pending.states, pending.positions, blocks, pending.ids)
    _forget(rows, pending, blocks)
    return hidden[torch.arange(len(rows)), torch.tensor(counts) - 1]


@torch.no_grad()
def run_first_scale(model: UnifiedForCausalLM, rows: Sequence[Row], cache: RowCache, states: Tensor) -> Tensor:
    """Run pending ids, of some rows none, and behind them the first scale's `states` (R, n, D); returns its hidden."""
    counts, new = [len(row.pending) for row in rows], states.shape[1]
    pending = _embed(model, rows)
    width, device = pending.ids.shape[1], states.device
    # each row's own ids, its scale, then padding, out of the columns [ids, scale]
    order = torch.arange(width + new, device=device)
    begins = torch.tensor(counts, device=device)[:, None]
    scale = (order >= begins) & (order < begins + new)
    order = torch.where(scale, order - begins + width, order.clamp(max=max(width - 1, 0)))
    blocks = pending.layout.blocks.masked_fill(_behind(counts, pending.ids), -1)
    of_scale = torch.full((len(rows), new), width + 1, device=device)  # more than there are blocks
    positions = pending.last + model.scale_steps(0, device)
    columns = [
        (pending.states, states.to(pending.states.dtype)),
        (pending.positions, positions),
        (blocks, of_scale),
        (pending.ids, torch.full_like(of_scale, model.config.image_token_offset)),
    ]
    joined, places, of_block, ids = (_take(torch.cat(pair, dim=1), order) for pair in columns)
    of_block = of_block.masked_fill((torch.arange(width + new, device=device) >= begins + new), -1)
    hidden = _run(model, rows, cache, [count + new for count in counts], joined, places, of_block, ids)
    _forget(rows, pending, blocks)
    return _take(hidden, begins + torch.arange(new, device=device))


@torch.no_grad()
def run_scale(model: UnifiedForCausalLM, rows: Sequence[Row], cache: RowCache, states: Tensor, scale: int) -> Tensor:
    """Run the `states` (R, n, D) of a scale after the first; returns its hidden states (R, n, D)."""
    steps = model.scale_steps(scale, states.device)
    positions = torch.tensor([[row.position] for row in rows], device=states.device) + steps
    ids, counts = torch.full_like(positions, model.config.image_token_offset), [len(steps)] * len(rows)
    return _run(model, rows, cache, counts, states, positions, torch.zeros_like(positions), ids, one_block=True)


def end_image(model: UnifiedForCausalLM, row: Row) -> None:
    """Count a finished image's RoPE positions in; its end token is still to be run."""
    row.position += model.config.image_rope_positions - 2
    row.image_seen = True
    row.pending = [model.config.eoi_token_id]


def _run(
    model: UnifiedForCausalLM,
    rows: Sequence[Row],
    cache: RowCache,
    counts: Sequence[int],
    states: Tensor,
    positions: Tensor,
    blocks: Tensor,
    ids: Tensor,
    one_block: bool = False,
) -> Tensor:
    columns, valid = cache.place(counts, states.device)
    seen = torch.tensor([row.image_seen for row in rows], device=states.device)
    outputs = model.model.run_backbone(
        states, positions, blocks, valid, cache=cache, image_seen=seen, columns=columns, one_block=one_block,
        text_ids=ids, use_cache=True,
    )  # fmt: skip
    hidden: Tensor = outputs[0]
    return hidden


def _embed(model: UnifiedForCausalLM, rows: Sequence[Row]) -> _Pending:
    """Input states of the pending ids; their padding is an ordinary token."""
    width, device = max(len(row.pending) for row in rows), model.device
    ids = torch.tensor([row.pending + [0] * (width - len(row.pending)) for row in rows], dtype=torch.long)
    ids = ids.view(len(rows), width).to(device)
    layout, codes = read_layout(ids, model.config), torch.cat([row.input_codes for row in rows])
    states = model.model.embed(ids, layout, image_codes=codes.to(device) if len(codes) else None)
    counts = [len(row.pending) for row in rows]
    steps = layout.position_steps.masked_fill(_behind(counts, ids), 0)
    positions = torch.tensor([[row.position] for row in rows], device=device) + steps.cumsum(dim=1)
    last = torch.tensor([[row.position] for row in rows], device=device) + steps.sum(dim=1, keepdim=True)
    return _Pending(ids, layout, states.to(model.lm_head.weight.dtype), positions, last)


def _behind(counts: Sequence[int], ids: Tensor) -> Tensor:
    """Where ids (R, q) are padding behind the `counts[r]` of a row."""
    return torch.arange(ids.shape[1], device=ids.device) >= torch.tensor(counts, device=ids.device)[:, None]


def _forget(rows: Sequence[Row], pending: _Pending, blocks: Tensor) -> None:
    """The pending ids are in the cache now."""
    in_image = (blocks >= 0).any(dim=1).tolist()
    for row, last, seen in zip(rows, pending.last.flatten().tolist(), in_image, strict=True):
        row.pending, row.input_codes = [], row.input_codes[:0]
        row.position, row.image_seen = last, row.image_seen or seen


def _take(columns: Tensor, order: Tensor) -> Tensor:
    """Columns of (R, c) or (R, c, D) in the `order` (R, q)."""
    if columns.ndim == 2:
        return columns.gather(1, order)
    return columns.gather(1, order[..., None].expand(-1, -1, columns.shape[-1]))
