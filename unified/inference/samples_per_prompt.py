"""Several images per prompt with a single prefill: the samples for preference pairs.

Legend: B prompts, N images of each, T sequence, L codes of an image.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unified.inference.text_to_image import image_prompts
from unified.models.backbones import new_cache
from unified.models.image_generation import GenerationState
from unified.models.image_sampling import ImageSampling
from unified.models.modeling import UnifiedForCausalLM
from unified.models.processing import UnifiedProcessor
from unified.models.sequence_layout import remaining_context


def image_seed(seed: int, prompt: int, sample: int) -> int:
    """Seed of one image: 32 bits, as torch's CPU generator uses no more."""
    return int(np.random.SeedSequence([seed, prompt, sample]).generate_state(1)[0])


@torch.no_grad()
def generate_samples(
    model: UnifiedForCausalLM,
    processor: UnifiedProcessor,
    prompts: Sequence[str],
    seeds: Sequence[Sequence[int]],
    sampling: ImageSampling | None = None,
) -> Tensor:
    """Codes (B, N, L): for prompt b one image for each of its N `seeds[b]`.

    An image is the one `unified draw` generates from its prompt and seed, but for rounding. The prompts are run once
    and their KV cache is repeated N times; the unconditional pass of guidance is run for every image.
    Raises ValueError if the numbers of seeds differ, and for a prompt that fills the backbone's context.
    """
    counts = {len(prompt_seeds) for prompt_seeds in seeds}
    if len(seeds) != len(prompts) or len(counts) != 1 or not min(counts):
        numbers = [len(prompt_seeds) for prompt_seeds in seeds]
        raise ValueError(f"{len(prompts)} prompts with {numbers} seeds; give each the same number, at least 1")
    state = _initial_state(model, processor, prompts)
    model.prefill(state)
    return _generate_copies(model, processor, state, seeds, sampling or ImageSampling()).view(
        len(prompts), counts.pop(), -1
    )


def _initial_state(model: UnifiedForCausalLM, processor: UnifiedProcessor, prompts: Sequence[str]) -> GenerationState:
    """The prompts, padded on the left, each followed by the image start token."""
    ids, mask = image_prompts(model, processor, prompts)
    remaining_context(ids, mask, model.config, images=1)
    finished, cache = torch.zeros_like(ids[:, 0], dtype=torch.bool), new_cache(model.config.text_config)
    return GenerationState(ids, mask, finished, processor.pad_token_id, cache)


def _generate_copies(
    model: UnifiedForCausalLM,
    processor: UnifiedProcessor,
    state: GenerationState,
    seeds: Sequence[Sequence[int]],
    sampling: ImageSampling,
) -> Tensor:
    """Codes (B * N, L) of images generated on N copies of every row, whose ids are all in the cache."""
    copies = len(seeds[0])
    rows = torch.arange(len(state.input_ids), device=state.input_ids.device).repeat_interleave(copies)
    state.cache.reorder_cache(rows)  # type: ignore[arg-type]  # HF says LongTensor
    repeated = GenerationState(
        state.input_ids.repeat_interleave(copies, dim=0),
        state.mask.repeat_interleave(copies, dim=0),
        state.finished.repeat_interleave(copies, dim=0),
        state.pad_token_id,
        state.cache,
    )
    generators = [torch.Generator(model.device).manual_seed(seed) for prompt_seeds in seeds for seed in prompt_seeds]
    model.generate_image(
        repeated, ~repeated.finished, sampling, torch.tensor([processor.unconditional_ids()]), generators
    )
    start = state.input_ids.shape[1]
    return model.config.vocabulary.ids_to_codes(repeated.input_ids[:, start : start + model.config.image_length])
