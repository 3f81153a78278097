"""Preferences to the batches that TRL's trainers take: pairs to `DPOTrainer`'s, single answers to `KTOTrainer`'s.

Legend: B pairs or answers, T positions, N input images of a pair, L codes of one image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unified.data.packing import pad_right
from unified.models.processing import UnifiedProcessor


@dataclass
class Answered:
    """Ids and completion mask (T,) of a prompt with an answer, and the codes of its input images."""

    input_ids: Tensor
    mask: Tensor
    input_image_codes: list[list[int]]


def answered(
    processor: UnifiedProcessor,
    prompt: Mapping[str, Any],
    answer: Any,
    codes: Sequence[Any],
    max_length: int,
    name: str,
) -> Answered:
    """The `prompt` (a row's `messages`, `codes`, `tools`) with its `answer`, up to the token that ends its turn.

    Args:
        answer: the assistant's message, or messages. codes: of the images in it.
        name: of the answer, in errors.

    Raises ValueError for a chat template of which the prompt is no prefix, and for more than `max_length` positions.
    """
    messages = [answer] if isinstance(answer, Mapping) else list(answer)
    tools = prompt.get("tools")
    start = processor.prompt_ids(prompt["messages"], prompt["codes"], tools)
    chat = processor.encode_chat([*prompt["messages"], *messages], [*prompt["codes"], *codes], tools)
    if chat.input_ids[: len(start)] != start:
        raise ValueError(
            "the chat template renders the prompt differently when it is answered, but preferences need it as a "
            "prefix; use another chat template"
        )
    completion = torch.tensor(chat.labels) >= 0
    completion[: len(start)] = False
    stop = int(completion.nonzero().max()) + 1
    if stop > max_length:
        raise ValueError(f"a {name} answer ends at position {stop}, beyond max_length {max_length}; raise it")
    return Answered(torch.tensor(chat.input_ids[:stop]), completion[:stop].long(), chat.input_image_codes)


def stack(answers: Sequence[Answered], pad_token_id: int) -> dict[str, Tensor]:
    """`input_ids`, `attention_mask`, `completion_mask` (B, T) of answers, padded on the right."""
    return {
        "input_ids": pad_right([[one.input_ids] for one in answers], pad_token_id),
        "attention_mask": pad_right([[torch.ones_like(one.input_ids)] for one in answers], 0),
        "completion_mask": pad_right([[one.mask] for one in answers], 0),
    }


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
        answers = [
            answered(self.processor, example, example[kind], example[f"{kind}_codes"], self.max_length, kind)
            for kind in ("chosen", "rejected")
            for example in examples
        ]
        return stack(answers, self.processor.pad_token_id) | _image_codes(answers)


class UnpairedPreferenceCollator:
    """Answers that are each good or bad for TRL's `KTOTrainer`, as `unpaired` makes them of pairs.

    Examples have `messages` (the prompt), `completion` (the assistant's messages), `label` (whether it is good) and,
    one list per image part, `codes` and `completion_codes`. A column `images` (see `for_trl`) and
    `remove_unused_columns=False` keep the trainer from tokenizing by itself.

    Args:
        max_length: maximum positions of prompt and answer; a longer one is a ValueError.
        calculate_kl: also return the batch's prompts with each other's answers, shifted by one as TRL does, of which
            the loss "kto" estimates the KL divergence; "apo_zero_unpaired" has no use for them.

    Returns `input_ids`, `attention_mask`, `completion_mask` (B, T), padded on the right, `label` (B,), the same three
    as `KL_...`, and with input images `image_codes` (N, L).
    """

    def __init__(self, processor: UnifiedProcessor, max_length: int, calculate_kl: bool = True) -> None:
        self.processor, self.max_length, self.calculate_kl = processor, max_length, calculate_kl

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        check_columns(examples[0], ("messages", "codes", "completion", "completion_codes", "label"))
        answers = self._answered(examples, examples)
        batch = stack(answers, self.processor.pad_token_id) | _image_codes(answers)
        batch["label"] = torch.tensor([bool(example["label"]) for example in examples])
        if self.calculate_kl:
            others = stack(self._answered(examples, [examples[-1], *examples[:-1]]), self.processor.pad_token_id)
            batch |= {f"KL_{name}": value for name, value in others.items()}
        return batch

    def _answered(self, prompts: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]) -> list[Answered]:
        return [
            answered(self.processor, prompt, one["completion"], one["completion_codes"], self.max_length, "single")
            for prompt, one in zip(prompts, answers, strict=True)
        ]


def check_columns(example: Mapping[str, Any], needed: Sequence[str]) -> None:
    """Raise ValueError for an example without a column that a collator reads."""
    missing = [name for name in needed if name not in example]
    if missing:
        raise ValueError(
            f"the rows have no {', '.join(missing)} but {', '.join(sorted(example))}; give them, and keep them with "
            "remove_unused_columns=False"
        )


def _image_codes(answers: Sequence[Answered]) -> dict[str, Tensor]:
    codes = [image for one in answers for image in one.input_image_codes]
    return {"image_codes": torch.tensor(codes)} if codes else {}
