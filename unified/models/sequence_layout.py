"""Sequence structure derived from `input_ids`: image positions, their scales, RoPE positions, attention mask.

Legend: B batch, T sequence, q new positions, P cached positions, L image length, K scales.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from unified.image_tokenizer.scales import scale_spans
from unified.models.configuration import UnifiedConfig


@dataclass(frozen=True)
class Layout:
    """Structure of a batch, every field (B, T).

    is_output, is_input: bool, positions of output images / of input images.
    index_in_image: index of a position within its image, 0 outside.
    position_steps: increment of the RoPE position (1, or 0 within a scale).
    blocks: id of the block with bidirectional attention, -1 for causal positions; unique within a row.
    """

    is_output: Tensor
    is_input: Tensor
    index_in_image: Tensor
    position_steps: Tensor
    blocks: Tensor

    def roll(self, hidden: Tensor) -> Tensor:
        """Shift output images' states (B, T, D) one position to the left, in scale order.

        They predict their own token; states of text, and HF's, score the next one.
        """
        next_is_image = torch.nn.functional.pad(self.is_output[:, 1:], (0, 1))
        return torch.where(next_is_image[..., None], hidden.roll(-1, dims=1), hidden)

    def select(self, positions: Tensor) -> "Layout":
        """The layout at `positions` (B, T'); -1 is padding, to be masked."""
        index = positions.clamp(min=0)
        return Layout(**{field.name: getattr(self, field.name).gather(1, index) for field in fields(self)})


def run_index(mask: Tensor) -> Tensor:
    """Index of every position within its run of True in `mask` (B, T); 0 where False."""
    steps = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    last_false = torch.where(mask, -1, steps).cummax(dim=1).values
    return torch.where(mask, steps - last_false - 1, 0)


def read_layout(input_ids: Tensor, config: UnifiedConfig) -> Layout:
    """Layout of `input_ids` (B, T); images must be complete (the processor and the collators ensure it)."""
    is_output, is_input = config.vocabulary.is_image(input_ids), input_ids == config.image_pad_token_id
    index_in_image = run_index(is_output) + run_index(is_input)
    parallel = is_output & (config.image_order == "scales")
    starts = torch.tensor([start for start, _ in scale_spans(config.patch_nums)], device=input_ids.device)
    block_start = (parallel & torch.isin(index_in_image, starts)) | (is_input & (index_in_image == 0))
    in_block = parallel | is_input
    blocks = torch.where(in_block, block_start.cumsum(dim=1), -1)
    shared = config.image_positions == "shared"
    position_steps = ~in_block | block_start if shared else torch.ones_like(in_block)
    return Layout(is_output, is_input, index_in_image, position_steps.long(), blocks)


def rope_positions(position_steps: Tensor, valid: Tensor, document_ids: Tensor | None = None) -> Tensor:
    """Position ids (B, T) from `position_steps`; padding does not count and every document starts at 0."""
    position_steps = position_steps * valid.long()
    positions = position_steps.cumsum(dim=1)
    if document_ids is not None:
        first = torch.ones_like(document_ids, dtype=torch.bool)
        first[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
        # `positions` are non-decreasing, so the current document's start is the running maximum
        positions = positions - torch.where(first, positions - position_steps, 0).cummax(dim=1).values
    return (positions - 1).clamp(min=0)


def packed_documents(position_ids: Tensor) -> Tensor | None:
    """Document ids (B, T) of rows packed as HF's and TRL's collators do: position ids restart in every document.

    None for rows of a single document each.
    """
    starts = torch.ones_like(position_ids, dtype=torch.bool)
    starts[:, 1:] = (position_ids[:, 1:] < position_ids[:, :-1]) | (position_ids[:, 1:] == 0)
    return starts.cumsum(dim=1) - 1 if bool(starts[:, 1:].any()) else None


def read_packing(
    input_ids: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    document_ids: Tensor | None,
    past: int,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Attention mask (B, past + T), position ids and document ids (B, T) of a forward pass; None: derive, none.

    As in HF's models, positions that restart separate documents where no mask is given; they are derived anew, as HF's
    count every token of an image. Raises ValueError for a mask that numbers documents, or is no row of 0 and 1.
    """
    if attention_mask is None:
        if document_ids is None and position_ids is not None and not past:
            document_ids = packed_documents(position_ids.expand_as(input_ids))
            position_ids = position_ids if document_ids is None else None
        return input_ids.new_ones(len(input_ids), past + input_ids.shape[1]), position_ids, document_ids
    if attention_mask.ndim != 2:
        raise ValueError(
            f"attention_mask is {tuple(attention_mask.shape)}; give (batch, sequence): images have their own"
        )
    if attention_mask.dtype != torch.bool and attention_mask.numel() and int(attention_mask.max()) > 1:
        raise ValueError(
            f"attention_mask holds {int(attention_mask.max())}, but takes 0 and 1; pass the documents of packed "
            "rows as document_ids"
        )
    return attention_mask, position_ids, document_ids


def remaining_context(input_ids: Tensor, valid: Tensor, config: UnifiedConfig, images: int = 0) -> int:
    """RoPE positions left in the backbone's context after the longest of prompts (B, T) and `images` output images.

    An image may take one position per scale. Raises ValueError when none is left.
    """
    positions = rope_positions(read_layout(input_ids, config).position_steps, valid)
    prompt_length, output_length = int(positions.max()) + 1, images * config.image_rope_positions
    context = config.text_config.max_position_embeddings
    if prompt_length + output_length >= context:
        of_images = f" and the answer's images {output_length}" if images else ""
        raise ValueError(
            f"the prompt takes {prompt_length} positions{of_images}, but the model's context has {context}; "
            "shorten the prompt or begin a new conversation"
        )
    return context - prompt_length - output_length


def images_of_columns(
    input_ids: Tensor, images: dict[str, Tensor], new: int, config: UnifiedConfig
) -> dict[str, Tensor]:
    """Of the input `images` of sequences (B, T), in order, those in the `new` last columns; the others are cached.

    `images` may be of the whole sequences, or of the new columns alone.
    """
    layout = read_layout(input_ids, config)
    rows, columns = (layout.is_input & (layout.index_in_image == 0)).nonzero(as_tuple=True)
    is_new = columns >= input_ids.shape[1] - new
    if not bool(is_new.any()):
        return {}
    return {name: given[is_new] if len(given) == len(rows) else given for name, given in images.items()}


def repeat_images(input_ids: Tensor, images: Tensor, copies: int, config: UnifiedConfig) -> Tensor:
    """Input `images` (N, ...) of sequences (B, T), each of which is repeated `copies` times in place.

    Raises ValueError for another number of images than the sequences have.
    """
    counts = (input_ids == config.image_pad_token_id).sum(dim=1) // config.input_image_length
    if len(images) != counts.sum():
        raise ValueError(f"{len(images)} input images for {int(counts.sum())} in input_ids; pass each once")
    return torch.cat([row for rows in images.split(counts.tolist()) for row in [rows] * copies])


def block_attention_mask(
    blocks: Tensor,
    valid: Tensor,
    document_ids: Tensor | None = None,
    window: int | None = None,
    columns: Tensor | None = None,
) -> Tensor:
    """Attention mask (B, 1, q, P + q) bool: True where a query may attend to a key.

    A position attends to earlier positions and to its block, within its document and among `valid` (B, P + q)
    positions; every position attends to itself, so that padding has a finite softmax. `blocks` (B, q) is that of the
    new positions; a sliding `window` masks keys that many or more valid positions back. `columns` (B, q) says which of
    the keys are the new positions' own; by default they are the last.
    """
    new, total = blocks.shape[1], valid.shape[1]
    keys = torch.arange(total, device=blocks.device)
    columns = keys[total - new :].expand_as(blocks) if columns is None else columns
    queries = columns[..., None]
    allowed = keys <= queries
    if window is not None:
        count = valid.long().cumsum(dim=1)  # valid positions, not columns: padding does not change a row's window
        allowed = allowed & (count[:, None, :] > count.gather(1, columns)[..., None] - window)
    of_keys = torch.full_like(valid, -1, dtype=blocks.dtype).scatter(1, columns, blocks)
    allowed = allowed | ((blocks[:, :, None] == of_keys[:, None, :]) & (blocks[:, :, None] >= 0))
    allowed = allowed & valid[:, None, :].bool()
    if document_ids is not None:
        allowed = allowed & (document_ids[:, :, None] == document_ids[:, None, :])
    return (allowed | (keys == queries))[:, None]
