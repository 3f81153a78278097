"""Images in cached decoding: scale by scale, or code by code, on the KV cache of the text before.

Legend: B batch, T sequence so far, P positions in the cache, n new ones, K scales, L codes of an image, D hidden.
"""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from unified.image_tokenizer.model import VQModel
from unified.image_tokenizer.scales import scale_spans
from unified.models.backbones import new_cache
from unified.models.configuration import UnifiedConfig
from unified.models.image_embedding import ImageEmbedding
from unified.models.image_sampling import ImageSampling
from unified.models.losses import head_input, soft_cap
from unified.models.sampling import Generators, apply_guidance, check_sampled, ramped_guidance_scale, sample_unchecked
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

    image_embedding: ImageEmbedding

    @property
    def vq_model(self) -> VQModel: ...

    def embed(self, input_ids: Tensor, layout: Layout, *args: Any, **kwargs: Any) -> Tensor: ...

    def run_backbone(self, *args: Any, **kwargs: Any) -> BaseModelOutputWithPast: ...


class ImageContext:
    """A context in which an image is generated: its layout is read once, and carried from step to step."""

    def __init__(self, state: GenerationState, generating: Tensor, model: "ImageGenerationMixin") -> None:
        """The context `state`, in whose rows `generating` (B,) the image is; the others get masked columns."""
        self.state, self.cache, self.model = state, state.cache, model
        past = self.cache.get_seq_length()
        layout = read_layout(state.input_ids, model.config)
        positions = rope_positions(layout.position_steps, state.mask)
        self.valid, self.new_columns = state.mask, generating[:, None].to(state.mask.dtype)
        self.image_seen = (layout.blocks[:, :past] >= 0).any(dim=1)
        self.position = positions[:, -1:]  # of the last id
        self.pending = (state.input_ids[:, past:], positions[:, past:], layout.blocks[:, past:])

    def run(self, states: Tensor, steps: Tensor) -> Tensor:
        """Hidden states (B, n, D) of an image's input `states` (B, n, D), one block, `steps` (n,) after the last id.

        Ids that are not cached yet are run before them; with n = 0 the hidden states of the last, (B, 1, D).
        """
        ids, positions, blocks = self.pending
        states = states.to(self.model.lm_head.weight.dtype)
        count, alone = states.shape[1], ids.shape[1] == 0
        if not alone:
            count_ids = ids.shape[1]
            images = images_of_columns(self.state.input_ids, self.state.input_images, count_ids, self.model.config)
            embedded = self.model.model.embed(ids, read_layout(ids, self.model.config), **images)
            states = torch.cat([embedded.to(states), states], dim=1)
        code_ids = torch.full_like(steps, self.model.config.image_token_offset).expand(len(ids), -1)
        block = torch.full_like(steps, self.valid.shape[1]).expand(len(ids), -1)  # more than there are blocks before
        self.valid = torch.cat([self.valid, self.new_columns.expand(-1, count)], dim=1)
        outputs = self.model.model.run_backbone(
            states,
            torch.cat([positions, self.position + steps], dim=1),
            torch.cat([blocks, block], dim=1),
            self.valid,
            cache=self.cache,
            image_seen=self.image_seen,
            one_block=alone,
            text_ids=torch.cat([ids, code_ids], dim=1),
            use_cache=True,
        )
        self.image_seen = self.image_seen | (blocks >= 0).any(dim=1)
        self.pending = (ids[:, :0], positions[:, :0], blocks[:, :0])
        return outputs[0][:, -max(count, 1) :]

    def append_codes(self, codes: Tensor) -> None:
        """Append codes (B, n), whose states are not run yet, as ids with a position each."""
        ids, active = self.model.config.vocabulary.codes_to_ids(codes), self.new_columns.bool()
        self.state.append(ids, active)
        self.valid = self.state.mask
        steps = self.new_columns.expand_as(ids).cumsum(dim=1)
        self.pending = (self.state.input_ids[:, -ids.shape[1] :], self.position + steps, torch.full_like(ids, -1))
        self.position = self.pending[1][:, -1:]


class ImageGenerationMixin:
    """Batched generation of images on a KV cache."""

    config: UnifiedConfig
    model: ImageBackbone
    lm_head: nn.Linear

    def prefill(self, state: GenerationState) -> None:
        """Run all ids of `state`, so that they are in its cache."""
        no_states = torch.zeros(len(state.finished), 0, self.config.text_config.hidden_size)
        context = ImageContext(state, ~state.finished, self)
        context.run(no_states.to(state.input_ids.device), context.position.new_zeros(0))

    def generate_image(
        self,
        state: GenerationState,
        generating: Tensor,
        settings: ImageSampling,
        negative_prompt_ids: Tensor | None,
        generator: Generators,
    ) -> None:
        """Generate one image in the rows `generating` (B,); the others get masked columns."""
        states = [state]
        if settings.guidance_scale != 1:
            assert negative_prompt_ids is not None, f"guidance_scale {settings.guidance_scale} without negative prompt"
            boi = negative_prompt_ids.new_full((1, 1), self.config.boi_token_id)
            ids = torch.cat([negative_prompt_ids, boi], dim=1).to(state.input_ids.device).expand(len(generating), -1)
            cache, none = new_cache(self.config.text_config), torch.zeros_like(generating)
            states.append(GenerationState(ids, torch.ones_like(ids), none, state.pad_token_id, cache))
        contexts = [ImageContext(context, generating, self) for context in states]
        order = self.generate_scales if self.config.image_order == "scales" else self.generate_raster
        order(contexts, settings, generator)
        state.append(torch.full_like(state.input_ids[:, :1], self.config.eoi_token_id), generating[:, None])

    def first_scale(self, batch: int) -> tuple[Tensor, Tensor]:
        """f_hat (B, C, h_K, w_K) before an image's first scale, and that scale's input states (B, h_1*w_1, D)."""
        f_hat = self.model.vq_model.quantizer.no_f_hat(batch)
        return f_hat, self.model.image_embedding.one_scale(f_hat, None, 0)

    @torch.no_grad()
    def next_scale(self, f_hat: Tensor, codes: Tensor, scale: int) -> tuple[Tensor, Tensor]:
        """f_hat with the `codes` (B, h_k*w_k) of `scale` added, and the next scale's input states (B, n, D)."""
        quantizer = self.model.vq_model.quantizer
        with torch.autocast(codes.device.type, enabled=False):
            f_hat = f_hat + quantizer.contribution(codes, scale)
            features = quantizer.scale_input(f_hat, scale + 1)
        return f_hat, self.model.image_embedding.one_scale(f_hat, features, scale + 1)

    def scale_steps(self, scale: int, device: torch.device) -> Tensor:
        """RoPE positions (n,) of one scale's positions, counted from the id before the image."""
        start, stop = scale_spans(self.config.patch_nums)[scale]
        if self.config.image_positions == "shared":
            return torch.full((stop - start,), scale + 1, device=device)
        return torch.arange(start + 1, stop + 1, device=device)

    def generate_scales(self, contexts: list[ImageContext], settings: ImageSampling, generator: Generators) -> None:
        """Append one image per row to the first context; each scale is one parallel step per context.

        Nothing waits for the device between the scales.
        """
        scales, state = len(self.config.patch_nums), contexts[0].state
        f_hat, states = self.first_scale(len(state.input_ids))
        codes, spoilt = state.input_ids[:, :0], None
        for scale in range(scales):
            steps = self.scale_steps(scale, states.device)
            hidden = [context.run(states, steps) for context in contexts]
            guidance_scale = ramped_guidance_scale(settings.guidance_scale, scale, scales)
            new, invalid = self.sample_codes(hidden, guidance_scale, settings, generator)
            codes, spoilt = torch.cat([codes, new], dim=1), invalid if spoilt is None else spoilt | invalid
            if settings.on_scale is not None:
                settings.on_scale(scale, codes)
            if scale + 1 < scales:
                f_hat, states = self.next_scale(f_hat, new, scale)
        check_sampled(spoilt)
        state.append(self.config.vocabulary.codes_to_ids(codes), contexts[0].new_columns.bool())

    def generate_raster(self, contexts: list[ImageContext], settings: ImageSampling, generator: Generators) -> None:
        """Append one image per row to the contexts, code by code."""
        first = contexts[0].state.input_ids
        no_states = torch.zeros(len(first), 0, self.config.text_config.hidden_size, device=first.device)
        for _ in range(self.config.image_length):
            hidden = [context.run(no_states, first.new_zeros(0)) for context in contexts]
            codes, invalid = self.sample_codes(hidden, settings.guidance_scale, settings, generator)
            check_sampled(invalid)
            for context in contexts:
                context.append_codes(codes)

    def sample_codes(
        self, hidden: list[Tensor], guidance_scale: float, settings: ImageSampling, generator: Generators
    ) -> tuple[Tensor, Tensor]:
        """Codes (B, n) from the hidden states (B, n, D) of one or two contexts; see `sample_unchecked`."""
        logits = [self.code_logits(h) for h in hidden]
        guided = apply_guidance(logits[0], logits[1], guidance_scale) if len(logits) > 1 else logits[0]
        return sample_unchecked(guided, settings.temperature, settings.top_k, settings.top_p, generator)

    def code_logits(self, hidden: Tensor) -> Tensor:
        """Logits (B, n, codebook_size) of the codes alone: at image positions no text token can be sampled."""
        with align_module_device(self.lm_head):  # fetches a matrix that is offloaded
            return self.logits_of(hidden, self.config.vocabulary.code_rows(self.lm_head.weight))

    def text_logits(self, hidden: Tensor) -> Tensor:
        """Logits (B, text ids) of the text ids alone, of states (B, D) behind which no code can be sampled."""
        with align_module_device(self.lm_head):
            return self.logits_of(hidden, self.lm_head.weight[: self.config.vocabulary.text_ids.stop])

    def logits_of(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """Logits (..., R) in float32 of some `rows` (R, D) of the output matrix."""
        states = head_input(hidden, self.config.logit_factor)
        return soft_cap(nn.functional.linear(states, rows).float(), self.config.logit_cap)
