"""Trainable rows of the embedding and output matrices, with the other rows frozen, without a gradient of the matrix.

PEFT's trainable tokens copy an adapter's rows into the full matrix at every use, and its gradient is as large as the
matrix: for SmolLM2 with a thousand image rows that was a sixth of a training step. Here they are kept separate.
Legend: V rows of the vocabulary, R trainable rows, D hidden.
"""

from dataclasses import dataclass

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn


@dataclass(frozen=True)
class TrainableRows:
    """`values` (R, D) that replace the rows `ids` (R,) of a matrix; ids are unique."""

    ids: Tensor
    values: Tensor

    def merge_into(self, matrix: Tensor) -> Tensor:
        """`matrix` (V, D) with its rows replaced by these, in its dtype."""
        return matrix.index_copy(0, self.ids, self.values.to(matrix.dtype))

    def merge_into_slice(self, start: int, matrix: Tensor) -> Tensor:
        """As `merge_into` for a slice `matrix` (S, D), rows `start` to `start + S` of the full one."""
        inside = (self.ids >= start) & (self.ids < start + len(matrix))
        return TrainableRows(self.ids[inside] - start, self.values[inside]).merge_into(matrix)


def prepare_output_layer(layer: nn.Module) -> None:
    """Give PEFT's wrapper of token rows the `bias` that TRL reads, None; ValueError for a LoRA of the output matrix.

    Losses, here and TRL's, multiply by the layer's `weight`, of which such an update is no part: it would not train.
    """
    if isinstance(layer, TrainableTokensWrapper):
        layer.register_parameter("bias", None)
    elif isinstance(layer, BaseTunerLayer):
        raise ValueError(
            f"PEFT's {type(layer).__name__} of lm_head would not be trained, as losses multiply by its frozen weight; "
            "leave lm_head out of target_modules, and train rows of it with trainable_token_indices"
        )


def split_rows(layer: nn.Module) -> tuple[Tensor, TrainableRows | None]:
    """The matrix (V, D) of an embedding or output layer, and the rows by which a PEFT adapter replaces some of its.

    None without such an adapter, and for one that is merged or disabled.
    """
    if not isinstance(layer, TrainableTokensWrapper):
        return layer.weight, None  # type: ignore[return-value]  # any module, to torch
    adapter = layer.token_adapter
    names = [] if adapter.disable_adapters or adapter.merged else adapter.active_adapters
    if len(names) != 1:  # none, or several that PEFT combines
        return layer.weight if names else adapter.base_layer.weight, None
    table, values = adapter.base_layer.weight, adapter.trainable_tokens_delta[names[0]]
    return table, TrainableRows(torch.tensor(adapter.token_indices[names[0]], device=values.device), values)


def look_up(layer: nn.Module, ids: Tensor) -> Tensor:
    """Input states (B, T, D) of token `ids` (B, T): `layer(ids)`, with a gradient of the trainable rows only."""
    table, rows = split_rows(layer)
    if rows is None or not isinstance(layer, TrainableTokensWrapper):
        states: Tensor = layer(ids)
        return states
    order = torch.arange(len(rows.ids)).to(ids)
    row_of_id = torch.full((len(table),), -1, device=ids.device).scatter(0, rows.ids, order)
    row = row_of_id[ids]
    scale = layer.token_adapter._get_embed_scale()  # Gemma's; its layer scales the frozen rows itself
    trainable = nn.functional.embedding(row.clamp(min=0), rows.values.to(table.dtype))
    trainable = trainable if scale is None else trainable * scale.to(trainable.dtype)
    frozen: Tensor = layer.token_adapter.base_layer(ids)
    return torch.where((row >= 0)[..., None], trainable.to(frozen.dtype), frozen)
