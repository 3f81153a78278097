"""A caller's logits processors and stopping criteria, ids that text never has, and prompts that are too long."""

import pytest
import torch
from torch import Tensor
from toy_models import BOI, EOS, IMAGE_PAD, OFFSET, input_image, random_codes, toy_model
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.generation import StoppingCriteria, StoppingCriteriaList

from unified.models.image_sampling import ImageSampling

GREEDY = {"do_sample": False, "image_sampling": ImageSampling(temperature=0)}
Follow = dict[int, int]  # token -> the one that follows it
COUNTING = {token: token + 1 for token in range(5, 40)}


class Follows(LogitsProcessor):
    """Forces after each token the one that `follow` gives."""

    def __init__(self, follow: Follow) -> None:
        self.follow = follow

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        for row, last in enumerate(input_ids[:, -1].tolist()):
            if last in self.follow:
                scores[row, self.follow[last]] = 1e6
        return scores


class StopsAt(StoppingCriteria):
    """Stops a row once its last id is `token`."""

    def __init__(self, token: int) -> None:
        self.token = token

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        return input_ids[:, -1] == self.token


def follows(follow: Follow) -> LogitsProcessorList:
    return LogitsProcessorList([Follows(follow)])


@pytest.mark.parametrize("image_order", ["scales", "raster"])
def test_a_callers_processor_works_with_ours(image_order: str) -> None:
    """It decides the text before and after an image, and cannot bring back suppressed ids."""
    model = toy_model(image_order=image_order)
    follow = COUNTING | {10: BOI, 62: OFFSET + 3, 12: IMAGE_PAD}
    ids = model.generate(torch.tensor([[7]]), logits_processor=follows(follow), max_new_tokens=6, **GREEDY)[0].tolist()
    length = model.config.image_length
    assert ids[:5] == [7, 8, 9, 10, BOI] and min(ids[5 : 5 + length]) >= OFFSET
    assert len(ids) == 1 + 6 + length + 1 and max(ids[-2:]) < OFFSET
    with_pad = model.generate(torch.tensor([[12]]), logits_processor=follows(follow), max_new_tokens=1, **GREEDY)
    assert with_pad[0, 1] < OFFSET and with_pad[0, 1] != IMAGE_PAD


def test_a_callers_criterion_ends_its_row_alone() -> None:
    model = toy_model()
    prompts = torch.tensor([[5], [20], [30]])
    settings = {
        "logits_processor": follows(COUNTING | {31: EOS}),
        "stopping_criteria": StoppingCriteriaList([StopsAt(8)]),
        "max_new_tokens": 6,
    }
    rows = model.generate(prompts, **settings, **GREEDY).tolist()
    assert [[token for token in row if token not in (0, EOS)] for row in rows] == [
        [5, 6, 7, 8],
        [20, 21, 22, 23, 24, 25, 26],
        [30, 31],
    ]


def test_rows_without_a_token_are_never_sampled() -> None:
    """Ids 51 to 63 stand for padding of the matrices here."""
    model = toy_model()
    model.config.boi_token_id, model.config.eoi_token_id, model.config.image_pad_token_id = 48, 49, 50
    assert model.config.vocabulary.text_ids == range(51)
    settings = {"do_sample": True, "temperature": 50.0, "max_new_tokens": 20, "max_images": 0, "eos_token_id": 47}
    generator = torch.Generator().manual_seed(0)
    ids = model.generate(torch.tensor([[5]] * 16), generator=generator, **settings)
    assert ids.max() < 48 and len(ids.unique()) > 20


@pytest.mark.parametrize("padding", [0, 3])
def test_a_prompt_as_long_as_the_context_is_refused(padding: int) -> None:
    model = toy_model()
    ids = torch.full((1, padding + 512), 5)
    mask = torch.ones_like(ids)
    mask[:, :padding] = 0
    with pytest.raises(ValueError, match="the prompt takes 512 positions, but the model's context has 512; shorten"):
        model.generate(ids, attention_mask=mask, **GREEDY)
    mask[:, padding] = 0
    assert model.generate(ids, attention_mask=mask, max_new_tokens=1, **GREEDY).shape[1] == ids.shape[1] + 1


def test_a_prompt_is_measured_in_rope_positions() -> None:
    """An input image's placeholders share one position, so 33 of 18 ids each fit in a context of 512."""
    model = toy_model()
    ids = torch.tensor([input_image(model) * 33 + [5]])
    assert ids.shape[1] > 512
    answer = model.generate(ids, image_codes=random_codes(model, 33), max_new_tokens=1, **GREEDY)
    assert answer.shape[1] == ids.shape[1] + 1


def test_one_generator_per_row_makes_rows_independent_of_the_batch() -> None:
    """Text and images: rows that start an image at once, after a token, and never."""
    model, prompts, seeds = toy_model(), torch.tensor([[5, BOI], [6, 7], [8, 9]]), [1, 2, 3]
    follow = follows({7: 10, 10: BOI, 9: 30})
    settings = {
        "logits_processor": follow,
        "do_sample": True,
        "temperature": 2.0,
        "max_new_tokens": 9,
        "image_sampling": ImageSampling(temperature=2.0),
    }
    together = model.generate(prompts, seed=seeds, **settings).tolist()
    for prompt, seed, row in zip(prompts, seeds, together, strict=True):
        alone = model.generate(prompt[None], seed=seed, **settings)[0].tolist()
        assert row == alone + [0] * (len(row) - len(alone))
    assert [row.count(BOI) for row in together[:2]] == [1, 1]
    with pytest.raises(ValueError, match="2 generators for a batch of 3; pass one per row"):
        model.generate(prompts, seed=[1, 2], **settings)
