"""Cross-entropy over the union vocabulary without materializing (B, T, V) logits.

Legend: N positions, D hidden, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary
from transformers.modeling_outputs import CausalLMOutputWithPast

from unified.hardware.precision import product_dtype
from unified.image_tokenizer.scales import scale_ids
from unified.models.configuration import UnifiedConfig
from unified.models.trainable_token_rows import TrainableRows
from unified.models.vocabulary import Vocabulary

CHUNK_ELEMENTS = 2**25  # logits per chunk: 128 MiB in fp32; larger chunks are no faster on CPU or GPU


@dataclass
class UnifiedOutput(CausalLMOutputWithPast):
    """`group_losses`, `group_counts` (1 + K,): sums and counts of the unweighted losses, text then scales.

    `balance_loss`: what a mixture of experts adds to the loss in training.
    """

    group_losses: Tensor | None = None
    group_counts: Tensor | None = None
    balance_loss: Tensor | None = None


def soft_cap(logits: Tensor, cap: float | None) -> Tensor:
    """Gemma 2's `cap * tanh(logits / cap)`; None returns `logits` unchanged."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def head_input(hidden: Tensor, factor: float) -> Tensor:
    """Hidden states whose products with the output matrix are `factor` times those of `hidden`: Cohere, Granite."""
    return hidden if factor == 1 else hidden * factor


_CASTS = WeakTensorKeyDictionary()  # frozen weights -> (address, version, dtype) and the cast


def cast_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """`weight` cast to `dtype`; the cast of a frozen one is cached until it is freed or modified.

    In-place changes of its `.data` are not noticed, as torch does not count them as a new version.
    """
    if weight.dtype == dtype or weight.requires_grad or not weight.is_leaf:
        return weight.to(dtype)
    if weight.is_inference():  # has no version to tell modifications by
        return weight.to(dtype)
    state = (weight.data_ptr(), weight._version, dtype)
    if weight not in _CASTS or _CASTS[weight][0] != state:
        with torch.inference_mode(False):  # autograd takes no inference tensor, and this one is for later calls too
            _CASTS[weight] = state, weight.detach().to(dtype)
    cast: Tensor = _CASTS[weight][1]
    return cast


class ChunkedCrossEntropy(torch.autograd.Function):
    """`sum_i scale_i * CE_i` and every CE_i, computed chunk by chunk.

    The gradient is computed in the forward pass, while a chunk's logits exist (as in Liger's fused loss, arXiv
    2410.10989): three matrix products per chunk and no recomputation.
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        scale: Tensor,
        cap: float | None,
        ids: Tensor | None,
        values: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """`hidden` (N, D), `weight` (V, D), `targets` (N,), `scale` (N,) -> scalar sum, (N,) losses.

        `values` (R, D) replace the rows `ids` (R,) of `weight`.
        """
        matrix = cast_weight(weight, product_dtype(hidden.device, weight.dtype))
        rows = None if values is None else values.to(matrix.dtype)
        states = hidden.to(matrix.dtype)
        grad_hidden = torch.zeros_like(hidden) if ctx.needs_input_grad[0] else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        grad_values = None
        if values is not None and ctx.needs_input_grad[6]:
            grad_values = torch.zeros_like(values, dtype=torch.float32)
        losses = torch.empty(len(targets), dtype=torch.float32, device=hidden.device)
        step = max(1, CHUNK_ELEMENTS // len(weight))
        for start in range(0, len(targets), step):
            part = slice(start, start + step)
            raw = (states[part] @ matrix.T).float()
            if rows is not None:
                raw[:, ids] = (states[part] @ rows.T).float()
            log_probs = F.log_softmax(soft_cap(raw, cap), dim=-1)
            losses[part] = -log_probs.gather(1, targets[part, None]).squeeze(1)
            if grad_hidden is None and grad_weight is None and grad_values is None:
                continue
            grad = log_probs.exp_()
            grad.scatter_add_(1, targets[part, None], -torch.ones_like(grad[:, :1]))
            if cap is not None:
                grad *= 1 - (soft_cap(raw, cap) / cap).square()
            grad = grad.mul_(scale[part, None]).to(matrix.dtype)
            if rows is not None:
                grad_rows = grad[:, ids]
                grad[:, ids] = 0
                if grad_hidden is not None:
                    grad_hidden[part] = (grad_rows @ rows).to(hidden.dtype)
                if grad_values is not None:
                    grad_values += grad_rows.T @ states[part]
            if grad_hidden is not None:
                grad_hidden[part] += (grad @ matrix).to(hidden.dtype)
            if grad_weight is not None:
                grad_weight += grad.T @ states[part]
        dtypes = (hidden.dtype, weight.dtype, weight.dtype if values is None else values.dtype)
        gradients = zip((grad_hidden, grad_weight, grad_values), dtypes, strict=True)
        ctx.save_for_backward(*(None if gradient is None else gradient.to(dtype) for gradient, dtype in gradients))
        ctx.mark_non_differentiable(losses)
        return (losses * scale).sum(), losses

    @staticmethod
    def backward(ctx: Any, grad_sum: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients that the forward pass saved."""
        hidden, weight, values = (None if saved is None else saved * grad_sum for saved in ctx.saved_tensors)
        return hidden, weight, None, None, None, None, values


def chunked_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    scale: Tensor,
    cap: float | None = None,
    trainable_rows: TrainableRows | None = None,
) -> tuple[Tensor, Tensor]:
    """`sum(scale * CE)` and the (N,) losses of `hidden` (N, D) @ `weight.T` (V, D) against `targets` (N,).

    `trainable_rows` replace the weight's.
    """
    ids, values = (None, None) if trainable_rows is None else (trainable_rows.ids, trainable_rows.values)
    return ChunkedCrossEntropy.apply(hidden, weight, targets, scale, cap, ids, values)


@dataclass(frozen=True)
class UnionTargets:
    """Prediction targets: `targets` (N,) union ids, `is_image` (N,), loss `weights` (N,)."""

    targets: Tensor
    is_image: Tensor
    weights: Tensor


def union_loss(
    hidden: Tensor,
    weight: Tensor,
    union_targets: UnionTargets,
    vocabulary: Vocabulary,
    stride: int = 1,
    cap: float | None = None,
    trainable_rows: TrainableRows | None = None,
) -> tuple[Tensor, Tensor]:
    """Sum of the weighted losses over the union vocabulary, and the (N,) losses.

    `-log p(code)` over the union is `-log p(code | image) - log p(image)`. The first term needs only the logits of
    the codes; the second, nearly 0 after a few steps, is computed on every `stride`-th image position and weighted
    `stride` times, which keeps the expectation and saves most of the output matrix.
    The first such position depends on the sum of the targets, so that it varies but is a function of the batch.
    `trainable_rows` replace the weight's.
    """
    targets, weights = union_targets.targets, union_targets.weights
    image = union_targets.is_image.nonzero().squeeze(1)
    first = int(targets.sum() % stride)
    sampled, text = image[first::stride], (~union_targets.is_image).nonzero().squeeze(1)
    full = torch.cat([text, sampled])  # positions with a softmax over the whole vocabulary
    scale = torch.cat([weights[text], weights[sampled] * stride])
    total, full_losses = chunked_cross_entropy(hidden[full], weight, targets[full], scale, cap, trainable_rows)
    losses = torch.zeros_like(weights).index_copy(0, full, full_losses)
    if stride == 1:
        return total, losses
    # the full softmax of the sampled positions counts their code terms `stride` times: subtract stride - 1
    share = torch.ones_like(weights)
    share[sampled] = 1 - stride
    codes, columns = vocabulary.ids_to_codes(targets[image]), vocabulary.code_rows(weight)
    if trainable_rows is not None:
        columns = trainable_rows.merge_into_slice(vocabulary.image_token_offset, columns)
    scale = (weights * share)[image]
    code_total, code_losses = chunked_cross_entropy(hidden[image], columns, codes, scale, cap)
    modality = torch.zeros_like(losses)
    modality[sampled] = losses[sampled] * stride
    estimate = code_losses * share[image] + modality[image]
    return total + code_total, losses.index_copy(0, image, estimate)


def loss_weights(labels: Tensor, config: UnifiedConfig) -> tuple[Tensor, Tensor, Tensor]:
    """For `labels` (B, T): whether an image id, loss group (0 text, 1..K scales), loss weight; all (B, T)."""
    is_image, weights = config.vocabulary.is_image(labels), config.scale_loss_weights
    index = torch.cumsum(is_image, dim=1) - 1
    groups = scale_ids(config.patch_nums).to(labels.device)[index.clamp(min=0) % config.image_length] + 1
    groups = torch.where(is_image, groups, 0)
    table = [config.text_loss_weight, *(weights or [1.0] * len(config.patch_nums))]
    trained = (labels != -100).float()
    return is_image, groups, torch.tensor(table, device=labels.device)[groups] * trained
