"""Several images per prompt equal those of single generation with the same seeds, though the prompt is run once."""

from pathlib import Path

import pytest
import torch
from toy_models import make_lively

from unified import UnifiedForCausalLM, UnifiedProcessor
from unified.inference.samples_per_prompt import generate_samples, image_seed
from unified.inference.text_to_image import generate_codes
from unified.models.image_sampling import ImageSampling

PROMPTS = ["a cat", "a photo of two green books"]  # of different lengths: one is padded
SEEDS = [[1, 2, 3], [4, 5, 6]]


@pytest.fixture
def model(toy_checkpoint: Path) -> UnifiedForCausalLM:
    model = UnifiedForCausalLM.from_pretrained(toy_checkpoint).eval()
    make_lively(model)
    return model


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_every_image_is_that_of_its_seed(
    model: UnifiedForCausalLM, processor: UnifiedProcessor, guidance_scale: float
) -> None:
    sampling = ImageSampling(guidance_scale=guidance_scale, top_k=8)
    codes = generate_samples(model, processor, PROMPTS, SEEDS, sampling)
    assert codes.shape == (2, 3, 5)
    assert len({tuple(image) for samples in codes.tolist() for image in samples}) == 6
    for prompt, seeds, samples in zip(PROMPTS, SEEDS, codes, strict=True):
        for seed, image in zip(seeds, samples, strict=True):
            alone = generate_codes(model, processor, [prompt], sampling, torch.Generator().manual_seed(seed))
            assert torch.equal(alone[0], image)


def test_a_prompt_is_run_once(
    model: UnifiedForCausalLM, processor: UnifiedProcessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, run_backbone = [], model.model.run_backbone

    def record(states: torch.Tensor, *args: object, **kwargs: object) -> object:
        runs.append(states.shape[:2])
        return run_backbone(states, *args, **kwargs)

    monkeypatch.setattr(model.model, "run_backbone", record)
    generate_samples(model, processor, PROMPTS, SEEDS)
    prompt, *scales = runs
    assert prompt[0] == 2 and scales == [(6, 1), (6, 4)]


def test_uneven_seeds_are_refused(model: UnifiedForCausalLM, processor: UnifiedProcessor) -> None:
    for seeds in ([[1, 2], [3]], [[1]], [[], []]):
        with pytest.raises(ValueError, match="give each the same number"):
            generate_samples(model, processor, PROMPTS, seeds)


def test_seeds_differ() -> None:
    seeds = {image_seed(*numbers) for numbers in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))}
    assert len(seeds) == 4 and image_seed(3, 2, 1) == image_seed(3, 2, 1) < 2**32
