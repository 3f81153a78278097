"""Cross-entropy over the union vocabulary without ever holding (B, T, V) logits.

Legend: N positions, D hidden, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import CausalLMOutputWithPast

from unified.vocabulary import Vocabulary

CHUNK_ELEMENTS = 2**25  # logits held at a time: 128 MiB in fp32; more gains no speed on CPU or GPU


@dataclass
class UnifiedOutput(CausalLMOutputWithPast):
    """`group_losses`, `group_counts` (1 + K,): sums of the unweighted losses and their numbers, text then scales."""

    group_losses: Tensor | None = None
    group_counts: Tensor | None = None


def soft_cap(logits: Tensor, cap: float | None) -> Tensor:
    """Gemma 2's `cap * tanh(logits / cap)`; None leaves `logits` as they are."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


class ChunkedCrossEntropy(torch.autograd.Function):
    """`sum_i scale_i * CE_i` and every CE_i, computed chunk by chunk.

    The gradient is made in the forward pass, where the logits are at hand (the idea of Liger's fused loss, arXiv
    2410.10989): three matrix products a chunk and no recomputation.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, scale: Tensor, cap: float | None
    ) -> tuple[Tensor, Tensor]:
        """`hidden` (N, D), `weight` (V, D), `targets` (N,), `scale` (N,) -> scalar sum, (N,) losses."""
        dtype = torch.get_autocast_dtype(hidden.device.type) if torch.is_autocast_enabled(hidden.device.type) else None
        matrix = weight.to(dtype) if dtype else weight
        states = hidden.to(matrix.dtype)
        grad_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        step = max(1, CHUNK_ELEMENTS // len(weight))
        for start in range(0, len(targets), step):
            part = slice(start, start + step)
            raw = (states[part] @ matrix.T).float()
            log_probs = F.log_softmax(soft_cap(raw, cap), dim=-1)
            losses[part] = -log_probs.gather(1, targets[part, None]).squeeze(1)
            if grad_hidden is None and grad_weight is None:
                continue
            grad = log_probs.exp_()
            grad.scatter_add_(1, targets[part, None], -torch.ones_like(grad[:, :1]))
            if cap is not None:
                grad *= 1 - (soft_cap(raw, cap) / cap).square()
            grad = (grad * scale[part, None]).to(matrix.dtype)
            if grad_hidden is not None:
                grad_hidden[part] = (grad @ matrix).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight += grad.T @ states[part]
        ctx.save_for_backward(grad_hidden, None if grad_weight is None else grad_weight.to(weight.dtype))
        ctx.mark_non_differentiable(losses)
        return (losses * scale).sum(), losses

    @staticmethod
    def backward(ctx: Any, grad_sum: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients that the forward pass left."""
        grad_hidden, grad_weight = ctx.saved_tensors
        return (
            None if grad_hidden is None else grad_hidden * grad_sum,
            None if grad_weight is None else grad_weight * grad_sum,
            None,
            None,
            None,
        )


def chunked_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, scale: Tensor, cap: float | None = None
) -> tuple[Tensor, Tensor]:
    """`sum(scale * CE)` and the (N,) losses of `hidden` (N, D) @ `weight.T` (V, D) against `targets` (N,)."""
    return ChunkedCrossEntropy.apply(hidden, weight, targets, scale, cap)


@dataclass(frozen=True)
class UnionTargets:
    """What to predict: `targets` (N,) union ids, `is_image` (N,), `weights` (N,) of the loss."""

    targets: Tensor
    is_image: Tensor
    weights: Tensor


def union_loss(
    hidden: Tensor,
    weight: Tensor,
    wanted: UnionTargets,
    vocabulary: Vocabulary,
    stride: int = 1,
    cap: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Weighted loss sum over the union vocabulary and the (N,) losses.

    `-log p(code)` over the union is `-log p(code | image) - log p(image)`. The first term needs only the codebook's
    columns; the second, nearly 0 after a few steps, is computed on every `stride`-th image
    position and counted `stride` times, which leaves the expectation as it is and spares most of the output matrix.
    The first such position is taken from the targets' sum, so that it varies but is a function of the batch.
    """
    image = wanted.is_image.nonzero().squeeze(1)
    first = int(wanted.targets.sum() % stride)
    sampled, text = image[first::stride], (~wanted.is_image).nonzero().squeeze(1)
    whole = torch.cat([text, sampled])
    scale = torch.cat([wanted.weights[text], wanted.weights[sampled] * stride])
    total, whole_losses = chunked_cross_entropy(hidden[whole], weight, wanted.targets[whole], scale, cap)
    losses = torch.zeros_like(wanted.weights).index_copy(0, whole, whole_losses)
    if stride == 1:
        return total, losses
    # the sampled positions' own code terms come `stride` times with the whole softmax: take stride - 1 back
    share = torch.ones_like(wanted.weights)
    share[sampled] = 1 - stride
    codes, columns = vocabulary.ids_to_codes(wanted.targets[image]), vocabulary.code_rows(weight)
    scale = (wanted.weights * share)[image]
    code_total, code_losses = chunked_cross_entropy(hidden[image], columns, codes, scale, cap)
    modality = torch.zeros_like(losses)
    modality[sampled] = losses[sampled] * stride
    estimate = code_losses * share[image] + modality[image]
    return total + code_total, losses.index_copy(0, image, estimate)
