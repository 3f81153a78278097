"""Corrupted input codes, and the targets of later scales that correct them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from unified import UnifiedForCausalLM
from unified.files.images import image_to_pixels
from unified.image_tokenizer.loading import load_vq
from unified.image_tokenizer.model import VQModel
from unified.image_tokenizer.scales import scale_spans
from unified.scenes.rendering import draw_scene, sample_scene
from unified.training.self_correction import SelfCorrection, corrupt_codes

WEIGHTS = Path(__file__).parents[2] / "weights" / "scenes-vq"


@pytest.fixture(scope="module")
def vq() -> VQModel:
    return load_vq(WEIGHTS, "cpu")


@pytest.fixture(scope="module")
def codes(vq: VQModel) -> Tensor:
    """(60, 85) of rendered scenes."""
    scenes = [sample_scene("two_object", np.random.default_rng(seed)) for seed in range(60)]
    return vq.encode(torch.stack([image_to_pixels(draw_scene(scene), 64) for scene in scenes]))


@pytest.fixture
def toy(toy_checkpoint: Path) -> UnifiedForCausalLM:
    return UnifiedForCausalLM.from_pretrained(toy_checkpoint)


def test_targets_are_the_codes_up_to_the_first_corrupted_scale(vq: VQModel, codes: Tensor) -> None:
    inputs, targets = corrupt_codes(vq.quantizer, codes, 0.1, torch.Generator().manual_seed(0))
    spans = scale_spans(vq.quantizer.patch_nums)
    before = torch.ones(len(codes), dtype=torch.bool)  # images without corruption so far
    for start, stop in spans:
        assert torch.equal(targets[before, start:stop], codes[before, start:stop])
        before &= (inputs[:, start:stop] == codes[:, start:stop]).all(dim=1)
    assert 0 < before.sum() < len(codes)  # some images are not corrupted
    assert torch.equal(inputs[before], codes[before])
    assert torch.equal(inputs[:, spans[-1][0] :], targets[:, spans[-1][0] :])


def test_later_scales_correct_the_image(vq: VQModel, codes: Tensor) -> None:
    inputs, _ = corrupt_codes(vq.quantizer, codes, 0.5, torch.Generator().manual_seed(0))
    last = scale_spans(vq.quantizer.patch_nums)[-1][0]
    corrupted = (inputs[:, :last] != codes[:, :last]).any(dim=1)
    uncorrected = torch.cat([inputs[:, :last], codes[:, last:]], dim=1)
    right = vq.quantizer.codes_to_f_hat(codes)
    errors = [(vq.quantizer.codes_to_f_hat(c) - right).square().flatten(1).mean(dim=1) for c in (inputs, uncorrected)]
    assert corrupted.sum() > 50
    assert (errors[0] < errors[1])[corrupted].float().mean() > 0.95
    assert errors[0][corrupted].mean() < 0.5 * errors[1][corrupted].mean()


def test_shares_are_uniform_up_to_the_maximum(vq: VQModel, codes: Tensor) -> None:
    many = codes.repeat(50, 1)
    inputs, targets = corrupt_codes(vq.quantizer, many, 0.4, torch.Generator().manual_seed(0))
    last = scale_spans(vq.quantizer.patch_nums)[-1][0]
    shares = (inputs != targets)[:, :last].float().mean(dim=1)
    assert abs(float(shares.mean()) - 0.2) < 0.01
    assert shares.std() > 0.12  # an equal share of all would leave .09


def test_a_step_keeps_trained_positions_and_input_images(toy: UnifiedForCausalLM) -> None:
    vocabulary = toy.config.vocabulary
    image = vocabulary.codes_to_ids(torch.randint(32, (400, 5), generator=torch.Generator().manual_seed(0)))
    words = torch.full((400, 2), 7)
    ids = torch.cat([words, image, words, image], dim=1)
    labels = ids.clone()
    labels[:, :9] = -100  # the second image is trained, the first belongs to the prompt
    codes = torch.zeros(1, 5)
    inputs, correction = {"input_ids": ids, "labels": labels, "image_codes": codes}, SelfCorrection(toy, 0.5)
    step = correction(inputs, seed=0, step=3)
    assert step["image_codes"] is codes
    assert torch.equal(step["labels"] == -100, labels == -100)
    text = ~vocabulary.is_image(ids)
    assert torch.equal(step["input_ids"][text], ids[text])
    assert vocabulary.is_image(step["labels"][:, 9:]).all()
    assert (step["input_ids"][:, 2:7] != image).any()
    assert (step["labels"][:, 9:] != image).any()
    assert torch.equal(step["labels"][:, 9], image[:, 0])  # of the first scale nothing is known before it
    assert not torch.equal(step["input_ids"][:, 9], image[:, 0])
    again, later = correction(inputs, seed=0, step=3), correction(inputs, seed=0, step=4)
    assert torch.equal(again["input_ids"], step["input_ids"]) and torch.equal(again["labels"], step["labels"])
    assert not torch.equal(later["input_ids"], step["input_ids"])


def test_a_step_of_text_is_not_changed(toy: UnifiedForCausalLM) -> None:
    step = {"input_ids": torch.full((2, 6), 7), "labels": torch.full((2, 6), 7)}
    assert SelfCorrection(toy, 0.5)(step, seed=0, step=0) is step


@pytest.mark.parametrize("share", [-0.1, 1.0, 3.0])
def test_a_share_outside_0_to_1_is_refused(toy: UnifiedForCausalLM, share: float) -> None:
    with pytest.raises(ValueError, match=f"code_noise {share} is not in"):
        SelfCorrection(toy, share)


def test_one_scale_has_nothing_to_correct(toy: UnifiedForCausalLM) -> None:
    toy.config.vq_config.patch_nums = (2,)
    with pytest.raises(ValueError, match="needs later scales"):
        SelfCorrection(toy, 0.2)
