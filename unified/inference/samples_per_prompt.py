"""Several pictures of each prompt, whose prompt is run once: the samples preferences are made of.

Legend: B prompts, N pictures of each, T sequence, L codes of an image.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from unified.inference.text_to_image import image_prompts
from unified.models.generation import GenerationState, ImageSampling
from unified.models.modeling import UnifiedForCausalLM
from unified.models.processing import UnifiedProcessor
from unified.models.sequence_layout import remaining_context


def image_seed(seed: int, prompt: int, sample: int) -> int:
    """Seed of one picture: 32 bits, which is all that torch's CPU generator looks at."""
    return int(np.random.SeedSequence([seed, prompt, sample]).generate_state(1)[0])


@torch.no_grad()
def draw_samples(
    model: UnifiedForCausalLM,
    processor: UnifiedProcessor,
    prompts: Sequence[str],
    seeds: Sequence[Sequence[int]],
    sampling: ImageSampling | None = None,
) -> Tensor:
    """Codes (B, N, L): for prompt b one picture for each of its N `seeds[b]`.

    A picture is the one `unified draw` paints from its prompt and seed, but for rounding. The prompts are run once
    and their cache is copied N times; guidance's unconditional half is run for every picture.
    Raises ValueError where the numbers of seeds differ, and for a prompt that fills the backbone's context.
    """
    counts = {len(own) for own in seeds}
    if len(seeds) != len(prompts) or len(counts) != 1 or not min(counts):
        raise ValueError(f"{len(prompts)} prompts with {[len(own) for own in seeds]} seeds; give each as many")
    state = _prompted(model, processor, prompts)
    nothing = torch.zeros(len(prompts), 0, model.config.text_config.hidden_size, device=model.device)
    model.forward_cached(state, nothing, ~state.finished, scale=0)
    return _generate_copies(model, processor, state, seeds, sampling or ImageSampling()).view(
        len(prompts), counts.pop(), -1
    )


def _prompted(model: UnifiedForCausalLM, processor: UnifiedProcessor, prompts: Sequence[str]) -> GenerationState:
    """The prompts, padded on the left, each with the image start behind it."""
    ids, mask = image_prompts(model, processor, prompts)
    remaining_context(ids, mask, model.config, images=1)
    return GenerationState(ids, mask, torch.zeros_like(ids[:, 0], dtype=torch.bool), processor.pad_token_id)


def _generate_copies(
    model: UnifiedForCausalLM,
    processor: UnifiedProcessor,
    state: GenerationState,
    seeds: Sequence[Sequence[int]],
    sampling: ImageSampling,
) -> Tensor:
    """Codes (B * N, L) of pictures painted on N copies of every row, whose ids are all in the cache."""
    copies = len(seeds[0])
    state.cache.batch_repeat_interleave(copies)
    wide = GenerationState(
        state.input_ids.repeat_interleave(copies, dim=0),
        state.mask.repeat_interleave(copies, dim=0),
        state.finished.repeat_interleave(copies, dim=0),
        state.pad_token_id,
        cache=state.cache,
    )
    generators = [torch.Generator(model.device).manual_seed(seed) for own in seeds for seed in own]
    model.generate_image(wide, ~wide.finished, sampling, torch.tensor([processor.unconditional_ids()]), generators)
    start = state.input_ids.shape[1]
    return model.config.vocabulary.ids_to_codes(wide.input_ids[:, start : start + model.config.image_length])
