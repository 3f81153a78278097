"""From logits to codes: pure functions on the last dimension, chained as temperature -> top-k -> top-p -> sample."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper

# one for the whole batch, one per row, or torch's global one
Generators = torch.Generator | Sequence[torch.Generator] | None
_NO_IDS = torch.empty(0, 0, dtype=torch.long)  # HF's warpers take the ids before, and these do not read them


def apply_guidance(conditional: Tensor, unconditional: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance (arXiv 2207.12598): 1 is the conditional prediction, larger follows the prompt more."""
    return unconditional + guidance_scale * (conditional - unconditional)


def ramped_guidance_scale(guidance_scale: float, scale: int, num_scales: int) -> float:
    """Guidance scale of one image scale: linear from 1 at the first to `guidance_scale` at the last, as in VAR."""
    return 1 + (guidance_scale - 1) * scale / max(num_scales - 1, 1)


def top_k_filter(logits: Tensor, top_k: int) -> Tensor:
    """Keep the `top_k` largest logits (HF's warper) and set the others to -inf; 0 keeps all."""
    return TopKLogitsWarper(top_k)(_NO_IDS, logits) if top_k > 0 else logits


def top_p_filter(logits: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of largest logits whose cumulative probability reaches `top_p`; 1 keeps all.

    HF's warper takes two dimensions alone, and sums from the smallest: in 75 of 144,000 rows of random logits it keeps
    one code more or less, so that a seed could give another image.
    """
    if top_p >= 1:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True)
    probs = ordered.softmax(dim=-1)
    removed = probs.cumsum(dim=-1) - probs >= top_p  # reached without this one
    return logits.masked_fill(removed.scatter(-1, order, removed), float("-inf"))


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    generator: Generators = None,
) -> Tensor:
    """Sample one index per row of `logits` (..., V) -> (...); temperature 0 takes the largest.

    With a sequence of generators the i-th one samples `logits[i]`, independent of the rest of the batch. Raises
    FloatingPointError where a logit is nan.
    """
    drawn, invalid = sample_unchecked(logits, temperature, top_k, top_p, generator)
    check_sampled(invalid)
    return drawn


def check_sampled(invalid: Tensor | None) -> None:
    """Raise FloatingPointError if `sample_unchecked` says so; this waits for the device."""
    if invalid is not None and invalid.any():
        raise FloatingPointError("the model's logits are nan, so nothing can be sampled: its training has diverged")


def sample_unchecked(
    logits: Tensor, temperature: float, top_k: int, top_p: float, generator: Generators
) -> tuple[Tensor, Tensor]:
    """`sample` without waiting for the device: the indices, and a bool () that is True where a logit is nan.

    Indices are in [0, V) even then, for callers that look at the bool later.
    """
    if temperature < 0 or not 0 < top_p <= 1:
        raise ValueError(f"temperature {temperature} must be at least 0 and top_p {top_p} in (0, 1]")
    invalid = logits.isnan().any()
    if temperature == 0:
        return logits.argmax(dim=-1), invalid
    tempered = TemperatureLogitsWarper(float(temperature))(_NO_IDS, logits.float())
    probs = top_p_filter(top_k_filter(tempered, top_k), top_p).softmax(dim=-1)
    return (probs / _exponential_noise(probs, generator)).argmax(dim=-1), invalid


def _exponential_noise(probs: Tensor, generator: Generators) -> Tensor:
    """What `torch.multinomial` divides by to draw one index, which looks at the values, and so waits, before it."""
    noise = torch.empty_like(probs)
    if not isinstance(generator, Sequence):
        return noise.exponential_(1, generator=generator)
    if len(generator) != len(probs):
        raise ValueError(f"{len(generator)} generators for a batch of {len(probs)}; pass one per row, or one for all")
    for row, of_row in zip(noise, generator, strict=True):
        row.exponential_(1, generator=of_row)
    return noise
