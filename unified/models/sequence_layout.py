"""What `input_ids` say about a sequence: which positions are images, their scale, RoPE positions, attention mask.

Legend: B batch, T sequence, q new positions, P positions already in the cache, L image length, K scales.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from unified.image_tokenizer.scales import scale_spans
from unified.models.configuration import UnifiedConfig


@dataclass(frozen=True)
class Layout:
    """Structure of a batch, every field (B, T).

    is_output, is_input: bool, images that the model generates / that it is shown.
    index_in_image: index of a position within its image, 0 outside.
    position_steps: how far a position advances the RoPE position (1, or 0 within a scale).
    blocks: id of the group a position sees in both directions, -1 for causal positions; ids differ within a row.
    """

    is_output: Tensor
    is_input: Tensor
    index_in_image: Tensor
    position_steps: Tensor
    blocks: Tensor

    def at(self, positions: Tensor) -> "Layout":
        """The layout at `positions` (B, T'); -1 there is padding and becomes text that no one sees."""
        index = positions.clamp(min=0)
        return Layout(**{field.name: getattr(self, field.name).gather(1, index) for field in fields(self)})


def run_index(inside: Tensor) -> Tensor:
    """Index of every position within its run of True, (B, T); 0 where False."""
    steps = torch.arange(inside.shape[1], device=inside.device).expand_as(inside)
    last_outside = torch.where(inside, -1, steps).cummax(dim=1).values
    return torch.where(inside, steps - last_outside - 1, 0)


def read_layout(input_ids: Tensor, config: UnifiedConfig) -> Layout:
    """Layout of `input_ids` (B, T); images must be whole (the processor and the collators see to it)."""
    is_output, is_input = config.vocabulary.is_image(input_ids), input_ids == config.image_pad_token_id
    index_in_image = run_index(is_output) + run_index(is_input)
    parallel = is_output & (config.image_order == "scales")
    starts = torch.tensor([start for start, _ in scale_spans(config.patch_nums)], device=input_ids.device)
    opens = (parallel & torch.isin(index_in_image, starts)) | (is_input & (index_in_image == 0))
    in_block = parallel | is_input
    blocks = torch.where(in_block, opens.cumsum(dim=1), -1)
    shared = config.image_positions == "shared"
    advances = ~in_block | opens if shared else torch.ones_like(in_block)
    return Layout(is_output, is_input, index_in_image, advances.long(), blocks)


def rope_positions(position_steps: Tensor, valid: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """Position ids (B, T) from `position_steps`; padding stands still and every document starts at 0."""
    position_steps = position_steps * valid.long()
    positions = position_steps.cumsum(dim=1)
    if document_ids is not None:
        first = torch.ones_like(document_ids, dtype=torch.bool)
        first[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
        # `positions` never fall, so the latest document's start is the running maximum
        positions = positions - torch.where(first, positions - position_steps, 0).cummax(dim=1).values
    return (positions - 1).clamp(min=0)


def context_left(input_ids: Tensor, valid: Tensor, config: UnifiedConfig, images: int = 0) -> int:
    """RoPE positions of the backbone's context that the longest of prompts (B, T) and so many output images leave.

    An image may take one position a scale. Raises ValueError when none is left.
    """
    positions = rope_positions(read_layout(input_ids, config).position_steps, valid)
    taken, of_output = int(positions.max()) + 1, images * config.image_rope_positions
    context = config.text_config.max_position_embeddings
    if taken + of_output >= context:
        of_images = f" and the answer's images {of_output}" if images else ""
        raise ValueError(
            f"the prompt takes {taken} positions{of_images}, but the model's context has {context}; "
            "shorten the prompt or begin a new conversation"
        )
    return context - taken - of_output


def block_attention_mask(
    blocks: Tensor, valid: Tensor, document_ids: Tensor | None = None, window: int | None = None
) -> Tensor:
    """Attention mask (B, 1, q, P + q) bool: True where a query may attend to a key.

    A position sees what came before and its own block, within its document and among `valid` (B, P + q) positions;
    everyone sees itself, so that padding has a finite softmax. `blocks` (B, q) is that of the new positions; a
    sliding `window` hides what lies that many valid positions back.
    """
    new, total = blocks.shape[1], valid.shape[1]
    keys = torch.arange(total, device=blocks.device)
    queries = keys[total - new :, None]
    allowed = keys <= queries
    if window is not None:
        count = valid.long().cumsum(dim=1)  # not columns: a row of a batch sees what it sees alone
        allowed = allowed & (count[:, None, :] > count[:, total - new :, None] - window)
    same_block = (blocks[:, :, None] == blocks[:, None, :]) & (blocks[:, :, None] >= 0)
    allowed = allowed | torch.nn.functional.pad(same_block, (total - new, 0))
    allowed = allowed & valid[:, None, :].bool()
    if document_ids is not None:
        allowed = allowed & (document_ids[:, :, None] == document_ids[:, None, :])
    return (allowed | (keys == queries))[:, None]
