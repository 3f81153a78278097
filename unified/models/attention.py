"""Attention under a block mask on a CPU, as two matrix products with the heads that share keys put together.

torch's own kernel for CPUs is made for long sequences: under a mask, forward and backward together, it took 20 ms
where this takes 5 (6 rows of 174 positions, SmolLM2's heads, bf16, two cores). This one holds the probabilities,
(B, H, q, k), as HF's `eager` does; so beyond `LONGEST` positions it leaves the work to torch's.
Legend: B batch, H heads, G heads that share a key head, q new positions, k positions seen, d width of a head.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from unified.hardware.precision import product_dtype

GROUPED = "grouped"
LONGEST = 1024  # positions seen
UNKNOWN = ("softcap", "s_aux", "position_bias")  # what some backbones' attention adds: caps, sinks, biases


def prefer_grouped(model: PreTrainedModel, device: torch.device) -> None:
    """Let `model` use grouped attention on a CPU, where its backbone would use torch's sdpa."""
    backbone = model.get_submodule("model.language_model")
    if device.type == "cpu" and backbone.config._attn_implementation == "sdpa":  # type: ignore[union-attr]
        model.set_attn_implementation(GROUPED)


def prepare_mask(allowed: Tensor, attention: str, config: PreTrainedConfig, dtype: torch.dtype) -> Tensor:
    """`allowed` (B, 1, q, k) bool in the form that an `attn_implementation` of a backbone with `config` takes.

    Made once a pass for all its layers: bool for sdpa; for eager (B, 1, q, k) to be added; for grouped, to be added
    too, (B * H / G, 1, G * q, k). Raises ValueError for others, which take no mask of blocks.
    """
    if attention == "sdpa" or (attention == GROUPED and allowed.shape[-1] > LONGEST):
        return allowed
    if attention == "eager":
        return torch.where(allowed, 0.0, torch.finfo(dtype).min).to(dtype)
    if attention != GROUPED:
        raise ValueError(f"attn_implementation {attention} takes no block mask; use sdpa, grouped or eager")
    heads = config.num_attention_heads
    key_heads = getattr(config, "num_key_value_heads", None) or heads
    products = product_dtype(allowed.device, dtype)
    mask = torch.zeros(allowed.shape, dtype=products, device=allowed.device).masked_fill(~allowed, float("-inf"))
    return mask.repeat(1, key_heads, heads // key_heads, 1).flatten(0, 1)[:, None]


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
    """States (B, q, H, d) of `query` (B, H, q, d) on `key` and `value` (B, H / G, k, d).

    `attention_mask` is `prepare_mask`'s. Raises ValueError for a backbone whose attention does more, or whose layers
    differ in their heads.
    """
    for name in UNKNOWN:
        if kwargs.get(name) is not None:
            raise ValueError(f"attn_implementation grouped knows no {name}, as this backbone has; use eager")
    if attention_mask.dtype == torch.bool:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    batch, heads, new, width = query.shape
    keys, values = key.flatten(0, 1), value.flatten(0, 1)
    if len(keys) != len(attention_mask):
        count = key.shape[1]
        raise ValueError(f"attn_implementation grouped needs layers of equal heads, not {count} in one; use sdpa")
    queries, across = query.reshape(len(keys), -1, width), keys.transpose(1, 2)  # RoPE leaves both in fp32
    mask = attention_mask[:, 0].to(values.dtype)
    scores = torch.baddbmm(mask, queries.to(values.dtype), across.to(values.dtype), alpha=scaling)
    shares = nn.functional.dropout(scores.softmax(-1), dropout, module.training)
    states = torch.bmm(shares, values).view(batch, heads, new, -1)
    return states.transpose(1, 2).contiguous(), None


AttentionInterface.register(GROUPED, grouped_attention)
