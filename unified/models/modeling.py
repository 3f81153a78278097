"""The model: a causal LM as backbone, a frozen image tokenizer, and one output matrix for text and codes.

The contract: `last_hidden_state[:, i]` of the base model scores `input_ids[:, i + 1]`, for text and image alike.
Legend: B batch, T sequence, T' kept positions, N images, L codes of an image, K scales, D hidden, C code dim.
"""

from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn
from transformers import MODEL_MAPPING, AutoModel, Cache, PreTrainedModel
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import can_return_tuple

from unified.models.auto_classes import register_model
from unified.models.backbones import backbone_masks, balance_of, check_whole_rows, new_cache, per_layer_inputs
from unified.models.configuration import UnifiedConfig
from unified.models.frozen_tokenizer import FrozenImageTokenizer, outside_zero_init
from unified.models.generation import UnifiedGenerationMixin
from unified.models.image_embedding import ImageEmbedding
from unified.models.losses import UnifiedOutput, UnionTargets, head_input, loss_weights, soft_cap, union_loss
from unified.models.new_rows import from_files, separate, to_files
from unified.models.position_gated_lora import ImageGate
from unified.models.pretrained import UnifiedPreTrainedModel
from unified.models.row_cache import RowCache
from unified.models.sequence_layout import Layout, read_layout, read_packing, rope_positions
from unified.models.trainable_token_rows import look_up, prepare_output_layer, split_rows


class UnifiedModel(UnifiedPreTrainedModel):
    """Embed, place, mask, run the backbone, and roll image states onto the shifted positions."""

    new_rows: nn.ModuleDict | None  # see `UnifiedForCausalLM.separate_new_rows`
    compiled_scales: Any = None  # the backbone as `compile_scale_steps` has it

    def __init__(self, config: UnifiedConfig) -> None:
        super().__init__(config)
        self.vq_model = FrozenImageTokenizer(config.vq_config)
        self.image_embedding = ImageEmbedding(config)
        with outside_zero_init():  # at whose end a class that is imported in it loses its decoration, as experts have
            MODEL_MAPPING.get(type(config.text_config), None)
        self.set_backbone(AutoModel.from_config(config.text_config))
        self.register_module("new_rows", None)
        self.post_init()

    def set_backbone(self, backbone: PreTrainedModel) -> None:
        """Replace the backbone; LoRA of its layers uses this model's image gate."""
        self.language_model = backbone
        self.image_gate = ImageGate(backbone)

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    @torch.no_grad()
    def image_features(self, codes: Tensor, input_image_codes: Tensor) -> tuple[Tensor, Tensor]:
        """`next_scale_inputs` of output images' `codes` (N, L), flat f_hat of `input_image_codes` (M, L)."""
        quantizer = self.vq_model.quantizer
        with torch.autocast(codes.device.type, enabled=False):
            f_hat = quantizer.codes_to_f_hat(input_image_codes)
            return quantizer.next_scale_inputs(codes), quantizer.scale_input(f_hat, len(self.config.patch_nums) - 1)

    def output_image_codes(self, input_ids: Tensor, is_output: Tensor) -> Tensor:
        """Codes (N, L) of the output images in `input_ids` (B, T), in order."""
        ids, length = input_ids[is_output], self.config.image_length
        if len(ids) % length:
            raise ValueError(
                f"{len(ids)} image ids are no multiple of the {length} codes of an image; encode with the processor"
            )
        return self.config.vocabulary.ids_to_codes(ids).view(-1, length)

    def input_image_codes(self, pixel_values: Tensor | None, image_codes: Tensor | None, layout: Layout) -> Tensor:
        """Codes (M, L) of the input images, checked against the placeholders."""
        if pixel_values is not None and image_codes is not None:
            raise ValueError("pixel_values and image_codes are both given; keep one of them")
        codes = image_codes if pixel_values is None else self.vq_model.encode(pixel_values.float())
        placeholders, length = int(layout.is_input.sum()), self.config.input_image_length
        images = 0 if codes is None else len(codes)
        if placeholders != images * length:
            raise ValueError(
                f"{placeholders} image placeholders in input_ids but {images} images of {length} positions given; "
                "pass every input image once, as pixel_values or image_codes"
            )
        return torch.zeros(0, self.config.image_length, dtype=torch.long) if codes is None else codes

    def embed(
        self, input_ids: Tensor, layout: Layout, pixel_values: Tensor | None = None, image_codes: Tensor | None = None
    ) -> Tensor:
        """Input states (B, T, D): text from the embedding matrix, images from their features."""
        states = look_up(self.get_input_embeddings(), input_ids)
        inputs = self.input_image_codes(pixel_values, image_codes, layout).to(input_ids.device)
        scales = self.config.image_order == "scales"
        outputs = self.output_image_codes(input_ids, layout.is_output) if scales else inputs[:0]
        if not (self.training or is_deepspeed_zero3_enabled() or len(outputs) or len(inputs)):
            return states
        # without images a dummy one, times 0: ranks run the same modules (ZeRO-3), parameters have gradients (DDP)
        dummy = outputs.new_zeros(1, self.config.image_length)
        output_states, input_states = self.image_embedding(
            *self.image_features(outputs if len(outputs) else dummy, inputs if len(inputs) else dummy)
        )
        states = states + 0.0 * (output_states.mean() + input_states.mean()).to(states.dtype)
        if len(outputs):
            states = states.masked_scatter(layout.is_output[..., None], output_states.to(states.dtype))
        if len(inputs):
            states = states.masked_scatter(layout.is_input[..., None], input_states.to(states.dtype))
        return states

    def run_backbone(
        self,
        states: Tensor,
        position_ids: Tensor,
        blocks: Tensor,
        valid: Tensor,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        image_seen: Tensor | None = None,
        text_ids: Tensor | None = None,
        columns: Tensor | None = None,
        one_block: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Run the backbone on input `states` (B, q, D); its hidden states are not rolled.

        `text_ids` (B, q) of positions: read by backbones with an embedding of every layer, see `per_layer_inputs`.
        `columns`, `one_block`: see `backbone_masks`.
        """
        masks = backbone_masks(self.language_model, blocks, valid, documents, cache, columns, one_block)
        kwargs |= per_layer_inputs(self.language_model, text_ids, states, self.config.image_token_offset)
        kwargs |= {"position_ids": position_ids, "attention_mask": masks, "past_key_values": cache}
        compiled = self.compiled_scales if one_block and isinstance(cache, RowCache) else None
        run, kwargs["return_dict"] = compiled or self.language_model, True
        return self.image_gate.run_backbone(run, blocks >= 0, documents, image_seen, inputs_embeds=states, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor = None,  # type: ignore[assignment]  # refused below
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
            position_ids: (B, T); derived from `input_ids` unless a cache already holds positions. Without a mask,
                positions that restart separate packed documents, as in HF's models.
            document_ids: (B, T), one id per document of a packed row.
            keep_positions: (B, T'), positions the backbone is run on (-1: padding); output is (B, T', D).
            pixel_values, image_codes: (N, 3, H, W) or (N, L), input images in the order of their placeholders.
            inputs_embeds: must be None, as PEFT passes it: image positions are derived from ids.
            kwargs: the backbone's, and `image_seen` (B,), whether the cache contains an image (see `after_image`).

        `hidden_states` of all layers are at the last one's positions; `attentions`, of eager alone, at the queries'.
        """
        if inputs_embeds is not None or input_ids is None:
            raise ValueError("image positions cannot be derived from inputs_embeds; pass input_ids (LoRA, no prompts)")
        layout = read_layout(input_ids, self.config)
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        valid, position_ids, document_ids = read_packing(input_ids, attention_mask, position_ids, document_ids, past)
        check_whole_rows(self.config.text_config, document_ids, keep_positions)
        if position_ids is None:
            if past:
                raise ValueError("with a filled cache position_ids cannot be derived; pass them (LoRA, no prefixes)")
            position_ids = rope_positions(layout.position_steps, valid, document_ids)
        states = self.embed(input_ids, layout, pixel_values, image_codes)
        if keep_positions is not None:
            index, valid = keep_positions.clamp(min=0), (keep_positions >= 0).long()
            states = states.gather(1, index[..., None].expand(-1, -1, states.shape[-1]))
            position_ids, layout = position_ids.gather(1, index), layout.select(keep_positions)
            input_ids = input_ids.gather(1, index)
            document_ids = None if document_ids is None else document_ids.gather(1, index)
        if use_cache and past_key_values is None:
            past_key_values = new_cache(self.config.text_config)
        kwargs |= {"use_cache": use_cache, "text_ids": input_ids, **self.recorded_outputs(kwargs)}
        outputs = self.run_backbone(
            states, position_ids, layout.blocks, valid, document_ids, past_key_values, **kwargs
        )
        scales = self.config.image_order == "scales"
        outputs.last_hidden_state = layout.roll(outputs[0]) if scales else outputs[0]
        if scales and outputs.hidden_states:
            outputs.hidden_states = tuple(layout.roll(hidden) for hidden in outputs.hidden_states)
        return outputs


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
        self.embedding_name = f"model.{name}.weight"  # in files
        self._tied_weights_keys = {"lm_head.weight": self.embedding_name}
        self.post_init()

    def __setattr__(self, name: str, value: Any) -> None:
        """Check what PEFT puts in the output matrix's place, see `prepare_output_layer`."""
        if name == "lm_head":
            prepare_output_layer(value)
        super().__setattr__(name, value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def separate_new_rows(self) -> None:
        """Make the vocabulary's new rows parameters of their own and freeze the others; see new_rows.py."""
        base = self.model
        base.new_rows, embedding, self.lm_head = separate(base.get_input_embeddings(), self.lm_head, self.config)
        base.set_input_embeddings(embedding)

    def tie_weights(self, *args: Any, **kwargs: Any) -> None:
        """As HF's; an output layer of frozen tied rows refers to the embedding, so that there is nothing to tie."""
        if self.model.new_rows is None:
            super().tie_weights(*args, **kwargs)

    def save_pretrained(  # type: ignore[override]  # HF's other arguments are left out in kwargs
        self, save_directory: Any, *, state_dict: Any = None, **kwargs: Any
    ) -> None:
        """As HF's; files hold whole matrices, whatever of them learns."""
        if self.model.new_rows is not None:
            state_dict = dict(self.state_dict() if state_dict is None else state_dict)
            to_files(state_dict, self.embedding_name, self.model.new_rows)
        super().save_pretrained(save_directory, state_dict=state_dict, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """As torch's, before the same of what is inside; takes new rows out of the whole matrices of files."""
        if self.model.new_rows is not None:
            from_files(state_dict, self.embedding_name, self.model.new_rows, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor = None,  # type: ignore[assignment]  # refused by the base model
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
        """Logits (B, T, V), or with `labels` (B, T) only the loss, for which logits are not materialized.

        The loss is `sum w CE / sum w`; with `num_items_in_batch` (the sum of w over an accumulated batch) the latter
        is the divisor. In training the balance loss of a mixture of experts is added, see `balance_of`.
        See `UnifiedModel.forward` for the other arguments.
        """
        if kwargs.get("shift_labels") is not None:
            raise ValueError("shift_labels: labels are shifted here; pass labels")
        balance = balance_of(self.model.language_model) if self.training and labels is not None else None
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
            return_dict=True,
            **kwargs | ({} if balance is None else {"output_router_logits": True}),
        )
        hidden = outputs.last_hidden_state
        if labels is not None:
            valid = attention_mask if keep_positions is None else (keep_positions >= 0).long()
            added = None if balance is None else balance(outputs.router_logits, valid)
            found = self.loss(hidden, labels, keep_positions, num_items_in_batch, added)
            return replace(found, hidden_states=outputs.hidden_states, attentions=outputs.attentions)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = soft_cap(self.lm_head(head_input(hidden[:, kept], self.config.logit_factor)), self.config.logit_cap)
        return UnifiedOutput(
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def loss_divisor(self, labels: Tensor, keep_positions: Tensor | None = None) -> Tensor:
        """Sum of a batch's loss weights, by which its loss is divided; known before the forward pass."""
        weights = loss_weights(labels, self.config)[2]
        if keep_positions is not None:
            weights = weights.gather(1, keep_positions.clamp(min=0)) * (keep_positions >= 0)
        return weights[:, 1:].sum()

    def loss(
        self,
        hidden: Tensor,
        labels: Tensor,
        keep_positions: Tensor | None,
        divisor: Tensor | int | None,
        balance: Tensor | None = None,
    ) -> UnifiedOutput:
        """Loss of `hidden` (B, T', D) against `labels` (B, T), which are shifted here as in HF's models.

        `balance` is added in the proportion that these labels have of an accumulated batch.
        """
        is_image, groups, weights = loss_weights(labels, self.config)
        if keep_positions is not None:
            index, padding = keep_positions.clamp(min=0), keep_positions < 0
            labels = labels.gather(1, index).masked_fill(padding, -100)
            is_image, groups, weights = (x.gather(1, index) for x in (is_image, groups, weights))
        trained = labels[:, 1:] != -100
        targets = UnionTargets(labels[:, 1:][trained], is_image[:, 1:][trained], weights[:, 1:][trained])
        vocabulary, cap = self.config.vocabulary, self.config.logit_cap
        stride = self.config.modality_stride if self.training else 1
        states = head_input(hidden[:, :-1][trained], self.config.logit_factor)
        with align_module_device(self.lm_head):  # fetches a matrix that is offloaded
            weight, rows = split_rows(self.lm_head)
            total, losses = union_loss(states, weight, targets, vocabulary, stride, cap, rows)
        group, sums = groups[:, 1:][trained], torch.zeros(1 + len(self.config.patch_nums), device=hidden.device)
        counts = sums.index_add(0, group, torch.ones_like(losses))
        total = total if balance is None else total + balance * targets.weights.sum()
        divisor = torch.as_tensor(targets.weights.sum() if divisor is None else divisor)
        divisor = divisor.masked_fill(divisor == 0, 1)  # of a batch without any weight the loss is 0, not 0 / 0
        groups = sums.index_add(0, group, losses)
        return UnifiedOutput(loss=total / divisor, group_losses=groups, group_counts=counts, balance_loss=balance)


register_model(UnifiedConfig, UnifiedModel, UnifiedForCausalLM)
