"""`generate`: text by HF's own loop until the image start token, then an image scale by scale on the same KV cache.

Legend: B batch, T sequence so far, P positions in the cache, K scales, L codes of an image, C code dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.generation import StoppingCriteria, StoppingCriteriaList
from transformers.modeling_outputs import BaseModelOutputWithPast

from unified.image_tokenizer.scales import scale_spans
from unified.models.configuration import UnifiedConfig
from unified.models.image_sampling import ImageSampling
from unified.models.losses import soft_cap
from unified.models.sampling import Generators, apply_guidance, ramped_guidance_scale, sample
from unified.models.sequence_layout import Layout, read_layout, remaining_context, rope_positions


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


@dataclass
class GenerationState:
    """Growing sequences: ids and attention mask (B, T), KV cache of the first P positions, finished rows (B,).

    Rows that skip a column have `pad_token_id` there, which is masked. `input_images` are the prompt's, as `forward`
    takes them.
    """

    input_ids: Tensor
    mask: Tensor
    finished: Tensor
    pad_token_id: int
    input_images: dict[str, Tensor] = field(default_factory=dict)
    cache: DynamicCache = field(default_factory=DynamicCache)

    def append(self, ids: Tensor, active: Tensor) -> None:
        """Append columns `ids` (B, n) to the rows where `active` (B, n) or (B, 1); padding to the others."""
        self.input_ids = torch.cat([self.input_ids, torch.where(active, ids, self.pad_token_id)], dim=1)
        self.mask = torch.cat([self.mask, active.expand_as(ids).to(self.mask.dtype)], dim=1)

    def move_last_token(self, rows: Tensor) -> None:
        """In `rows` (B,) move the last unmasked token into the last column, which is not in the cache yet."""
        steps = torch.arange(self.mask.shape[1], device=self.mask.device)
        last = (self.mask.long() * steps).argmax(dim=1)[rows]
        tokens = self.input_ids[rows, last]
        self.input_ids[rows, last], self.mask[rows, last] = self.pad_token_id, 0
        self.input_ids[rows, -1], self.mask[rows, -1] = tokens, 1


class ImageBackbone(Protocol):
    """The interface of the base model, `UnifiedModel`, that image generation uses."""

    def embed(self, input_ids: Tensor, layout: Layout, *args: Any, **kwargs: Any) -> Tensor: ...

    def scale_states(self, codes: Tensor, scale: int) -> Tensor: ...

    def run_backbone(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast: ...


class UnifiedGenerationMixin(GenerationMixin):
    """Batched generation of text (token by token) and images (scale by scale) on one KV cache."""

    config: UnifiedConfig
    generation_config: GenerationConfig
    model: ImageBackbone
    lm_head: nn.Linear

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
        state = GenerationState(input_ids, attention_mask, finished, self.eos_token_ids(kwargs)[0], input_images)
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

    def generate_image(
        self,
        state: GenerationState,
        generating: Tensor,
        settings: ImageSampling,
        negative_prompt_ids: Tensor | None,
        generator: Generators,
    ) -> None:
        """Generate one image in the rows `generating` (B,); the others get masked columns."""
        contexts = [state]
        if settings.guidance_scale != 1:
            assert negative_prompt_ids is not None, f"guidance_scale {settings.guidance_scale} without negative prompt"
            boi = negative_prompt_ids.new_full((1, 1), self.config.boi_token_id)
            ids = torch.cat([negative_prompt_ids, boi], dim=1).to(state.input_ids.device).expand(len(generating), -1)
            contexts.append(
                GenerationState(ids, torch.ones_like(ids), torch.zeros_like(generating), state.pad_token_id)
            )
        order = self.generate_scales if self.config.image_order == "scales" else self.generate_raster
        order(contexts, generating, settings, generator)
        state.append(torch.full_like(state.input_ids[:, :1], self.config.eoi_token_id), generating[:, None])

    def forward_cached(self, context: GenerationState, scale_states: Tensor, generating: Tensor, scale: int) -> Tensor:
        """Run a context's ids that are not cached yet, then the input states `scale_states` (B, n, D) of a scale.

        Returns the hidden states (B, n, D) of `scale_states`, or (B, 1, D) of the last id where n is 0. Earlier scales
        are in the cache but not in the context's ids, which get the image once it is complete.
        """
        config, length = self.config, scale_states.shape[1]
        generated = scale_spans(config.patch_nums)[scale][0] if length else 0
        past = context.cache.get_seq_length() - generated
        layout = read_layout(context.input_ids, config)
        positions = rope_positions(layout.position_steps, context.mask)
        shared = config.image_positions == "shared"
        steps = torch.full((length,), scale) if shared else torch.arange(length) + generated
        scale_positions = positions[:, -1:] + 1 + steps.to(positions.device)
        states = [scale_states.to(self.lm_head.weight.dtype)]
        if past < context.input_ids.shape[1]:
            ids = context.input_ids[:, past:]
            images = context.input_images if past == 0 else {}
            states.insert(0, self.model.embed(ids, read_layout(ids, config), **images).to(states[0]))
        block = torch.full_like(scale_positions, int(layout.blocks.max()) + 1)
        scale_mask = generating[:, None].expand(-1, generated + length).to(context.mask.dtype)
        outputs = self.model.run_backbone(
            torch.cat(states, dim=1),
            torch.cat([positions[:, past:], scale_positions], dim=1),
            torch.cat([layout.blocks[:, past:], block], dim=1),
            torch.cat([context.mask, scale_mask], dim=1),
            cache=context.cache,
            image_seen=(layout.blocks[:, :past] >= 0).any(dim=1),
            use_cache=True,
        )
        return outputs[0][:, -max(length, 1) :]

    def generate_scales(
        self, contexts: list[GenerationState], generating: Tensor, settings: ImageSampling, generator: Generators
    ) -> None:
        """Append one image per row to the contexts; each scale is one parallel step per context."""
        spans = scale_spans(self.config.patch_nums)
        codes = contexts[0].input_ids.new_zeros(len(generating), self.config.image_length)
        for scale, (start, stop) in enumerate(spans):
            states = self.model.scale_states(codes, scale)
            hidden = [self.forward_cached(context, states, generating, scale) for context in contexts]
            guidance_scale = ramped_guidance_scale(settings.guidance_scale, scale, len(spans))
            codes[:, start:stop] = self.sample_codes(hidden, guidance_scale, settings, generator)
            if settings.on_scale is not None:
                settings.on_scale(scale, codes[:, :stop])
        for context in contexts:
            context.append(self.config.vocabulary.codes_to_ids(codes), generating[:, None])

    def generate_raster(
        self, contexts: list[GenerationState], generating: Tensor, settings: ImageSampling, generator: Generators
    ) -> None:
        """Append one image per row to the contexts, code by code."""
        no_states = torch.zeros(len(generating), 0, self.config.text_config.hidden_size, device=generating.device)
        for _ in range(self.config.image_length):
            hidden = [self.forward_cached(context, no_states, generating, 0) for context in contexts]
            codes = self.sample_codes(hidden, settings.guidance_scale, settings, generator)
            for context in contexts:
                context.append(self.config.vocabulary.codes_to_ids(codes), generating[:, None])

    def sample_codes(
        self, hidden: list[Tensor], guidance_scale: float, settings: ImageSampling, generator: Generators
    ) -> Tensor:
        """Sample codes (B, n) from the hidden states (B, n, D) of one or two contexts."""
        # logits of the codes alone: at image positions no text token can be sampled
        columns, cap = self.config.vocabulary.code_rows(self.lm_head.weight), self.config.logit_cap
        logits = [soft_cap(nn.functional.linear(h, columns).float(), cap) for h in hidden]
        guided = apply_guidance(logits[0], logits[1], guidance_scale) if len(logits) > 1 else logits[0]
        return sample(guided, settings.temperature, settings.top_k, settings.top_p, generator)
