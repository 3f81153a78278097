"""Chat rows with pictures of both kinds to the batches that TRL's `SFTTrainer` takes.

Legend: B rows, T positions, N input images, L codes of one image.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unified.data.packing import pad_right
from unified.data.preference_collator import check_columns
from unified.models.processing import IGNORE_INDEX, UnifiedProcessor


class ChatCollator:
    """Encoded rows, as `load_encoded_rows` gives them, for TRL's `SFTTrainer`.

    Examples have `messages`, `codes` (one list per image part) and maybe `tools`. A column `images` (see `for_trl`)
    and `remove_unused_columns=False` keep the trainer from tokenizing by itself.

    Returns `input_ids`, `attention_mask`, `labels` (B, T), padded on the right, and with input images `image_codes`
    (N, L). Labels are those of `UnifiedProcessor.encode_chat`: what the assistant says and draws.
    Raises ValueError for a row of more than `max_length` positions.
    """

    def __init__(self, processor: UnifiedProcessor, max_length: int) -> None:
        self.processor, self.max_length = processor, max_length

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        check_columns(examples[0], ("messages", "codes"))
        chats = [self.processor.encode_chat(row["messages"], row["codes"], row.get("tools")) for row in examples]
        longest = max(len(chat.input_ids) for chat in chats)
        if longest > self.max_length:
            raise ValueError(f"a row takes {longest} positions, more than max_length {self.max_length}; raise it")
        rows = [torch.tensor(chat.input_ids) for chat in chats]
        batch = {
            "input_ids": pad_right([[row] for row in rows], self.processor.pad_token_id),
            "attention_mask": pad_right([[torch.ones_like(row)] for row in rows], 0),
            "labels": pad_right([[torch.tensor(chat.labels)] for chat in chats], IGNORE_INDEX),
        }
        codes = [image for chat in chats for image in chat.input_image_codes]
        return batch | ({"image_codes": torch.tensor(codes)} if codes else {})
