"""Trainable rows of the embedding and output matrices, with the other rows frozen, without a gradient of the matrix.

PEFT's trainable tokens copy an adapter's rows into the full matrix at every use, and its gradient is as large as the
matrix: for SmolLM2 with a thousand image rows that was a sixth of a training step. Here they are kept separate.
Legend: V rows of the vocabulary, R trainable rows, D hidden.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import gather_params_ctx
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial
from transformers.integrations import is_deepspeed_zero3_enabled


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


def whole(parameter: Tensor) -> Tensor:
    """`parameter` as a plain tensor: of one that FSDP2 has sharded all is gathered, and its gradient averaged."""
    if not isinstance(parameter, DTensor):
        return parameter
    gathered: Tensor = parameter.full_tensor(grad_placements=[Partial("avg")] * parameter.device_mesh.ndim)
    return gathered


class TokenRows(nn.Module):
    """Trainable `values` (R, D) of the rows `ids` (R,) of a frozen `matrix` (V, D)."""

    ids: Tensor

    def __init__(self, ids: list[int], matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("ids", torch.tensor(ids, device=matrix.device), persistent=False)
        self.values = nn.Parameter(matrix[self.ids])

    def forward(self) -> Tensor:
        """The values; ZeRO-3 gathers them before this, and their copy stays when it parts them again."""
        return whole(self.values).clone()

    def rows(self) -> TrainableRows:
        """Ids and values."""
        return TrainableRows(self.ids, self())


class _WholeMatrix(torch.autograd.Function):
    """`table` (V, D), into which `values` (R, D) of rows `ids` (R,) are written, with their gradient; no copy."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor, values: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        # by .data: no new version of `table` to autograd, as earlier uses before an update saw the same values
        table.data.index_copy_(0, ids, values.to(table.dtype))
        return table.detach()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        return None, None, gradient[ctx.saved_tensors[0]]


class MatrixWithRows(nn.Module):
    """A layer whose matrix is frozen, a buffer, but for `TokenRows`; see new_rows.py for why."""

    bias: None = None  # which TRL reads
    source: nn.Module
    token_rows: TokenRows

    def __init__(self, source: nn.Module, token_rows: TokenRows, tied: bool = False) -> None:
        """`source`: the layer that has the matrix as its `weight`; another one's, which stays there, if `tied`."""
        super().__init__()
        vars(self)["token_rows"] = token_rows  # the base model has it, where FSDP2's root gathers it
        if tied:
            vars(self)["source"] = source
        else:
            self.source = source

    @property
    def table(self) -> Tensor:
        """The matrix (V, D), without a gradient; its trainable rows may be old."""
        return self.source.weight  # type: ignore[return-value]  # any module, to torch

    @property
    def weight(self) -> Tensor:
        """The matrix (V, D) as it is now, with a gradient to the trainable rows: TRL's trainers multiply by it."""
        matrix: Tensor = _WholeMatrix.apply(self.table, self.token_rows.ids, self.token_rows())
        if is_deepspeed_zero3_enabled():
            from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus

            matrix.ds_status = ZeroParamStatus.AVAILABLE  # type: ignore[attr-defined]  # TRL: nothing to gather
        return matrix


class TiedLinear(nn.Linear):
    """An output layer that multiplies by the matrix of an embedding, which stays where it is."""

    embedding: nn.Module

    def __init__(self, embedding: nn.Module) -> None:
        nn.Module.__init__(self)
        vars(self)["embedding"] = embedding
        self.out_features, self.in_features = self.weight.shape
        self.register_parameter("bias", None)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # a parameter, to torch
        """The matrix (V, D)."""
        return self.embedding.weight  # type: ignore[return-value]  # any module, to torch


class InputLayer(MatrixWithRows):
    """An embedding with trainable rows."""

    def forward(self, ids: Tensor) -> Tensor:
        """States (B, T, D) of `ids` (B, T), with a gradient of the trainable rows only."""
        scale = dict(self.source.named_buffers()).get("embed_scale")  # Gemma's
        return replace_states(self.source(ids), ids, self.token_rows.rows(), len(self.table), scale)


class OutputLayer(MatrixWithRows):
    """An output layer with trainable rows."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) of `hidden` (..., D)."""
        return nn.functional.linear(hidden, self.weight)


def matrix_names(model: nn.Module) -> set[str]:
    """Names of the buffers of `model` that hold frozen matrices and ids of trainable rows; DDP is to skip them."""
    kept = {MatrixWithRows: "source.weight", TokenRows: "ids", TrainableTokensLayer: "base_layer.weight"}
    parts = list(model.named_modules())
    return {f"{name}.{buffer}" for kind, buffer in kept.items() for name, part in parts if isinstance(part, kind)}


def replace_states(states: Tensor, ids: Tensor, rows: TrainableRows, size: int, scale: Tensor | None) -> Tensor:
    """Embedding `states` (B, T, D) of `ids` (B, T) below `size`, with `scale` times the `rows` in place of theirs."""
    order = torch.arange(len(rows.ids)).to(ids)
    row_of_id = torch.full((size,), -1, device=ids.device).scatter(0, rows.ids, order)
    row = row_of_id[ids]
    trainable = nn.functional.embedding(row.clamp(min=0), rows.values.to(states.dtype))
    trainable = trainable if scale is None else trainable * scale.to(trainable.dtype)
    return torch.where((row >= 0)[..., None], trainable, states)


def gathered_rows(layer: TrainableTokensLayer, weight: Tensor, rows: list[int], width: int) -> Tensor:
    """Copy of the `rows` of a matrix `weight` (V, D), which ZeRO-3 may have parted, on every rank."""
    with gather_params_ctx([weight] if isinstance(weight, nn.Parameter) else [], modifier_rank=None):
        return weight[rows].detach().clone()


@contextmanager
def rows_on_any_device() -> Iterator[None]:
    """Inside, PEFT starts token rows under ZeRO-3 wherever the matrix is; by itself it does so on CUDA alone."""
    layer: Any = TrainableTokensLayer
    own, layer._collect_token_weights = layer._collect_token_weights, gathered_rows
    try:
        yield
    finally:
        layer._collect_token_weights = own


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
    """The matrix (V, D) of an embedding or output layer, and the trainable rows, also a PEFT adapter's, of some ids.

    None without such rows, and for an adapter that is merged or disabled.
    """
    if isinstance(layer, MatrixWithRows):
        return layer.table, layer.token_rows.rows()
    if not isinstance(layer, TrainableTokensWrapper):
        return whole(layer.get_parameter("weight")), None
    adapter = layer.token_adapter
    names = [] if adapter.disable_adapters or adapter.merged else adapter.active_adapters
    if len(names) != 1:  # none, or several that PEFT combines
        return layer.weight if names else adapter.base_layer.weight, None
    table, values = adapter.base_layer.weight, adapter.trainable_tokens_delta[names[0]]
    return table, TrainableRows(torch.tensor(adapter.token_indices[names[0]], device=values.device), whole(values))


def look_up(layer: nn.Module, ids: Tensor) -> Tensor:
    """Input states (B, T, D) of token `ids` (B, T): `layer(ids)`, with a gradient of the trainable rows only."""
    table, rows = split_rows(layer)
    if rows is None or not isinstance(layer, TrainableTokensWrapper):
        states: Tensor = layer(ids)
        return states
    scale = layer.token_adapter._get_embed_scale()  # Gemma's; its layer scales the frozen rows itself
    return replace_states(layer.token_adapter.base_layer(ids), ids, rows, len(table), scale)
