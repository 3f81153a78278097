"""Preference pairs to the batches that TRL's `DPOTrainer` takes.

Legend: B pairs, T positions, N input images of a pair, L codes of one image.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from unified.data.packing import pad_right
from unified.models.processing import UnifiedProcessor


class PreferenceCollator:
    """Preference pairs for TRL's `DPOTrainer` (all chosen answers first, then all rejected, as TRL expects).

    Examples have `messages` (the prompt), `chosen`, `rejected` (the assistant's messages) and, one list per image
    part, `codes`, `chosen_codes`, `rejected_codes`. A column `images` (it may be empty lists) and
    `remove_unused_columns=False` keep the trainer from tokenizing by itself.

    Returns `input_ids`, `attention_mask`, `completion_mask` (2B, T), padded on the right, and with input images
    `image_codes` (2N, L). The completion is the answer and the special token that ends its turn.
    """

    def __init__(self, processor: UnifiedProcessor, max_length: int) -> None:
        self.processor, self.max_length = processor, max_length

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        answers = [self._answer(example, kind) for kind in ("chosen", "rejected") for example in examples]
        rows = [[input_ids] for input_ids, _, _ in answers]
        batch = {
            "input_ids": pad_right(rows, self.processor.pad_token_id),
            "attention_mask": pad_right([[torch.ones_like(input_ids)] for [input_ids] in rows], 0),
            "completion_mask": pad_right([[mask] for _, mask, _ in answers], 0),
        }
        input_image_codes = [codes for *_, of_prompt in answers for codes in of_prompt]
        if input_image_codes:
            batch["image_codes"] = torch.tensor(input_image_codes)
        return batch

    def _answer(self, example: Mapping[str, Any], kind: str) -> tuple[Tensor, Tensor, list[list[int]]]:
        """Ids and completion mask (T,) of the prompt with one of its answers, and the codes of its input images."""
        answer = [example[kind]] if isinstance(example[kind], Mapping) else list(example[kind])
        codes, tools = [*example["codes"], *example[f"{kind}_codes"]], example.get("tools")
        prompt = self.processor.prompt_ids(example["messages"], example["codes"], tools)
        chat = self.processor.encode_chat([*example["messages"], *answer], codes, tools)
        if chat.input_ids[: len(prompt)] != prompt:
            raise ValueError(
                "the chat template renders the prompt differently when it is answered, but DPO needs it as a prefix; "
                "use another chat template"
            )
        completion = torch.tensor(chat.labels) >= 0
        completion[: len(prompt)] = False
        stop = int(completion.nonzero().max()) + 1
        if stop > self.max_length:
            raise ValueError(f"a {kind} answer ends at position {stop}, beyond max_length {self.max_length}; raise it")
        return torch.tensor(chat.input_ids[:stop]), completion[:stop].long(), chat.input_image_codes
