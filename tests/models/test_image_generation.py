"""Scales one after the other: the same input states as all at once, and nothing that waits for the device between."""

import pytest
import torch
from toy_models import BOI, random_codes, toy_model

from unified import ImageSampling, UnifiedForCausalLM
from unified.hardware.operations import Operations
from unified.image_tokenizer.scales import scale_spans


@pytest.fixture
def model() -> UnifiedForCausalLM:
    return toy_model()


@torch.no_grad()
def test_a_scale_from_the_ones_before_is_that_of_all_at_once(model: UnifiedForCausalLM) -> None:
    codes, base = random_codes(model, 3), model.model
    whole, _ = base.image_embedding(*base.image_features(codes, codes[:0]))
    f_hat, states = model.first_scale(3)
    found = [states]
    for scale, (start, stop) in enumerate(scale_spans(model.config.patch_nums)[:-1]):
        f_hat, states = model.next_scale(f_hat, codes[:, start:stop], scale)
        found.append(states)
    assert torch.equal(torch.cat(found, dim=1), whole)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_nothing_waits_for_the_device_between_scales(model: UnifiedForCausalLM, guidance_scale: float) -> None:
    operations, between = Operations(), []

    def on_scale(scale: int, codes: torch.Tensor) -> None:
        between.append(list(operations.waits))
        operations.waits.clear()

    sampling = ImageSampling(guidance_scale=guidance_scale, top_k=5, top_p=0.9, on_scale=on_scale)
    with operations:
        model.generate(
            torch.tensor([[5, 6, BOI], [7, 8, BOI]]), image_sampling=sampling, max_new_tokens=0, seed=[0, 1],
            negative_prompt_ids=torch.tensor([[3, 4]]),
        )  # fmt: skip
    assert len(between) == 3 and between[1:] == [[], []]
    assert operations.waits and between[0]  # before the image and behind it there are some, which the test would see
