"""Grouped-query attention with a block mask on a CPU: two matrix products, query heads batched by their key head.

torch's own kernel for CPUs is made for long sequences: with a mask, forward and backward together, it took 20 ms
where this takes 5 (6 rows of 174 positions, SmolLM2's heads, bf16, two cores). This one materializes the
probabilities, (B, H, q, k), as HF's `eager` does; so beyond `MAX_POSITIONS` positions it falls back to torch's.
Legend: B batch, H heads, G query heads per key head, q query positions, k key positions, d head dimension.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from unified.hardware.precision import product_dtype

GROUPED = "grouped"
MAX_POSITIONS = 1024  # key positions
OWN_MASKS = {"doge"}  # families whose layers make a mask of their own out of the one that is given
UNSUPPORTED = ("softcap", "s_aux", "position_bias")  # arguments of some backbones' attention: soft caps, sinks, biases


def prefer_grouped(model: PreTrainedModel, device: torch.device) -> None:
    """Switch `model` to grouped attention on a CPU if its backbone uses torch's sdpa, and all layers can."""
    backbone = model.get_submodule("model.language_model")
    config: Any = backbone.config
    if device.type == "cpu" and config._attn_implementation == "sdpa" and heads_are_even(backbone, config):
        model.set_attn_implementation(GROUPED)


def heads_are_even(backbone: nn.Module, config: PreTrainedConfig) -> bool:
    """Whether all layers group their heads as the configuration says, and take the mask as it is."""
    groups = {
        vars(part)["num_key_value_groups"] for part in backbone.modules() if "num_key_value_groups" in vars(part)
    }
    return groups <= {config.num_attention_heads // key_heads_of(config)} and config.model_type not in OWN_MASKS


def key_heads_of(config: PreTrainedConfig) -> int:
    """Number of heads of keys and values."""
    return getattr(config, "num_key_value_heads", None) or config.num_attention_heads


def prepare_mask(allowed: Tensor, attention: str, config: PreTrainedConfig, dtype: torch.dtype) -> Tensor:
    """Convert `allowed` (B, 1, q, k) bool to the format of a backbone's `attn_implementation`.

    Computed once per forward pass for all layers: bool for sdpa; for eager an additive mask (B, 1, q, k); for grouped
    an additive mask (B * H / G, 1, G * q, k), or (B * H / G, 1, 1, k) of one for all queries. Raises ValueError for
    others, which support no block mask.
    """
    if attention == "sdpa" or (attention == GROUPED and allowed.shape[-1] > MAX_POSITIONS):
        return allowed
    if attention == "eager":
        return torch.where(allowed, 0.0, torch.finfo(dtype).min).to(dtype)
    if attention != GROUPED:
        raise ValueError(f"attn_implementation {attention} supports no block mask; use sdpa, grouped or eager")
    heads = config.num_attention_heads
    key_heads = key_heads_of(config)
    compute_dtype = product_dtype(allowed.device, dtype)
    mask = torch.zeros(allowed.shape, dtype=compute_dtype, device=allowed.device).masked_fill(~allowed, float("-inf"))
    groups = 1 if mask.shape[2] == 1 else heads // key_heads
    return mask.repeat(1, key_heads, groups, 1).flatten(0, 1)[:, None]


def grouped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention output (B, q, H, d) of `query` (B, H, q, d) over `key` and `value` (B, H / G, k, d).

    `attention_mask` comes from `prepare_mask`. Raises ValueError for `UNSUPPORTED` arguments, and for layers whose
    number of key heads differs from the config's.
    """
    for name in UNSUPPORTED:
        if kwargs.get(name) is not None:
            raise ValueError(f"attn_implementation grouped does not support {name} of this backbone; use eager")
    if attention_mask.dtype == torch.bool:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    batch, heads, new, width = query.shape
    keys, values = key.flatten(0, 1), value.flatten(0, 1)
    if len(keys) != len(attention_mask):
        count = key.shape[1]
        raise ValueError(
            f"grouped attention needs the same number of key heads in all layers, not {count} in one; use sdpa"
        )
    queries, keys_transposed = query.reshape(len(keys), -1, width), keys.transpose(1, 2)  # RoPE leaves both in fp32
    mask = attention_mask[:, 0].to(values.dtype)
    scores = torch.baddbmm(mask, queries.to(values.dtype), keys_transposed.to(values.dtype), alpha=scaling)
    probs = nn.functional.dropout(scores.softmax(-1), dropout, module.training)
    states = torch.bmm(probs, values).view(batch, heads, new, -1)
    return states.transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, grouped_attention)
