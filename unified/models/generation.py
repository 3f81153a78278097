"""`generate`: text by HF's own loop until the image start token, then an image scale by scale on the same KV cache.

Legend: B batch, T sequence so far, P positions in the cache, K scales, L codes of an image, C code dim.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache, GenerationConfig, GenerationMixin, LogitsProcessor, LogitsProcessorList
from transformers.generation import StoppingCriteria, StoppingCriteriaList
from transformers.modeling_outputs import BaseModelOutputWithPast

from unified.image_tokenizer.scales import scale_spans
from unified.models.configuration import UnifiedConfig
from unified.models.losses import soft_cap
from unified.models.sampling import Generators, apply_guidance, ramped_guidance_scale, sample
from unified.models.sequence_layout import Layout, context_left, read_layout, rope_positions


@dataclass(frozen=True)
class ImageSampling:
    """How codes are drawn.

    temperature 0 is greedy; top_k 0 and top_p 1 are off; guidance 1 needs no second pass. `on_scale(scale, codes)` is
    called with the codes (B, <= L) painted so far after every scale.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance_scale: float = 1.0
    on_scale: Callable[[int, Tensor], None] | None = None


class OnlyIds(LogitsProcessor):
    """Lets a sampler choose among `ids` but for `never`."""

    def __init__(self, ids: range, never: tuple[int, ...] = ()) -> None:
        self.ids, self.never = slice(ids.start, ids.stop), list(never)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        allowed = torch.full_like(scores, float("-inf"))
        allowed[:, self.ids] = scores[:, self.ids]
        allowed[:, self.never] = float("-inf")
        return allowed


class EndsWith(StoppingCriteria):
    """Stops a row once its last id is one of `ids`, or at once where it is `idle` (B,)."""

    def __init__(self, ids: list[int], idle: Tensor) -> None:
        self.ids, self.idle = torch.tensor(ids), idle

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.isin(input_ids[:, -1], self.ids.to(input_ids.device)) | self.idle


@dataclass
class GenerationState:
    """A sequence that grows: ids and mask (B, T), the cache of the first P of them, rows that have ended (B,).

    A row that sits columns out has the id `pad_token_id` there and does not attend to them. `read` holds the prompt's
    input images, as `forward` takes them.
    """

    input_ids: Tensor
    mask: Tensor
    finished: Tensor
    pad_token_id: int
    read: dict[str, Tensor] = field(default_factory=dict)
    cache: DynamicCache = field(default_factory=DynamicCache)

    def append(self, ids: Tensor, live: Tensor) -> None:
        """Add columns `ids` (B, n), to the rows where `live` (B, n) or (B, 1)."""
        self.input_ids = torch.cat([self.input_ids, torch.where(live, ids, self.pad_token_id)], dim=1)
        self.mask = torch.cat([self.mask, live.expand_as(ids).to(self.mask.dtype)], dim=1)

    def move_last_token(self, rows: Tensor) -> None:
        """In `rows` (B,) move the last token that is attended to into the last column, which no cache holds yet."""
        steps = torch.arange(self.mask.shape[1], device=self.mask.device)
        last = (self.mask.long() * steps).argmax(dim=1)[rows]
        tokens = self.input_ids[rows, last]
        self.input_ids[rows, last], self.mask[rows, last] = self.pad_token_id, 0
        self.input_ids[rows, -1], self.mask[rows, -1] = tokens, 1


class ImageBackbone(Protocol):
    """What painting asks of the base model, `UnifiedModel`."""

    def embed(self, input_ids: Tensor, layout: Layout, *args: Any, **kwargs: Any) -> Tensor: ...

    def scale_states(self, codes: Tensor, scale: int) -> Tensor: ...

    def run(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast: ...


class UnifiedGenerationMixin(GenerationMixin):
    """Text token by token, images scale by scale, any number of either, batched, on one cache."""

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
        """What HF's loop gives `forward` at each step: the new ids, with positions read off all of `input_ids` (B, T).

        HF counts positions from the attention mask, which is wrong behind an image that took K ticks.
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
            image_sampling: how images are drawn; a prompt that ends with the image start token begins with one.
            negative_prompt_ids: (1, n) prompt of guidance's unconditional half, without the image start token;
                `processor.unconditional_ids()`. Needed for guidance other than 1.
            max_images: images a row may hold beyond its prompt; further image starts are not sampled.
            max_new_tokens: text columns beyond the prompt, shared by the batch's rows; 0 paints and does nothing else.
            generator: source of all randomness; None draws from torch's global one. One for each row draws images
                that do not depend on the batch but for rounding; text takes one for all.
            kwargs: those of `transformers.GenerationMixin.generate` for the text (do_sample, streamer,
                logits_processor, stopping_criteria, ...), and pixel_values or image_codes for images the prompt shows.

        Raises ValueError for guidance without its prompt, and for a prompt that fills the backbone's context.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        settings = image_sampling or ImageSampling()
        if settings.guidance_scale != 1 and negative_prompt_ids is None:
            raise ValueError(
                f"guidance {settings.guidance_scale} needs negative_prompt_ids; pass processor.unconditional_ids()"
            )
        context_left(input_ids, attention_mask, self.config)
        nobody = torch.zeros_like(input_ids[:, 0], dtype=torch.bool)
        read: dict[str, Tensor] = {key: kwargs[key] for key in ("pixel_values", "image_codes") if key in kwargs}
        state = GenerationState(input_ids, attention_mask, nobody, self.end_token_ids(kwargs)[0], read)
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
        waiting: Tensor,
        budget: int,
        may_draw: bool,
        generator: Generators,
        kwargs: dict[str, Any],
    ) -> Tensor:
        """Let HF's loop write until every row has ended or wants an image; returns which rows want one, (B,).

        Rows `waiting` (B,) want one already. All image starts end up in the last column, for the image to follow.
        """
        if isinstance(generator, Sequence):
            raise ValueError("text is drawn from one generator, not one a row; give one, or max_new_tokens=0")
        config = self.config
        never = (config.eoi_token_id, config.image_pad_token_id) + (() if may_draw else (config.boi_token_id,))
        ends = self.end_token_ids(kwargs)
        idle = state.finished | waiting
        # ours last: what a caller adds cannot bring a forbidden id back
        processors = [*(kwargs.get("logits_processor") or ()), OnlyIds(config.vocabulary.text_ids, never)]
        criteria = [*(kwargs.get("stopping_criteria") or ()), EndsWith([config.boi_token_id, *ends], idle)]
        lists = {
            "logits_processor": LogitsProcessorList(processors),
            "stopping_criteria": StoppingCriteriaList(criteria),
        }
        with torch.random.fork_rng(enabled=generator is not None):
            if generator is not None:  # HF's loop reads the global generator only
                torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator, device=generator.device)))
            written = super().generate(  # type: ignore[misc]  # HF's protocol for `self` has an untyped __getattr__
                state.input_ids,
                attention_mask=state.mask,
                past_key_values=state.cache,
                max_new_tokens=budget,
                **{"pad_token_id": state.pad_token_id, **kwargs, **lists},
            )[:, state.input_ids.shape[1] :]
        stops = torch.isin(written, torch.tensor([config.boi_token_id, *ends], device=written.device))
        # a row's tokens count up to and including its first stop; what HF padded behind it is nobody's to see
        live = (stops.cumsum(dim=1) - stops.long() == 0) & ~idle[:, None]
        state.append(written, live)
        wants_image = waiting | ((written == config.boi_token_id) & live).any(dim=1)
        state.finished = state.finished | ~wants_image
        state.move_last_token(wants_image)
        return wants_image

    def end_token_ids(self, kwargs: dict[str, Any]) -> list[int]:
        """Ids that end an answer."""
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
        """Paint one image in the rows `generating` (B,); the others wait behind masked columns."""
        contexts = [state]
        if settings.guidance_scale != 1:
            assert negative_prompt_ids is not None, f"guidance {settings.guidance_scale} was let in without its prompt"
            boi = negative_prompt_ids.new_full((1, 1), self.config.boi_token_id)
            ids = torch.cat([negative_prompt_ids, boi], dim=1).to(state.input_ids.device).expand(len(generating), -1)
            contexts.append(
                GenerationState(ids, torch.ones_like(ids), torch.zeros_like(generating), state.pad_token_id)
            )
        order = self.generate_scales if self.config.image_order == "scales" else self.generate_raster
        order(contexts, generating, settings, generator)
        state.append(torch.full_like(state.input_ids[:, :1], self.config.eoi_token_id), generating[:, None])

    def forward_cached(self, context: GenerationState, ahead: Tensor, generating: Tensor, scale: int) -> Tensor:
        """Run the ids a context's cache lacks, then the input states `ahead` (B, n, D) of a scale.

        Returns the states (B, n, D) of `ahead`, or (B, 1, D) of the last id where n is 0. The scales before are in the
        cache but not among the context's ids, which get the image once it is whole.
        """
        config, length = self.config, ahead.shape[1]
        painted = scale_spans(config.patch_nums)[scale][0] if length else 0
        past = context.cache.get_seq_length() - painted
        layout = read_layout(context.input_ids, config)
        now = rope_positions(layout.position_steps, context.mask)
        steps = torch.full((length,), scale) if config.image_positions == "shared" else torch.arange(length) + painted
        ahead_positions = now[:, -1:] + 1 + steps.to(now.device)
        states = [ahead.to(self.lm_head.weight.dtype)]
        if past < context.input_ids.shape[1]:
            ids = context.input_ids[:, past:]
            images = context.read if past == 0 else {}
            states.insert(0, self.model.embed(ids, read_layout(ids, config), **images).to(states[0]))
        group = torch.full_like(ahead_positions, int(layout.blocks.max()) + 1)
        seen = generating[:, None].expand(-1, painted + length).to(context.mask.dtype)
        outputs = self.model.run(
            torch.cat(states, dim=1),
            torch.cat([now[:, past:], ahead_positions], dim=1),
            torch.cat([layout.blocks[:, past:], group], dim=1),
            torch.cat([context.mask, seen], dim=1),
            cache=context.cache,
            image_seen=(layout.blocks[:, :past] >= 0).any(dim=1),
            use_cache=True,
        )
        return outputs[0][:, -max(length, 1) :]

    def generate_scales(
        self, contexts: list[GenerationState], generating: Tensor, settings: ImageSampling, generator: Generators
    ) -> None:
        """One image a row appended to the contexts: each scale is one parallel step per context."""
        spans = scale_spans(self.config.patch_nums)
        codes = contexts[0].input_ids.new_zeros(len(generating), self.config.image_length)
        for scale, (start, stop) in enumerate(spans):
            ahead = self.model.scale_states(codes, scale)
            hidden = [self.forward_cached(context, ahead, generating, scale) for context in contexts]
            guidance_scale = ramped_guidance_scale(settings.guidance_scale, scale, len(spans))
            codes[:, start:stop] = self.sample_codes(hidden, guidance_scale, settings, generator)
            if settings.on_scale is not None:
                settings.on_scale(scale, codes[:, :stop])
        for context in contexts:
            context.append(self.config.vocabulary.codes_to_ids(codes), generating[:, None])

    def generate_raster(
        self, contexts: list[GenerationState], generating: Tensor, settings: ImageSampling, generator: Generators
    ) -> None:
        """One image a row appended to the contexts, code by code."""
        nothing = torch.zeros(len(generating), 0, self.config.text_config.hidden_size, device=generating.device)
        for _ in range(self.config.image_length):
            hidden = [self.forward_cached(context, nothing, generating, 0) for context in contexts]
            codes = self.sample_codes(hidden, settings.guidance_scale, settings, generator)
            for context in contexts:
                context.append(self.config.vocabulary.codes_to_ids(codes), generating[:, None])

    def sample_codes(
        self, hidden: list[Tensor], guidance_scale: float, settings: ImageSampling, generator: Generators
    ) -> Tensor:
        """Codes (B, n) for the states (B, n, D) of one or two contexts."""
        # only the codebook's columns: sampling masks by modality
        columns, cap = self.config.vocabulary.code_rows(self.lm_head.weight), self.config.logit_cap
        logits = [soft_cap(nn.functional.linear(h, columns).float(), cap) for h in hidden]
        guided = apply_guidance(logits[0], logits[1], guidance_scale) if len(logits) > 1 else logits[0]
        return sample(guided, settings.temperature, settings.top_k, settings.top_p, generator)
