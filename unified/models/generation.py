"""`generate`: HF's, with images: text by HF's own loops, an image scale by scale on the same KV cache.

Legend: B batch, T sequence, L codes of an image, N input images.
"""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.generation import StoppingCriteria, StoppingCriteriaList

from unified.models.backbones import new_cache
from unified.models.configuration import UnifiedConfig
from unified.models.generation_arguments import (
    DEFAULT_NEW_TOKENS,
    check_arguments,
    check_cache,
    check_inputs,
    check_loop_of_others,
    image_sampling_of,
    max_images_of,
    seeded,
)
from unified.models.image_generation import ImageGenerationMixin
from unified.models.image_sampling import ImageSampling
from unified.models.interleaved_decoding import INPUT_IMAGES, CallSettings, InterleavedDecoding
from unified.models.rows_apart import rows_apart_where_recurrent
from unified.models.sampling import Generators
from unified.models.sequence_layout import images_of_columns, read_layout, repeat_images, rope_positions
from unified.models.text_decoding import AllowedIds

FORWARDED = ("use_cache", "logits_to_keep", "output_attentions", "output_hidden_states")
Mode = Literal["text", "image", "interleaved"]


class UnifiedGenerationMixin(ImageGenerationMixin, GenerationMixin):
    """Batched generation of text (token by token) and images (scale by scale) on one KV cache."""

    config: UnifiedConfig
    generation_config: GenerationConfig
    output_modalities = ("text", "image")  # type: ignore[assignment]  # text alone in HF's

    if TYPE_CHECKING:  # the model's

        @property
        def device(self) -> torch.device: ...

    @torch.no_grad()
    @rows_apart_where_recurrent
    def generate(  # type: ignore[override]  # HF's other arguments are left in kwargs
        self,
        inputs: Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: Sequence[LogitsProcessor] | None = None,
        stopping_criteria: Sequence[StoppingCriteria] | None = None,
        *,
        generation_mode: Mode | None = None,
        image_sampling: ImageSampling | None = None,
        negative_prompt_ids: Tensor | None = None,
        max_images: int | None = None,
        generator: Generators = None,
        seed: int | Sequence[int] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue left-padded prompts (B, T) with text and images; returns ids (B, T'), padded on the right.

        HF's `generate`, whose arguments and precedence hold for text: an argument, then `generation_config`, then the
        checkpoint's own. `max_new_tokens` (256 where no length is given) and the other lengths count a row's tokens
        of text; images come on top, whole.

        Args:
            inputs: the prompts, or `input_ids`.
            generation_mode: "text", "image" (one image at once and nothing else; image start tokens are appended to
                the prompts), or "interleaved", the default: the model decides. `generation_config` may have it, too.
            image_sampling: sampling of image codes; `guidance_scale` may be given as HF's argument as well.
            negative_prompt_ids: (1, n) prompt of the unconditional pass of classifier-free guidance, without the image
                start token; `processor.unconditional_ids()`. Required unless guidance_scale is 1.
            max_images: maximum number of images generated per row, 1 by default; further image starts are suppressed.
            generator, seed: source of all randomness; None samples from torch's global generator, as HF does. One per
                row gives rows that do not depend on the batch but for rounding.
            kwargs: HF's, and pixel_values or image_codes of input images. `max_new_tokens` 0 generates an image alone.

        Raises ValueError for what is not supported, by its name; for a prompt that fills the backbone's context.
        """
        check_inputs(kwargs.get("input_ids") if inputs is None else inputs, kwargs, self.config)
        resolved = self._resolved(generation_config, kwargs)
        if kwargs.get("custom_generate") is not None or resolved.is_assistant:
            own = (generation_mode, image_sampling, negative_prompt_ids, max_images, generator, seed)
            check_loop_of_others(*own)
            kwargs |= {"logits_processor": logits_processor, "stopping_criteria": stopping_criteria}
            return self._hf().generate(inputs, generation_config, **kwargs)
        generator = seeded(seed, generator, self.device)
        mode = generation_mode or vars(resolved).get("generation_mode") or "interleaved"
        images = max_images_of(mode, max_images)
        check_arguments(resolved, kwargs, images, generator, self.device)
        sampling = image_sampling_of(image_sampling, resolved.guidance_scale, negative_prompt_ids, images)
        writes_text = mode != "image" and kwargs.get("max_new_tokens") != 0
        if mode == "image":
            inputs, kwargs = self._begin_images(inputs, kwargs)
        if not writes_text:
            generation_config, kwargs = _without_lengths(generation_config, kwargs)
        allowed = AllowedIds(self.config.vocabulary.text_ids, self.config.vocabulary.special_ids)
        processors, criteria = list(logits_processor or ()), list(stopping_criteria or ())
        kwargs["call_settings"] = CallSettings(
            sampling, images, writes_text, generator, negative_prompt_ids, allowed, processors, criteria
        )
        # ours last: a caller's processor cannot bring a suppressed id back
        lists = LogitsProcessorList([*processors, allowed]), StoppingCriteriaList(criteria)
        return self._hf().generate(inputs, generation_config, *lists, **kwargs)

    def _resolved(self, generation_config: GenerationConfig | None, kwargs: dict[str, Any]) -> GenerationConfig:
        """HF's merged configuration of a call; a `max_new_tokens` of 0, which HF refuses, is left out."""
        if not isinstance(generation_config, GenerationConfig | None):
            raise ValueError("generate's second argument is a GenerationConfig; pass attention_mask by its name")
        given = {key: value for key, value in kwargs.items() if (key, value) != ("max_new_tokens", 0)}
        return self._prepare_generation_config(generation_config, **given)[0]

    def _begin_images(self, inputs: Tensor | None, kwargs: dict[str, Any]) -> tuple[Tensor, dict[str, Any]]:
        """The prompts with an image start token behind each that has none, and `kwargs` with their mask."""
        ids = kwargs.pop("input_ids", None) if inputs is None else inputs
        if ids is None:
            raise ValueError("generation_mode image needs a prompt; pass input_ids")
        begun = ids[:, -1:] == self.config.boi_token_id
        if bool(begun.all()):
            return ids, kwargs
        if bool(begun.any()):
            raise ValueError("some prompts end with the image start token and some do not; end all or none with it")
        mask = kwargs.get("attention_mask")
        if mask is not None:
            kwargs = kwargs | {"attention_mask": torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)}
        return torch.cat([ids, torch.full_like(ids[:, :1], self.config.boi_token_id)], dim=1), kwargs

    @torch.no_grad()
    def decode_image_tokens(self, image_tokens: Tensor) -> Tensor:
        """Pixel values (B, 3, H, W) in [-1, 1] of the last image in each sequence of ids (B, T).

        Raises ValueError for a sequence without a whole image.
        """
        length, vocabulary = self.config.image_length, self.config.vocabulary
        codes = []
        for number, row in enumerate(image_tokens):
            ids = row[vocabulary.is_image(row)]
            if not len(ids) or len(ids) % length:
                raise ValueError(
                    f"sequence {number} has {len(ids)} image ids, where an image has {length}; "
                    "generate with generation_mode='image'"
                )
            codes.append(vocabulary.ids_to_codes(ids[-length:]))
        return self.model.vq_model.decode(torch.stack(codes))

    def _hf(self) -> Any:
        """HF's methods, whose protocol for `self` has an untyped __getattr__."""
        return super()

    # --- what HF's generate calls

    def _prepare_generation_config(
        self, generation_config: GenerationConfig | None, **kwargs: Any
    ) -> tuple[GenerationConfig, dict[str, Any]]:
        """As HF's; of an answer without any length given `DEFAULT_NEW_TOKENS` is the limit, where HF's is 20."""
        given = (generation_config, self.generation_config)
        lengths = [kwargs.get("max_length"), *(one.max_length for one in given if one is not None)]
        found, model_kwargs = self._hf()._prepare_generation_config(generation_config, **kwargs)
        if found.max_new_tokens is None and not any(length is not None for length in lengths):
            found.max_new_tokens = DEFAULT_NEW_TOKENS
        return found, model_kwargs

    def _get_logits_processor(  # type: ignore[override]  # HF's other arguments are left in kwargs
        self, generation_config: GenerationConfig, **kwargs: Any
    ) -> LogitsProcessorList:
        """As HF's, but `guidance_scale` is that of images."""
        of_text = copy.copy(generation_config)
        of_text.guidance_scale = None
        return self._hf()._get_logits_processor(of_text, **kwargs)

    def _prepare_cache_for_generation(  # type: ignore[override]  # HF's says bool and returns nothing
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any
    ) -> None:
        """As HF's; the cache made here keeps all positions, as a row's window leaves out columns it skipped."""
        given = model_kwargs.get("past_key_values")
        self._hf()._prepare_cache_for_generation(generation_config, model_kwargs, *args)
        made = model_kwargs.get("past_key_values")
        if given is None and made is not None and generation_config.cache_implementation in (None, "dynamic"):
            model_kwargs["past_key_values"] = new_cache(self.config.text_config)

    def _expand_inputs_for_generation(  # type: ignore[override]  # HF's says LongTensor
        self, expand_size: int = 1, is_encoder_decoder: bool = False, input_ids: Tensor | None = None, **kwargs: Any
    ) -> tuple[Tensor, dict[str, Any]]:
        """As HF's, but input images are repeated with their row: HF repeats each in place."""
        if expand_size == 1:
            return self._hf()._expand_inputs_for_generation(1, is_encoder_decoder, input_ids, **kwargs)
        images = {name: kwargs.pop(name) for name in INPUT_IMAGES if kwargs.get(name) is not None}
        expanded, kwargs = self._hf()._expand_inputs_for_generation(
            expand_size, is_encoder_decoder, input_ids, **kwargs
        )
        assert input_ids is not None, "input_ids None"
        kwargs |= {name: repeat_images(input_ids, given, expand_size, self.config) for name, given in images.items()}
        return expanded, kwargs

    def _validate_model_kwargs(self, model_kwargs: dict[str, Any]) -> None:
        """As HF's, for what is HF's."""
        self._hf()._validate_model_kwargs(
            {key: value for key, value in model_kwargs.items() if key != "call_settings"}
        )

    def _sample(self, input_ids: Tensor, call_settings: CallSettings | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """HF's greedy search and sampling, with images between."""
        return self._decode(self._hf()._sample, input_ids, call_settings, kwargs)

    def _assisted_decoding(  # type: ignore[override]  # HF reads `inputs_tensor` off the signature
        self,
        input_ids: Tensor,
        call_settings: CallSettings | None = None,
        inputs_tensor: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """HF's assisted generation and prompt lookup, with images between."""
        return self._decode(
            self._hf()._assisted_decoding, input_ids, call_settings, kwargs | {"inputs_tensor": inputs_tensor}
        )

    def _beam_search(self, input_ids: Tensor, call_settings: CallSettings | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        """HF's beam search, of text."""
        return self._hf()._beam_search(input_ids, **kwargs)

    def _decode(
        self, decode: Callable[..., Any], input_ids: Tensor, settings: CallSettings | None, kwargs: dict[str, Any]
    ) -> Any:
        if settings is None:  # an assistant's, or a caller's own loop
            return decode(input_ids, **kwargs)
        return InterleavedDecoding(self, decode, settings, input_ids, **kwargs).run()

    def prepare_inputs_for_generation(  # type: ignore[override]  # HF's other arguments are left out in kwargs
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Inputs of `forward` at each step of HF's loop: the ids that are not cached, with positions derived from all.

        HF derives positions from the attention mask, which is wrong after an image that took K RoPE positions.
        """
        valid = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        new = check_cache(input_ids, valid, past_key_values)
        layout = read_layout(input_ids, self.config)
        position_ids = rope_positions(layout.position_steps, valid)
        images = {name: kwargs[name] for name in INPUT_IMAGES if kwargs.get(name) is not None}
        return {
            "input_ids": input_ids[:, -new:],
            "attention_mask": valid,
            "position_ids": position_ids[:, -new:],
            "image_seen": (layout.blocks[:, :-new] >= 0).any(dim=1),
            "past_key_values": past_key_values,
            **images_of_columns(input_ids, images, new, self.config),
            **{key: kwargs[key] for key in FORWARDED if key in kwargs},
        }


def _without_lengths(
    generation_config: GenerationConfig | None, kwargs: dict[str, Any]
) -> tuple[GenerationConfig | None, dict[str, Any]]:
    """Arguments of a call that writes no text, whatever lengths are given or stored: HF needs room for a token."""
    lengths = {"max_new_tokens": 1, "max_length": None, "min_new_tokens": None, "min_length": 0}
    kwargs = {key: value for key, value in kwargs.items() if key not in lengths}
    if generation_config is None:
        return None, kwargs | lengths
    generation_config = copy.deepcopy(generation_config)
    for key, value in lengths.items():
        setattr(generation_config, key, value)
    return generation_config, kwargs
