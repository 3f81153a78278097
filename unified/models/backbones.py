"""What causal LMs differ in beside the arithmetic of their layers: kinds of layers, masks, caches, balance of experts.

Two kinds of layers take part in next-scale prediction. Attention sees all positions of a scale. A recurrence (linear
attention, a state-space model, a convolution) runs through a scale in order, which the contract allows: input states
of a scale depend on earlier scales alone. What a recurrence has read stays in its state, so that positions can be
masked at the ends of a sequence only.
Legend: B batch, q new positions, P cached positions.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, PreTrainedConfig
from transformers.cache_utils import get_layer_types_and_kwargs

from unified.models.attention import prepare_mask
from unified.models.sequence_layout import block_attention_mask

ATTENTION = {"full_attention", "sliding_attention"}
RECURRENT = {"linear_attention", "conv"}
# HF's types of layers that are of several kinds or of none
COMBINED: dict[str, set[str]] = {
    "hybrid": {"full_attention", "linear_attention"},
    "hybrid_sliding": {"sliding_attention", "linear_attention"},
    "moe": set(),
    "mlp": set(),
}


def layer_types(text_config: PreTrainedConfig) -> list[str]:
    """HF's type of every layer: the configuration's, or what HF derives from its windows."""
    stored = getattr(text_config, "layer_types", None)
    return list(stored or get_layer_types_and_kwargs(text_config)[0])


def layer_kinds(text_config: PreTrainedConfig) -> set[str]:
    """Kinds of masks that the layers of a backbone take."""
    return set().union(*(COMBINED.get(kind, {kind}) for kind in layer_types(text_config)))


def is_recurrent(text_config: PreTrainedConfig) -> bool:
    """Whether some layers of a backbone are recurrent."""
    return bool(layer_kinds(text_config) & RECURRENT)


def check_layers(text_config: PreTrainedConfig) -> None:
    """Raise ValueError for backbones with layers that support no block mask, or with no attention at all."""
    if getattr(text_config, "num_hidden_layers", None) is None:
        raise ValueError(f"the backbone {text_config.model_type} has no single stack of layers; use another")
    found = layer_kinds(text_config)
    unknown = found - ATTENTION - RECURRENT
    if unknown or not found & ATTENTION or not getattr(text_config, "num_attention_heads", 0):
        problem = f"layers of type {', '.join(sorted(unknown))}" if unknown else "no layers with attention"
        raise ValueError(
            f"the backbone {text_config.model_type} has {problem}; use one whose layers are "
            f"{', '.join(sorted(ATTENTION | RECURRENT))}, with attention in some"
        )


def new_cache(text_config: PreTrainedConfig) -> DynamicCache:
    """An empty cache of a backbone: of all positions, and of the states of recurrent layers."""
    return DynamicCache(config=text_config) if is_recurrent(text_config) else DynamicCache()


def check_whole_rows(text_config: PreTrainedConfig, documents: Tensor | None, kept: Tensor | None) -> None:
    """Raise ValueError for rows of several `documents` (B, q) or `kept` positions in a recurrent backbone."""
    if not is_recurrent(text_config):
        return
    if kept is not None:
        raise ValueError(
            f"positions are left out, but recurrent layers of the backbone {text_config.model_type} read each one "
            "after that before; set last_scale_fraction to 1"
        )
    if documents is not None and bool((documents > 0).any()):
        raise ValueError(
            f"a row of several documents in the backbone {text_config.model_type}, whose recurrent layers would carry "
            "one's state into the next; set pack to False"
        )


def backbone_masks(
    backbone: nn.Module,
    blocks: Tensor,
    valid: Tensor,
    documents: Tensor | None,
    cache: Cache | None,
    columns: Tensor | None = None,
    one_block: bool = False,
) -> Any:
    """Masks of `backbone` for new positions in `blocks` (B, q) among `valid` (B, P + q) ones.

    (B, 1, q, P + q) as `prepare_mask` has it, or one for each kind of layer where the backbone has several; of
    recurrent layers (B, q), 0 at padding. `columns` (B, q): where in the cache the keys of the new positions are, by
    default behind all others. `one_block`: these are the states of one scale, which all see the same keys, the valid
    ones; then a mask is (B, 1, 1, P + q) where there is no window.
    """
    config: Any = backbone.config
    kinds, new = layer_kinds(config), blocks.shape[1]
    masks = {}
    if "full_attention" in kinds:
        same = valid[:, None, None].bool()
        if config._attn_implementation == "eager":  # own code of some families, as XGLM's, asks for the whole shape
            same = same.expand(-1, -1, new, -1)
        masks["full_attention"] = same if one_block else block_attention_mask(blocks, valid, documents, None, columns)
    if "sliding_attention" in kinds:
        window = block_attention_mask(blocks, valid, documents, config.sliding_window, columns)
        layer = next(i for i, kind in enumerate(layer_types(config)) if "sliding" in kind)
        if cache is not None:  # a sliding-window layer's cache drops its oldest positions
            length, start = cache.get_mask_sizes(new, layer)
            window = window[..., start : start + length]
        masks["sliding_attention"] = window
    attention, dtype = config._attn_implementation, next(backbone.parameters()).dtype
    prepared = {kind: prepare_mask(mask, attention, config, dtype) for kind, mask in masks.items()}
    if kinds & RECURRENT:
        prepared |= dict.fromkeys(RECURRENT, valid[:, -new:])
        # layers of both kinds ask by either kind or by their own type
        both = {kind: parts & ATTENTION for kind, parts in COMBINED.items() if parts & kinds & ATTENTION}
        prepared |= {kind: prepared[next(iter(attention))] for kind, attention in both.items()}
    return prepared if len(prepared) > 1 else next(iter(prepared.values()))


def per_layer_inputs(backbone: Any, text_ids: Tensor | None, states: Tensor, text_rows: int) -> dict[str, Tensor]:
    """Gemma 3n's and 4's embeddings of `text_ids` (B, q) for every layer, as an argument; {} for other backbones.

    As in these models' vision-language versions, ids from `text_rows` on take those of the padding id.
    """
    if not vars(backbone.config).get("hidden_size_per_layer_input"):
        return {}
    padding = backbone.config.pad_token_id or 0
    ids = states.new_full(states.shape[:2], padding, dtype=torch.long) if text_ids is None else text_ids
    rows: int = min(text_rows, backbone.config.vocab_size_per_layer_input)
    looked_up = backbone.get_per_layer_inputs(torch.where(ids < rows, ids, padding))
    return {"per_layer_inputs": looked_up}


def balance_of(backbone: nn.Module) -> Callable[..., Tensor] | None:
    """HF's balance loss of a mixture of experts, of logits (B * q, experts) by layer; None for other backbones."""
    config: Any = backbone.config
    settings = config.to_dict()
    function = vars(sys.modules[type(backbone).__module__]).get("load_balancing_loss_func")
    count = next((settings[name] for name in ("num_local_experts", "num_experts") if settings.get(name)), 0)
    if function is None or not count or not settings.get("router_aux_loss_coef"):
        return None

    def balance(router_logits: tuple[Tensor, ...], valid: Tensor) -> Tensor:
        loss: Tensor = function(router_logits, count, config.num_experts_per_tok, valid)
        return config.router_aux_loss_coef * loss.to(torch.float32)

    return balance
