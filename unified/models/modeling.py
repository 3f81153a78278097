"""The model: any causal backbone, a frozen image tokenizer, and one output matrix for text and codes.

The contract: `last_hidden_state[:, i]` of the base model scores `input_ids[:, i + 1]`, for text and image alike.
Legend: B batch, T sequence, T' positions kept, N images, L codes of an image, K scales, D hidden, C code dim.
"""

from typing import Any

import torch
from peft.utils.other import TrainableTokensWrapper
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, Cache, DynamicCache, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutputWithPast

from unified.files.weights import WholeModel
from unified.image_tokenizer.model import VQModel
from unified.image_tokenizer.scales import scale_ids, scale_spans
from unified.models.attention import prepare_mask
from unified.models.configuration import UnifiedConfig, layer_kinds
from unified.models.generation import UnifiedGenerationMixin
from unified.models.image_embedding import ImageEmbedding
from unified.models.losses import UnifiedOutput, UnionTargets, soft_cap, union_loss
from unified.models.position_gated_lora import ImageGate
from unified.models.sequence_layout import Layout, block_attention_mask, read_layout, rope_positions
from unified.models.trainable_token_rows import look_up, split_rows


class UnifiedPreTrainedModel(WholeModel):
    """What base model and head share: how weights start, and which attention can be used."""

    config: UnifiedConfig
    config_class = UnifiedConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _skip_keys_device_placement = ["past_key_values"]
    _keep_in_fp32_modules_strict = ["vq_model"]  # rounded features would give other codes

    @property
    def dtype(self) -> torch.dtype:
        """The backbone's: the image tokenizer comes first and stays float32, which no checkpoint should say it is."""
        return next(self.base_model.get_submodule("language_model").parameters()).dtype

    @property
    def is_gradient_checkpointing(self) -> bool:
        """HF's name of before, by which PEFT 0.21 and TRL 1.16 ask; its own property warns every time."""
        return self.is_activation_checkpointing

    def _init_weights(self, module: nn.Module) -> None:
        std = self.config.text_config.initializer_range
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


class UnifiedModel(UnifiedPreTrainedModel):
    """Embed, place, mask, run the backbone, and roll image states onto the shifted positions."""

    def __init__(self, config: UnifiedConfig) -> None:
        super().__init__(config)
        self.vq_model = VQModel(config.vq_config)
        self.image_embedding = ImageEmbedding(config)
        self.set_backbone(AutoModel.from_config(config.text_config))
        self.vq_model.requires_grad_(False)
        self.post_init()

    def set_backbone(self, backbone: PreTrainedModel) -> None:
        """Run `backbone` from now on; adapters of its layers will ask this model's gate where images are."""
        self.language_model = backbone
        self.image_gate = ImageGate(backbone)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    def train(self, mode: bool = True) -> "UnifiedModel":
        """Training mode for all but the frozen tokenizer."""
        super().train(mode)
        self.vq_model.eval()
        return self

    @torch.no_grad()
    def image_features(self, codes: Tensor, input_image_codes: Tensor) -> tuple[Tensor, Tensor]:
        """`next_scale_inputs` of output images' `codes` (N, L), flat f_hat of `input_image_codes` (M, L)."""
        quantizer = self.vq_model.quantizer
        with torch.autocast(codes.device.type, enabled=False):
            f_hat = quantizer.codes_to_f_hat(input_image_codes)
            return quantizer.next_scale_inputs(codes), quantizer.scale_input(f_hat, len(self.config.patch_nums) - 1)

    def output_image_codes(self, input_ids: Tensor, written: Tensor) -> Tensor:
        """Codes (N, L) of the images in `input_ids` (B, T), in order."""
        ids, length = input_ids[written], self.config.image_length
        if len(ids) % length:
            raise ValueError(
                f"{len(ids)} image ids do not fit images of {length} codes (patch_nums {self.config.patch_nums}); "
                "encode whole images with this checkpoint's processor"
            )
        return self.config.vocabulary.ids_to_codes(ids).view(-1, length)

    def input_image_codes(self, pixel_values: Tensor | None, image_codes: Tensor | None, layout: Layout) -> Tensor:
        """Codes (M, L) of the images that are read, checked against the placeholders."""
        codes = image_codes if pixel_values is None else self.vq_model.encode(pixel_values.float())
        places, needed = int(layout.is_input.sum()), self.config.input_image_length
        given = 0 if codes is None else len(codes)
        if places != given * needed:
            raise ValueError(
                f"{places} image placeholders in input_ids but {given} images of {needed} positions were given; "
                "pass every image that is read once, as pixel_values or image_codes"
            )
        return torch.zeros(0, self.config.image_length, dtype=torch.long) if codes is None else codes

    def embed(
        self, input_ids: Tensor, layout: Layout, pixel_values: Tensor | None = None, image_codes: Tensor | None = None
    ) -> Tensor:
        """Input states (B, T, D): text rows from the embedding matrix, images from their features."""
        states = look_up(self.get_input_embeddings(), input_ids)
        read = self.input_image_codes(pixel_values, image_codes, layout).to(input_ids.device)
        scales = self.config.image_order == "scales"
        codes = self.output_image_codes(input_ids, layout.is_output) if scales else read[:0]
        if not (self.training or is_deepspeed_zero3_enabled() or len(codes) or len(read)):
            return states
        # without images, one blank image runs into nothing: ranks stay in step and no parameter lacks a gradient
        blank = codes.new_zeros(1, self.config.image_length)
        written_states, read_states = self.image_embedding(
            *self.image_features(codes if len(codes) else blank, read if len(read) else blank)
        )
        states = states + 0.0 * (written_states.mean() + read_states.mean()).to(states.dtype)
        if len(codes):
            states = states.masked_scatter(layout.is_output[..., None], written_states.to(states.dtype))
        if len(read):
            states = states.masked_scatter(layout.is_input[..., None], read_states.to(states.dtype))
        return states

    def scale_states(self, codes: Tensor, scale: int) -> Tensor:
        """Input states (B, h_k*w_k, D) of one scale, from `codes` (B, L) of which only those before it matter."""
        start, stop = scale_spans(self.config.patch_nums)[scale]
        return self.image_embedding(*self.image_features(codes, codes[:0]))[0][:, start:stop]

    def masks(self, blocks: Tensor, valid: Tensor, documents: Tensor | None, cache: Cache | None) -> Any:
        """Attention mask for the backbone: (B, 1, q, P + q), or one for each kind of layer where it has windows."""
        text_config = self.config.text_config
        kinds = layer_kinds(text_config)
        masks = {"full_attention": block_attention_mask(blocks, valid, documents)}
        if "sliding_attention" in kinds:
            window = block_attention_mask(blocks, valid, documents, text_config.sliding_window)
            layer = list(text_config.layer_types).index("sliding_attention")
            if cache is not None:  # a sliding layer's cache forgets its beginning
                length, start = cache.get_mask_sizes(blocks.shape[1], layer)
                window = window[..., start : start + length]
            masks["sliding_attention"] = window
        attention = self.language_model.config._attn_implementation
        masks = {kind: prepare_mask(m, attention, text_config, self.dtype) for kind, m in masks.items()}
        return masks if "sliding_attention" in kinds else masks["full_attention"]

    def run(
        self,
        states: Tensor,
        position_ids: Tensor,
        blocks: Tensor,
        valid: Tensor,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        image_seen: Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """The backbone on input `states` (B, q, D); its hidden states are not rolled."""
        masks = self.masks(blocks, valid, documents, cache)
        given = {"position_ids": position_ids, "attention_mask": masks, "past_key_values": cache, **kwargs}
        inside = blocks >= 0
        return self.image_gate.run(self.language_model, inside, documents, image_seen, inputs_embeds=states, **given)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        keep_positions: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_codes: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        inputs_embeds: None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states whose position i scores `input_ids[:, i + 1]`.

        Args:
            input_ids: (B, T) text and image ids.
            attention_mask: (B, P + T), 0 at padding.
            position_ids: (B, T); derived from `input_ids` unless a cache already holds positions.
            document_ids: (B, T), one id per document of a packed row.
            keep_positions: (B, T'), the only positions the backbone runs (-1: padding); output is (B, T', D).
            pixel_values, image_codes: (N, 3, H, W) or (N, L), images that are read, in order of their placeholders.
            inputs_embeds: must be None, as PEFT passes it: only ids tell what is an image.
            kwargs: the backbone's, and `image_seen` (B,), whether the cache holds an image (`image_lora.onward`).
        """
        if inputs_embeds is not None:
            raise ValueError("inputs_embeds do not tell which positions are images; pass input_ids")
        layout = read_layout(input_ids, self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        whole = input_ids.new_ones(len(input_ids), past + input_ids.shape[1])
        valid = whole if attention_mask is None else attention_mask
        if position_ids is None:
            if past:
                raise ValueError("position_ids must be given with a filled cache: it does not tell an image's ticks")
            position_ids = rope_positions(layout.position_steps, valid, document_ids)
        states = self.embed(input_ids, layout, pixel_values, image_codes)
        if keep_positions is not None:
            index, valid = keep_positions.clamp(min=0), (keep_positions >= 0).long()
            states = states.gather(1, index[..., None].expand(-1, -1, states.shape[-1]))
            position_ids, layout = position_ids.gather(1, index), layout.at(keep_positions)
            document_ids = None if document_ids is None else document_ids.gather(1, index)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        outputs = self.run(
            states, position_ids, layout.blocks, valid, document_ids, past_key_values, use_cache=use_cache, **kwargs
        )
        outputs.last_hidden_state = self.roll(outputs[0], layout)
        return outputs

    def roll(self, hidden: Tensor, layout: Layout) -> Tensor:
        """Move every written image's states one position ahead: they predict their own token, HF scores the next."""
        if self.config.image_order == "raster":
            return hidden
        next_is_image = torch.nn.functional.pad(layout.is_output[:, 1:], (0, 1))
        return torch.where(next_is_image[..., None], hidden.roll(-1, dims=1), hidden)


class UnifiedForCausalLM(UnifiedPreTrainedModel, UnifiedGenerationMixin):
    """`UnifiedModel` with the output matrix over text and codes; a causal LM to HF, PEFT and TRL."""

    accepts_loss_kwargs = True
    model: UnifiedModel

    def __init__(self, config: UnifiedConfig) -> None:
        super().__init__(config)
        self.model = UnifiedModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.vocabulary.size, bias=False)
        table = self.model.get_input_embeddings()
        name = next(name for name, module in self.model.named_modules() if module is table)
        self._tied_weights_keys = {"lm_head.weight": f"model.{name}.weight"}
        self.post_init()

    def __setattr__(self, name: str, value: Any) -> None:
        """What PEFT puts in the output matrix's place has no bias either: TRL reads that, and it could not tell."""
        if name == "lm_head" and isinstance(value, TrainableTokensWrapper):
            value.register_parameter("bias", None)
        super().__setattr__(name, value)

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> "UnifiedForCausalLM":
        """Load a checkpoint; ValueError where its tokenizer is not the one its codes were made with."""
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if is_deepspeed_zero3_enabled():  # the weights are in pieces; one process has checked them before
            model._weight_conversions = []  # HF keeps renamings that matched nothing here and would save by them
        else:
            model.model.vq_model.check_fingerprint(model.config.vq_fingerprint)
        return loaded

    def loss_weights(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of `labels` (B, T): is it an image id, its group (0 text, 1.. scales), its weight in the loss."""
        is_image = self.config.vocabulary.is_image(labels)
        length, weights = self.config.image_length, self.config.scale_loss_weights
        places = torch.cumsum(is_image, dim=1) - 1
        groups = scale_ids(self.config.patch_nums).to(labels.device)[places.clamp(min=0) % length] + 1
        groups = torch.where(is_image, groups, 0)
        table = [self.config.text_loss_weight, *(weights or [1.0] * len(self.config.patch_nums))]
        trained = (labels != -100).float()
        return is_image, groups, torch.tensor(table, device=labels.device)[groups] * trained

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        document_ids: Tensor | None = None,
        keep_positions: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_codes: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        num_items_in_batch: Tensor | int | None = None,
        **kwargs: Any,
    ) -> UnifiedOutput:
        """Logits (B, T, V), or with `labels` (B, T) the loss alone, which never holds them.

        The loss is `sum w CE / sum w`; with `num_items_in_batch` (the sum of w over an accumulated batch) that is the
        divisor. See `UnifiedModel.forward` for the other arguments.
        """
        outputs = self.model(
            input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            document_ids=document_ids,
            keep_positions=keep_positions,
            pixel_values=pixel_values,
            image_codes=image_codes,
            past_key_values=past_key_values,
            use_cache=use_cache if labels is None else False,
            **kwargs,
        )
        hidden = outputs.last_hidden_state
        if labels is not None:
            return self.loss(hidden, labels, keep_positions, num_items_in_batch)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = soft_cap(self.lm_head(hidden[:, kept]), self.config.logit_cap)
        return UnifiedOutput(logits=logits, past_key_values=outputs.past_key_values)

    def loss_divisor(self, labels: Tensor, keep_positions: Tensor | None = None) -> Tensor:
        """Sum of the loss weights that a batch trains: what its loss is divided by, before it is run."""
        weights = self.loss_weights(labels)[2]
        if keep_positions is not None:
            weights = weights.gather(1, keep_positions.clamp(min=0)) * (keep_positions >= 0)
        return weights[:, 1:].sum()

    def loss(
        self, hidden: Tensor, labels: Tensor, keep_positions: Tensor | None, divisor: Tensor | int | None
    ) -> UnifiedOutput:
        """Loss of `hidden` (B, T', D) against `labels` (B, T), shifted here as HF's models shift."""
        is_image, groups, weights = self.loss_weights(labels)
        if keep_positions is not None:
            index, padding = keep_positions.clamp(min=0), keep_positions < 0
            labels = labels.gather(1, index).masked_fill(padding, -100)
            is_image, groups, weights = (x.gather(1, index) for x in (is_image, groups, weights))
        wanted = labels[:, 1:] != -100
        targets = UnionTargets(labels[:, 1:][wanted], is_image[:, 1:][wanted], weights[:, 1:][wanted])
        vocabulary, cap = self.config.vocabulary, self.config.logit_cap
        stride = self.config.modality_stride if self.training else 1
        weight, own = split_rows(self.lm_head)
        total, losses = union_loss(hidden[:, :-1][wanted], weight, targets, vocabulary, stride, cap, own)
        group = groups[:, 1:][wanted]
        sums = torch.zeros(1 + len(self.config.patch_nums), device=hidden.device)
        counts = sums.index_add(0, group, torch.ones_like(losses))
        divisor = targets.weights.sum() if divisor is None else divisor
        return UnifiedOutput(loss=total / divisor, group_losses=sums.index_add(0, group, losses), group_counts=counts)


AutoConfig.register(UnifiedConfig.model_type, UnifiedConfig)
AutoModel.register(UnifiedConfig, UnifiedModel)
AutoModelForCausalLM.register(UnifiedConfig, UnifiedForCausalLM)
