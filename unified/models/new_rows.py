"""The vocabulary's new rows as parameters of their own, of `tuning` full and align; text rows around them are frozen.

The matrices become buffers, whole on every rank: no engine has a gradient, master copy, Adam's moments, partition or
traffic of them, and no decay or rounding reaches text rows. What learns, what is reduced and what the optimizer keeps
are R rows of V. Files show nothing of it: `to_files` puts the rows into their matrices, `from_files` takes them out.
Legend: V rows of the vocabulary, R trainable rows, D hidden.
"""

from collections.abc import MutableMapping
from typing import Any

import torch
from peft.utils.integrations import gather_params_ctx
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn
from transformers.integrations import is_deepspeed_zero3_enabled

from unified.models.configuration import UnifiedConfig
from unified.models.trainable_token_rows import InputLayer, OutputLayer, TiedLinear, TokenRows

INPUT, OUTPUT = "embed_tokens", "lm_head"  # the matrices; tied ones have the first one's rows
HEAD = "lm_head.weight"  # in files
SOURCE = "source.weight"  # of a `MatrixWithRows`


def new_row_ids(config: UnifiedConfig) -> dict[str, list[int]]:
    """Ids of the rows that learn, of the input matrix and, where it is another, of the output matrix.

    In scale order the input rows of codes are not looked up: image states come from features.
    """
    vocabulary = config.vocabulary
    special, both = [*vocabulary.special_ids], [*vocabulary.special_ids, *vocabulary.image_ids]
    if config.tie_word_embeddings:
        return {INPUT: both}
    return {INPUT: both if config.image_order == "raster" else special, OUTPUT: both}


def freeze_matrix(layer: nn.Module) -> Tensor:
    """Turn the `weight` of an embedding or output layer into a buffer, and return it."""
    weight = layer.get_parameter("weight")
    with gather_params_ctx(weight):
        matrix = weight.detach().clone() if is_deepspeed_zero3_enabled() else weight.detach()
    del layer.weight
    layer.register_buffer("weight", matrix)
    return matrix


def separate(
    embedding: nn.Module, output: nn.Module, config: UnifiedConfig
) -> tuple[nn.ModuleDict, InputLayer, OutputLayer]:
    """Trainable rows by matrix, and the two layers that take them; the matrices are frozen."""
    ids, tied = new_row_ids(config), config.tie_word_embeddings
    rows = {INPUT: TokenRows(ids[INPUT], freeze_matrix(embedding))}
    if not tied:
        rows[OUTPUT] = TokenRows(ids[OUTPUT], freeze_matrix(output))
    head = OutputLayer(embedding if tied else output, rows[INPUT if tied else OUTPUT], tied)
    return nn.ModuleDict(rows), InputLayer(embedding, rows[INPUT]), head


def load_whole_matrices(optimizer: torch.optim.Optimizer, rows: nn.ModuleDict) -> None:
    """Have `optimizer` load what a run with whole matrices saved, as earlier versions did: the state of `rows`."""
    ids = {part.get_parameter("values"): part.get_buffer("ids") for part in rows.values()}

    def take_rows(optimizer: torch.optim.Optimizer, state_dict: dict[str, Any]) -> None:
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for number, state in state_dict["state"].items():  # FSDP2 has names in place of numbers, and no earlier runs
            parameter = parameters[number] if isinstance(number, int) else None
            if parameter is not None and parameter in ids:
                for name, value in state.items():
                    whole = value.ndim == 2 and len(value) > len(parameter)
                    state[name] = value[ids[parameter].to(value.device)] if whole else value

    optimizer.register_load_state_dict_pre_hook(take_rows)


def freeze_below_adapter(embedding: nn.Module, output: nn.Module, tied: bool) -> None:
    """Freeze the matrices below PEFT's trainable token rows of both layers, where an adapter has such."""
    if isinstance(embedding, TrainableTokensWrapper) and isinstance(output, TrainableTokensWrapper):
        below = embedding.token_adapter.base_layer
        freeze_matrix(below)
        if tied:
            output.token_adapter.base_layer = TiedLinear(below)
        else:
            freeze_matrix(output.token_adapter.base_layer)


def names_in(embedding: str) -> dict[str, tuple[str, str, str]]:
    """Names in state dicts, by matrix: of it in files, of it in a model, of its rows.

    `embedding`: the input matrix's in files.
    """
    files = {INPUT: embedding, OUTPUT: HEAD}
    inside = {matrix: name.removesuffix("weight") + SOURCE for matrix, name in files.items()}
    return {matrix: (files[matrix], inside[matrix], f"model.new_rows.{matrix}.values") for matrix in files}


@torch.no_grad()
def to_files(state: MutableMapping[str, Tensor], embedding: str, rows: nn.ModuleDict) -> None:
    """Turn the `state` dict of a model into that of its files: whole matrices, whose values it may share."""
    for matrix, (stored, inside, values) in names_in(embedding).items():
        if values in state:
            table, ids = state.pop(inside), rows[matrix].get_buffer("ids")
            table.index_copy_(0, ids.to(table.device), state.pop(values).to(table))
            state[stored] = table


def from_files(state: MutableMapping[str, Any], embedding: str, rows: nn.ModuleDict, prefix: str = "") -> None:
    """Turn the `state` dict of files, or of a part of them, into that of a model; one of a model stays as it is."""
    for matrix, (stored, inside, values) in names_in(embedding).items():
        if matrix in rows and prefix + stored in state:
            table = state[prefix + inside] = state.pop(prefix + stored)
            state[prefix + values] = table[rows[matrix].get_buffer("ids").to(table.device)]
