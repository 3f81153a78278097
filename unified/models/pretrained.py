"""What the model's classes share: weight initialization, dtype, supported attention, and what DDP leaves alone."""

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.utils import is_torchvision_available

from unified.files.weights import StrictPreTrainedModel
from unified.image_tokenizer.model import VQModel
from unified.models.adapter_kinds import check_kinds
from unified.models.configuration import UnifiedConfig
from unified.models.engine_files import whole_weights
from unified.models.frozen_tokenizer import PEFT_PREFIX, frozen_names
from unified.models.trainable_token_rows import matrix_names

# patterns of module names: quantized features are other codes, quantized rows other probabilities of them
NEVER_QUANTIZED = (r".*\bvq_model", r".*\bimage_embedding", r".*\bembed_tokens", r".*\blm_head")
TENSOR_PARALLEL = ("tp_plan", "tp_size", "device_mesh", "distributed_config")  # arguments of `from_pretrained`


class UnifiedPreTrainedModel(StrictPreTrainedModel):
    """Shared by base model and head: weight initialization and supported attention implementations."""

    config: UnifiedConfig
    config_class = UnifiedConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _skip_keys_device_placement = ["past_key_values"]
    _keep_in_fp32_modules_strict = ["vq_model"]  # rounded features would change the codes
    _keep_in_fp32_modules = list(NEVER_QUANTIZED)  # by which HF's quantizers know

    def __setattr__(self, name: str, value: Any) -> None:
        """Check which adapters PEFT says it has put into the model."""
        if name == "peft_config":
            check_kinds(value)
        super().__setattr__(name, value)

    @property
    def dtype(self) -> torch.dtype:
        """The backbone's: HF would save that of the first parameter, which is the image tokenizer's float32."""
        return next(self.base_model.get_submodule("language_model").parameters()).dtype

    def _get_dtype_plan(self, dtype: torch.dtype) -> dict[str, torch.dtype]:
        """HF's, without what is named for quantizers alone: in fp16 that is fp16 like the backbone."""
        return {name: kept for name, kept in super()._get_dtype_plan(dtype).items() if name not in NEVER_QUANTIZED}

    @property
    def input_modalities(self) -> tuple[str, ...]:  # type: ignore[override]  # a constant in HF's models
        """What it reads. Without torchvision no images, so that HF's pipelines do not ask for it: PIL will do."""
        return ("image", "text") if is_torchvision_available() else ("text",)

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a checkpoint.

        Raises ValueError where its tokenizer is not the one its codes were made with, and for tensor parallelism.
        """
        for name in TENSOR_PARALLEL:
            if kwargs.get(name) is not None:
                raise ValueError(
                    f"{name}: tensor parallelism is not supported, as images need whole matrices; use device_map, or "
                    "ZeRO-3 or FSDP in training"
                )
        loaded = super().from_pretrained(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if is_deepspeed_zero3_enabled():
            model._weight_conversions = []  # HF keeps renamings that matched nothing and would apply them on saving
        model.record_fingerprint()
        base: Any = model.base_model
        base.vq_model.check_fingerprint(model.config.vq_fingerprint)
        base.image_gate.bind(base.language_model)  # quantizers replace layers
        return loaded

    def record_fingerprint(self) -> None:
        """Have a configuration that knows no tokenizer, of a model made of it alone, know the one that is there."""
        if not self.config.vq_fingerprint:
            self.config.vq_fingerprint = cast(VQModel, self.base_model.get_submodule("vq_model")).fingerprint()

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:  # type: ignore[override]  # HF's others: kwargs
        """As HF's, with the image tokenizer's fingerprint, without which it could not be opened."""
        self.record_fingerprint()
        super().save_pretrained(save_directory, **kwargs)

    @staticmethod
    def _load_pretrained_model(
        model: Any, state_dict: dict[str, Tensor] | None, checkpoint_files: list[str] | None, *args: Any, **kwargs: Any
    ) -> Any:
        """As HF's, part of `from_pretrained`; also of files that zero_to_fp32.py wrote, `.bin` or safetensors."""
        if state_dict is None and checkpoint_files:
            state_dict = whole_weights(checkpoint_files, model.config)
        return StrictPreTrainedModel._load_pretrained_model(model, state_dict, checkpoint_files, *args, **kwargs)

    def recorded_outputs(self, given: dict[str, Any]) -> dict[str, Any]:
        """Whether hidden states and attentions are returned, by the arguments `given`, else by the configuration."""
        asked = {
            "output_hidden_states": self.config.output_hidden_states,
            "output_attentions": self.config.output_attentions,
        } | {name: value for name, value in given.items() if name.startswith("output_") and value is not None}
        attention = self.config.text_config._attn_implementation
        if asked["output_attentions"] and attention != "eager":
            raise ValueError(
                f"output_attentions: attn_implementation {attention} computes none; "
                "call model.set_attn_implementation('eager')"
            )
        return asked

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Nothing: every save has the module of `remote_code`; HF's would copy this package's source beside it."""

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """As HF's for the size it has; ValueError for another, which would delete rows of codes or move them."""
        size, codes = self.config.vocabulary.size, len(self.config.vocabulary.image_ids)
        multiple = pad_to_multiple_of or 1
        wanted = -(-(new_num_tokens or size) // multiple) * multiple
        if wanted != size:
            remedy = (
                "every token has a row already, so leave the call out (lm-eval makes it for peft=: `unified merge`)"
            )
            if wanted > self.config.image_token_offset:
                remedy = "add tokens to the LLM, and extend it again with `unified extend`"
            raise ValueError(
                f"resize_token_embeddings to {wanted} rows: the last {codes} of the {size} are those of image codes; "
                + remedy
            )
        return cast(nn.Embedding, self.get_input_embeddings())

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> set[str]:
        """Read by DDP, which would otherwise send tokenizer and text rows to all ranks before every forward pass."""
        names = frozen_names(self) | matrix_names(self)
        return names | {PEFT_PREFIX + name for name in names}

    @property
    def is_gradient_checkpointing(self) -> bool:
        """HF's deprecated name, which PEFT 0.21 and TRL 1.16 use; HF's property warns every time."""
        return self.is_activation_checkpointing

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """As torch's, of which every cast and move of a module is made; what no file stores keeps its dtype.

        So it does in `from_pretrained`: RoPE's frequencies rounded to bfloat16 would turn far positions wrongly.
        """
        kept = [
            (part, name, part._buffers[name])
            for part in self.modules()
            for name in sorted(part._non_persistent_buffers_set)
        ]
        result = super()._apply(fn, recurse)
        for part, name, before in kept:
            after = part._buffers[name]
            if before is not None and after is not None and after.dtype != before.dtype:
                part._buffers[name] = before.to(after.device)
        return result

    @classmethod
    def is_custom_code(cls) -> bool:
        """False: HF would not initialize what a backbone computes for the layers inside it, as Falcon-H1's factors."""
        return False

    def _init_weights(self, module: nn.Module) -> None:
        std = getattr(self.config.text_config, "initializer_range", 0.02)  # OPT and XGLM name it otherwise
        if isinstance(module, nn.Linear | nn.Embedding):
            nn.init.normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
