"""Rows of the embedding and output matrices that learn while the others are frozen, without the whole matrix.

PEFT's trainable tokens put an adapter's rows into a copy of the matrix at every use, and its gradient is as large as
the matrix: for SmolLM2 with a thousand image rows that was a sixth of a training step. Here they stay apart.
Legend: V rows of the vocabulary, R rows that learn, D hidden.
"""

from dataclasses import dataclass

import torch
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn


@dataclass(frozen=True)
class TrainableRows:
    """Rows `values` (R, D) that stand for the rows `ids` (R,) of a matrix; no id comes twice."""

    ids: Tensor
    values: Tensor

    def into(self, matrix: Tensor) -> Tensor:
        """`matrix` (V, D) with these rows in place of its own; the values take its dtype."""
        return matrix.index_copy(0, self.ids, self.values.to(matrix.dtype))

    def part(self, start: int, matrix: Tensor) -> Tensor:
        """`matrix` (S, D), which is rows `start` to `start + S` of a larger one, with those of these rows in place."""
        inside = (self.ids >= start) & (self.ids < start + len(matrix))
        return TrainableRows(self.ids[inside] - start, self.values[inside]).into(matrix)


def split_rows(layer: nn.Module) -> tuple[Tensor, TrainableRows | None]:
    """The matrix (V, D) of an embedding or output layer, and the rows that an adapter of PEFT's has in place of its.

    None where the layer has all there is: no such adapter, or one that is merged or switched off.
    """
    if not isinstance(layer, TrainableTokensWrapper):
        return layer.weight, None  # type: ignore[return-value]  # any module, to torch
    adapter = layer.token_adapter
    names = [] if adapter.disable_adapters or adapter.merged else adapter.active_adapters
    if len(names) != 1:  # none, or several that PEFT puts together
        return layer.weight if names else adapter.base_layer.weight, None
    table, values = adapter.base_layer.weight, adapter.trainable_tokens_delta[names[0]]
    return table, TrainableRows(torch.tensor(adapter.token_indices[names[0]], device=values.device), values)


def look_up(layer: nn.Module, ids: Tensor) -> Tensor:
    """Input states (B, T, D) of token `ids` (B, T): what `layer(ids)` gives, with a gradient of its own rows alone."""
    table, own = split_rows(layer)
    if own is None or not isinstance(layer, TrainableTokensWrapper):
        states: Tensor = layer(ids)
        return states
    places = torch.full((len(table),), -1, device=ids.device).scatter(0, own.ids, torch.arange(len(own.ids)).to(ids))
    place = places[ids]
    scale = layer.token_adapter._get_embed_scale()  # Gemma's; its layer scales the others
    learnt = nn.functional.embedding(place.clamp(min=0), own.values.to(table.dtype))
    learnt = learnt if scale is None else learnt * scale.to(learnt.dtype)
    frozen: Tensor = layer.token_adapter.base_layer(ids)
    return torch.where((place >= 0)[..., None], learnt.to(frozen.dtype), frozen)
