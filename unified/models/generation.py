"""`generate`: text by HF's own loop until the image start token, then an image scale by scale on the same KV cache.

Legend: B batch, T sequence so far, L codes of an image.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.generation import StoppingCriteria, StoppingCriteriaList

from unified.models.backbones import new_cache
from unified.models.configuration import UnifiedConfig
from unified.models.image_generation import GenerationState, ImageGenerationMixin
from unified.models.image_sampling import ImageSampling
from unified.models.sampling import Generators
from unified.models.sequence_layout import read_layout, remaining_context, rope_positions


class AllowedIds(LogitsProcessor):
    """Restricts sampling to `ids` except `suppressed`."""

    def __init__(self, ids: range, suppressed: tuple[int, ...] = ()) -> None:
        self.ids, self.suppressed = slice(ids.start, ids.stop), list(suppressed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        allowed = torch.full_like(scores, float("-inf"))
        allowed[:, self.ids] = scores[:, self.ids]
        allowed[:, self.suppressed] = float("-inf")
        return allowed


class StopOnIds(StoppingCriteria):
    """Stops a row once its last id is one of `ids`, or immediately where `idle` (B,)."""

    def __init__(self, ids: list[int], idle: Tensor) -> None:
        self.ids, self.idle = torch.tensor(ids), idle

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.isin(input_ids[:, -1], self.ids.to(input_ids.device)) | self.idle


class UnifiedGenerationMixin(ImageGenerationMixin, GenerationMixin):
    """Batched generation of text (token by token) and images (scale by scale) on one KV cache."""

    config: UnifiedConfig
    generation_config: GenerationConfig

    def prepare_inputs_for_generation(  # type: ignore[override]  # HF's other arguments are left out in kwargs
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Inputs of `forward` at each step of HF's loop: the new ids, with positions derived from all `input_ids`.

        HF derives positions from the attention mask, which is wrong after an image that took K RoPE positions.
        """
        valid = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        layout = read_layout(input_ids, self.config)
        position_ids = rope_positions(layout.position_steps, valid)
        fresh = past_key_values is None or past_key_values.get_seq_length() == 0
        forwarded = ("use_cache", "logits_to_keep") + (("pixel_values", "image_codes") if fresh else ())
        new = slice(None) if next_sequence_length is None else slice(-next_sequence_length, None)
        cached = layout.blocks[:, : -position_ids[:, new].shape[1]]
        return {
            "input_ids": input_ids[:, new],
            "attention_mask": valid,
            "position_ids": position_ids[:, new],
            "image_seen": (cached >= 0).any(dim=1),
            "past_key_values": past_key_values,
            **{key: kwargs[key] for key in forwarded if key in kwargs},
        }

    @torch.no_grad()
    def generate(  # type: ignore[override]  # the images' arguments come before HF's
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        image_sampling: ImageSampling | None = None,
        negative_prompt_ids: Tensor | None = None,
        max_images: int = 1,
        max_new_tokens: int = 256,
        generator: Generators = None,
        **kwargs: Any,
    ) -> Tensor:
        """Continue left-padded prompts (B, T) with text and images; returns ids (B, T'), padded on the right.

        Args:
            image_sampling: sampling of image codes; after a prompt that ends with the image start token, an image is
                generated first.
            negative_prompt_ids: (1, n) prompt of the unconditional pass of classifier-free guidance, without the image
                start token; `processor.unconditional_ids()`. Required unless guidance_scale is 1.
            max_images: maximum number of images generated per row; further image starts are suppressed.
            max_new_tokens: maximum number of text columns, shared by the batch's rows; 0 generates one image only.
            generator: source of all randomness; None samples from torch's global one. One per row gives images that
                do not depend on the batch but for rounding; text needs a single one.
            kwargs: those of `transformers.GenerationMixin.generate` for the text (do_sample, streamer,
                logits_processor, stopping_criteria, ...), and pixel_values or image_codes of input images.

        Raises ValueError for guidance without a negative prompt, and for a prompt that fills the backbone's context.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        settings = image_sampling or ImageSampling()
        if settings.guidance_scale != 1 and negative_prompt_ids is None:
            raise ValueError(
                f"guidance_scale {settings.guidance_scale} needs negative_prompt_ids; "
                "pass processor.unconditional_ids()"
            )
        remaining_context(input_ids, attention_mask, self.config)
        finished = torch.zeros_like(input_ids[:, 0], dtype=torch.bool)
        input_images: dict[str, Tensor] = {k: kwargs[k] for k in ("pixel_values", "image_codes") if k in kwargs}
        cache, pad_token_id = new_cache(self.config.text_config), self.eos_token_ids(kwargs)[0]
        state = GenerationState(input_ids, attention_mask, finished, pad_token_id, cache, input_images)
        images, text = 0, 0
        while True:
            generating = (state.input_ids[:, -1] == self.config.boi_token_id) & ~state.finished
            if text < max_new_tokens and not bool((generating | state.finished).all()):
                before = state.input_ids.shape[1]
                generating = self.generate_text(
                    state, generating, max_new_tokens - text, images < max_images, generator, kwargs
                )
                text += state.input_ids.shape[1] - before
            if not generating.any():
                return state.input_ids
            self.generate_image(state, generating, settings, negative_prompt_ids, generator)
            images += 1

    def generate_text(
        self,
        state: GenerationState,
        starts_image: Tensor,
        max_new_tokens: int,
        allow_images: bool,
        generator: Generators,
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Run HF's loop until every row has finished or starts an image; returns the rows (B,) that start one.

        Rows where `starts_image` (B,) do already. Every image start token is moved into the last column.
        """
        if isinstance(generator, Sequence):
            raise ValueError("text is sampled with one generator, not one per row; pass one, or max_new_tokens=0")
        config = self.config
        suppressed = (config.eoi_token_id, config.image_pad_token_id) + (
            () if allow_images else (config.boi_token_id,)
        )
        ends = self.eos_token_ids(kwargs)
        idle = state.finished | starts_image
        # ours last: a caller's processor cannot bring a suppressed id back
        processors = [*(kwargs.get("logits_processor") or ()), AllowedIds(config.vocabulary.text_ids, suppressed)]
        criteria = [*(kwargs.get("stopping_criteria") or ()), StopOnIds([config.boi_token_id, *ends], idle)]
        lists = {
            "logits_processor": LogitsProcessorList(processors),
            "stopping_criteria": StoppingCriteriaList(criteria),
        }
        with torch.random.fork_rng(enabled=generator is not None):
            if generator is not None:  # HF's loop uses the global generator only
                torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator, device=generator.device)))
            new_ids = super().generate(  # type: ignore[misc]  # HF's protocol for `self` has an untyped __getattr__
                state.input_ids,
                attention_mask=state.mask,
                past_key_values=state.cache,
                max_new_tokens=max_new_tokens,
                **{"pad_token_id": state.pad_token_id, **kwargs, **lists},
            )[:, state.input_ids.shape[1] :]
        stops = torch.isin(new_ids, torch.tensor([config.boi_token_id, *ends], device=new_ids.device))
        # a row's tokens count up to and including its first stop; HF's padding after it is masked
        active = (stops.cumsum(dim=1) - stops.long() == 0) & ~idle[:, None]
        state.append(new_ids, active)
        starts_image = starts_image | ((new_ids == config.boi_token_id) & active).any(dim=1)
        state.finished = state.finished | ~starts_image
        state.move_last_token(starts_image)
        return starts_image

    def eos_token_ids(self, kwargs: dict[str, Any]) -> list[int]:
        """Ids that end an answer: `eos_token_id` of the arguments, else of the generation config."""
        ends = kwargs.get("eos_token_id", self.generation_config.eos_token_id)
        if ends is None:
            raise ValueError("no eos_token_id in the generation config; pass eos_token_id=tokenizer.eos_token_id")
        return [ends] if isinstance(ends, int) else list(ends)
