"""Images in cached decoding: scale by scale, or code by code, on the KV cache of the text before.

Legend: B batch, T sequence so far, P positions in the cache, K scales, L codes of an image, C code dim.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from unified.image_tokenizer.scales import scale_spans
from unified.models.backbones import new_cache
from unified.models.configuration import UnifiedConfig
from unified.models.image_sampling import ImageSampling
from unified.models.losses import head_input, soft_cap
from unified.models.sampling import Generators, apply_guidance, ramped_guidance_scale, sample
from unified.models.sequence_layout import Layout, images_of_columns, read_layout, rope_positions


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
    cache: Cache
    input_images: dict[str, Tensor] = field(default_factory=dict)

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


class ImageGenerationMixin:
    """Batched generation of images on a KV cache."""

    config: UnifiedConfig
    model: ImageBackbone
    lm_head: nn.Linear

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
            cache, none = new_cache(self.config.text_config), torch.zeros_like(generating)
            contexts.append(GenerationState(ids, torch.ones_like(ids), none, state.pad_token_id, cache))
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
        text_ids = [torch.full_like(scale_positions, config.image_token_offset)]
        if past < context.input_ids.shape[1]:
            ids = context.input_ids[:, past:]
            images = images_of_columns(context.input_ids, context.input_images, ids.shape[1], config)
            states.insert(0, self.model.embed(ids, read_layout(ids, config), **images).to(states[0]))
            text_ids.insert(0, ids)
        block = torch.full_like(scale_positions, int(layout.blocks.max()) + 1)
        scale_mask = generating[:, None].expand(-1, generated + length).to(context.mask.dtype)
        outputs = self.model.run_backbone(
            torch.cat(states, dim=1),
            torch.cat([positions[:, past:], scale_positions], dim=1),
            torch.cat([layout.blocks[:, past:], block], dim=1),
            torch.cat([context.mask, scale_mask], dim=1),
            cache=context.cache,
            image_seen=(layout.blocks[:, :past] >= 0).any(dim=1),
            text_ids=torch.cat(text_ids, dim=1),
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
        cap = self.config.logit_cap
        states = [head_input(h, self.config.logit_factor) for h in hidden]
        with align_module_device(self.lm_head):  # fetches a matrix that is offloaded
            columns = self.config.vocabulary.code_rows(self.lm_head.weight)
            logits = [soft_cap(nn.functional.linear(h, columns).float(), cap) for h in states]
        guided = apply_guidance(logits[0], logits[1], guidance_scale) if len(logits) > 1 else logits[0]
        return sample(guided, settings.temperature, settings.top_k, settings.top_p, generator)
