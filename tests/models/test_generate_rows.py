"""Prompts of `generate`: ids, masks and pictures that belong together, and rows of a batch that are each their own."""

from typing import Any

import pytest
import torch
from test_generation_text import follows
from toy_models import BOI, EOS, input_image, toy_model

from unified.models.image_sampling import ImageSampling

PROMPT = torch.tensor([[5, 6, 7]])
GREEDY = {"do_sample": False, "image_sampling": ImageSampling(temperature=0)}
ENDS_SOON = {"sequence_bias": [[[EOS], 50.0]]}
COUNTED: list[dict[str, Any]] = [
    {"min_new_tokens": 8, **ENDS_SOON},
    {"min_length": 11, **ENDS_SOON},
    {"forced_eos_token_id": EOS},
    {"exponential_decay_length_penalty": (6, 3.0)},
    {"repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "pad_token_id": EOS},
    {"encoder_repetition_penalty": 1.5},
    {"prefix_allowed_tokens_fn": lambda row, ids: [[EOS, 20, BOI], [21, 22, BOI], [23, 24, BOI]][row]},
]


@pytest.mark.parametrize("settings", COUNTED, ids=lambda settings: next(iter(settings)))
def test_a_row_of_a_batch_has_its_own_length_and_repetitions(settings: dict[str, Any]) -> None:
    """Columns that it skipped while others drew are none of its text."""
    model, follow = toy_model(), {8: 9, 9: BOI, 31: 32, 32: 33, 33: BOI}
    prompts = torch.tensor([[4, 5, BOI], [5, 7, 8], [29, 30, 31]])
    given = {"logits_processor": follows(follow), "max_new_tokens": 9, **GREEDY, **settings}
    rows = model.generate(prompts, **given).tolist()
    for number, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        own = dict(given)
        if function := own.pop("prefix_allowed_tokens_fn", None):
            own["prefix_allowed_tokens_fn"] = lambda _, ids, number=number, known=function: known(number, ids)
        alone = model.generate(prompt[None], **own)[0].tolist()
        assert row[: len(alone)] == alone and set(row[len(alone) :]) <= {settings.get("pad_token_id", 0)}


MISMATCHED = {
    "input_ids is torch.int64 .3,.; give a tensor of ids": {"inputs": PROMPT[0]},
    "input_ids is <class 'list'>": {"inputs": [[5, 6]]},
    "holds no id; give at least one": {"inputs": PROMPT[:, :0]},
    "input_ids holds 999; ids of this model are 0 to 95": {"inputs": PROMPT + 992},
    "input_ids holds -102; ids": {"inputs": PROMPT - 107},
    r"attention_mask is \(1, 2\) but input_ids \(1, 3\)": {"attention_mask": torch.ones(1, 2)},
    "0 image placeholders in input_ids but 1 images of 16": {"pixel_values": torch.zeros(1, 3, 32, 32)},
    "16 image placeholders in input_ids but 0 images": {"inputs": None},
    "16 image placeholders in input_ids but 2 images": {"inputs": None, "image_codes": torch.zeros(2, 21).long()},
    r"pixel_values of images \(3, 16, 16\); give \(images, 3, 32, 32\)": {
        "inputs": None,
        "pixel_values": torch.zeros(1, 3, 16, 16),
    },
    "image_codes holds 32; codes of this tokenizer are 0 to 31": {
        "inputs": None,
        "image_codes": torch.full((1, 21), 32),
    },
    "pixel_values and image_codes are both given": {
        "inputs": None,
        "image_codes": torch.zeros(1, 21).long(),
        "pixel_values": torch.zeros(1, 3, 32, 32),
    },
    "second argument is a GenerationConfig": {"generation_config": {"max_new_tokens": 3}},
}


@pytest.mark.parametrize("said", MISMATCHED)
def test_prompts_masks_and_pictures_that_do_not_belong_together(said: str) -> None:
    model = toy_model()
    given = MISMATCHED[said]
    if "inputs" in given and given["inputs"] is None:  # a prompt that shows one picture
        given = given | {"inputs": torch.tensor([[5, *input_image(model), 6]])}
    with pytest.raises(ValueError, match=said):
        model.generate(**{"inputs": PROMPT} | given, **GREEDY)
