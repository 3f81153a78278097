"""Arguments of `generate`: what is derived from several, and what is refused, by its name.

Legend: B batch, T sequence, P positions in a cache.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, StaticCache
from transformers.generation.configuration_utils import ALL_STATIC_CACHE_IMPLEMENTATIONS

from unified.models.configuration import UnifiedConfig
from unified.models.image_sampling import ImageSampling
from unified.models.sampling import Generators

DEFAULT_NEW_TOKENS = 256  # where neither arguments nor configurations limit an answer
MODES = ("text", "image", "interleaved")
OWN = ("generation_mode", "image_sampling", "negative_prompt_ids", "max_images", "generator", "seed")
DERIVED = "it is derived from input_ids; leave it out"
# arguments of HF's and of `forward` that cannot be honoured, and why
REFUSED: dict[str, str] = {
    "position_ids": DERIVED,
    "document_ids": "packed rows are for training; pass one conversation a row",
    "keep_positions": "it is for training; leave it out",
    "labels": "they are for training; leave them out",
    "num_items_in_batch": "it is for training; leave it out",
    "inputs_embeds": "image positions cannot be derived from it; pass input_ids",
    "prefill_chunk_size": "chunks could cut an image; leave it out",
    "token_healing": "it tokenizes prompts again, and an image in one is no text; leave it out",
    "assistant_early_exit": "it changes the model while it runs; pass an assistant_model",
}


def max_images_of(mode: str, max_images: int | None) -> int:
    """Number of images a row may have. Raises ValueError for a `mode` that does not exist or contradicts it."""
    if mode not in MODES:
        raise ValueError(f"generation_mode {mode!r}; choose from {', '.join(MODES)}")
    if max_images is not None and max_images < 0:
        raise ValueError(f"max_images {max_images}; give at least 0")
    least, most = {"text": (0, 0), "image": (1, 1), "interleaved": (0, None)}[mode]
    if max_images is not None and (max_images < least or (most is not None and max_images > most)):
        raise ValueError(f"generation_mode {mode} and max_images {max_images} contradict each other; leave one out")
    return max_images if max_images is not None else 0 if mode == "text" else 1


def seeded(seed: int | Sequence[int] | None, generator: Generators, device: torch.device) -> Generators:
    """`generator`, or those of `seed`. Raises ValueError for both."""
    if seed is None:
        return generator
    if generator is not None:
        raise ValueError("generator and seed both given; leave one out")
    if isinstance(seed, int):
        return torch.Generator(device).manual_seed(seed)
    return [torch.Generator(device).manual_seed(one) for one in seed]


def image_sampling_of(
    given: ImageSampling | None, guidance_scale: float | None, negative_prompt_ids: Tensor | None, images: int
) -> ImageSampling:
    """Sampling of a call whose configuration has HF's `guidance_scale`, None where it has none.

    Raises ValueError for two different scales, and for guidance without a negative prompt where images may come.
    """
    sampling = given or ImageSampling()
    if guidance_scale is not None and guidance_scale != sampling.guidance_scale:
        if sampling.guidance_scale != 1:
            raise ValueError(
                f"guidance_scale {guidance_scale} and image_sampling's {sampling.guidance_scale} differ; give one"
            )
        sampling = replace(sampling, guidance_scale=guidance_scale)
    if images and sampling.guidance_scale != 1 and negative_prompt_ids is None:
        raise ValueError(
            f"guidance_scale {sampling.guidance_scale} needs negative_prompt_ids; pass processor.unconditional_ids()"
        )
    return sampling


def check_arguments(
    resolved: GenerationConfig, kwargs: Mapping[str, Any], images: int, generator: Generators, device: torch.device
) -> None:
    """Raise ValueError, naming it, for what cannot be honoured: in the `resolved` configuration, or in `kwargs`."""
    for name, reason in REFUSED.items():
        value = kwargs[name] if name in kwargs else vars(resolved).get(name)
        if value is not None and value is not False:
            raise ValueError(f"generate does not support {name}: {reason}")
    check_cache_kind(resolved.cache_implementation, kwargs.get("past_key_values"), device)
    beams = (resolved.num_beams or 1) > 1
    assisted = kwargs.get("assistant_model") is not None or resolved.prompt_lookup_num_tokens is not None
    if beams and images:
        raise ValueError(
            f"num_beams {resolved.num_beams} searches for text, and an image is none; "
            "pass generation_mode='text', or leave num_beams out"
        )
    if generator is not None and resolved.do_sample and (beams or assisted):
        name = f"num_beams {resolved.num_beams}" if beams else "assisted generation"
        raise ValueError(
            f"{name} with do_sample draws from torch's global generator, so that generator and seed have no effect; "
            "leave them out, or do_sample"
        )
    if images and assisted and (resolved.output_attentions or resolved.output_hidden_states):
        name = "output_attentions" if resolved.output_attentions else "output_hidden_states"
        raise ValueError(f"{name} with assisted generation is of text alone; pass generation_mode='text'")
    if images and kwargs.get("synced_gpus"):
        raise ValueError(
            "synced_gpus True keeps processes in step token by token, which images are not; "
            "pass generation_mode='text', or gather the weights and leave it out"
        )


def check_inputs(input_ids: Any, kwargs: Mapping[str, Any], config: UnifiedConfig) -> None:
    """Raise ValueError for prompts (B, T) whose ids, mask or input images do not belong together."""
    if input_ids is None:  # HF begins with the start token
        return
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or input_ids.is_floating_point():
        found = f"{input_ids.dtype} {tuple(input_ids.shape)}" if isinstance(input_ids, Tensor) else type(input_ids)
        raise ValueError(f"input_ids is {found}; give a tensor of ids, (batch, sequence)")
    if not input_ids.numel():
        raise ValueError(f"input_ids of {tuple(input_ids.shape)} holds no id; give at least one a row")
    least, most, size = int(input_ids.min()), int(input_ids.max()), config.vocabulary.size
    if least < 0 or most >= size:
        raise ValueError(f"input_ids holds {least if least < 0 else most}; ids of this model are 0 to {size - 1}")
    mask = kwargs.get("attention_mask")
    if mask is not None and mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask is {tuple(mask.shape)} but input_ids {tuple(input_ids.shape)}; give one value an id"
        )
    cache = kwargs.get("past_key_values")
    new = input_ids if cache is None else input_ids[:, cache.get_seq_length() :]
    counts = [int((ids == config.image_pad_token_id).sum()) for ids in (input_ids, new)]
    check_images(kwargs.get("pixel_values"), kwargs.get("image_codes"), counts, config)


def check_images(
    pixels: Tensor | None, codes: Tensor | None, placeholders: Sequence[int], config: UnifiedConfig
) -> None:
    """Raise ValueError unless input images fill one of so many `placeholders`, as `pixels` or `codes`."""
    if pixels is not None and codes is not None:
        raise ValueError("pixel_values and image_codes are both given; keep one of them")
    given = codes if pixels is None else pixels
    images, length = 0 if given is None else len(given), config.input_image_length
    if images * length not in placeholders:
        raise ValueError(
            f"{placeholders[0]} image placeholders in input_ids but {images} images of {length} positions given; "
            "pass every input image once, as pixel_values or image_codes"
        )
    side, shape = config.vq_config.image_size, None if given is None else tuple(given.shape[1:])
    if pixels is not None and shape != (3, side, side):
        raise ValueError(f"pixel_values of images {shape}; give (images, 3, {side}, {side}), as the processor does")
    if codes is not None and shape != (config.image_length,):
        raise ValueError(f"image_codes of images {shape}; give {config.image_length} codes of each")
    size = config.vq_config.codebook_size
    if codes is not None and codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < size:
        raise ValueError(f"image_codes holds {int(codes.max())}; codes of this tokenizer are 0 to {size - 1}")


def check_loop_of_others(*given: Any) -> None:
    """Raise ValueError for those of `OWN` arguments that are `given` for a loop which does not read them."""
    named = [name for name, value in zip(OWN, given, strict=True) if value is not None]
    if named:
        raise ValueError(
            f"{', '.join(named)}: a loop of custom_generate or of an assistant does not read them; leave them out"
        )


def check_cache_kind(implementation: str | None, given: Cache | None, device: torch.device) -> None:
    """Raise ValueError for caches that images cannot grow, and for one that needs a GPU on a `device` that is none."""
    if implementation == "paged" or implementation in ALL_STATIC_CACHE_IMPLEMENTATIONS:
        raise ValueError(
            f"cache_implementation {implementation!r} is not supported, as an image grows a cache by many positions; "
            "leave it out"
        )
    if isinstance(given, StaticCache):
        raise ValueError("past_key_values of type StaticCache is not supported; pass a DynamicCache")
    if implementation == "offloaded" and device.type == "cpu":
        raise ValueError(
            "cache_implementation 'offloaded' moves a cache off a GPU, but the model is on the CPU; leave it out"
        )


def check_cache(input_ids: Tensor, valid: Tensor, cache: Cache | None) -> int:
    """Number of `input_ids` (B, T) that are not in the `cache` yet.

    Raises ValueError unless they and their mask hold what is in the cache as well, and more.
    """
    past = 0 if cache is None else cache.get_seq_length()
    if valid.shape[1] != input_ids.shape[1] or past >= input_ids.shape[1]:
        raise ValueError(
            f"past_key_values holds {past} positions, attention_mask {valid.shape[1]} and input_ids "
            f"{input_ids.shape[1]}; pass the ids and the mask of the whole conversation"
        )
    return input_ids.shape[1] - past
