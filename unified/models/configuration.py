"""`UnifiedConfig`: a backbone, an image tokenizer, and how the two are combined."""

import math
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from unified.image_tokenizer.configuration import VQConfig
from unified.image_tokenizer.scales import image_length, normalize_patch_nums
from unified.models.format_version import FORMAT_VERSION, upgrade
from unified.models.remote_code import AUTO_MAP, write_module
from unified.models.vocabulary import Vocabulary

ImageOrder = Literal["scales", "raster"]
ImagePositions = Literal["shared", "sequential"]


class UnifiedConfig(PreTrainedConfig):
    """A causal LM whose vocabulary is extended by the codes of an image tokenizer.

    Attributes:
        text_config: the backbone's configuration; its `vocab_size` already includes the codes.
        vq_config: the image tokenizer's.
        vq_fingerprint: `VQModel.fingerprint()` of the image tokenizer the model was extended with.
        chat_fingerprint: `chat_fingerprint()` of the processor with which it was made or trained; empty: not known.
        image_order: "scales" (next-scale prediction: one parallel step per scale) or "raster" (code by code).
        image_positions: RoPE positions of an image: "shared" (within a scale) or "sequential" (one per token).
        boi_token_id, eoi_token_id, image_pad_token_id, image_token_offset: see `Vocabulary`.
        text_loss_weight, scale_loss_weights: loss weights of text and of every scale (None: all 1).
        modality_stride: the `-log p(image)` part of the image loss is computed on every n-th image position and
            weighted n times (see `union_loss`); above 1 it saves most of the output matrix' products.
        format_version: version of the stored format, see `format_version.py`.
    """

    model_type = "unified"
    attribute_map = {"image_token_id": "image_pad_token_id"}  # HF's name, by which TRL's and other trainers read it
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        "vq_config": SubConfigSpec(config_class=VQConfig),
    }

    if TYPE_CHECKING:  # the types that HF converts the arguments to
        text_config: PreTrainedConfig
        vq_config: VQConfig
    else:
        text_config: dict | PreTrainedConfig | None = None
        vq_config: dict | PreTrainedConfig | None = None
    vq_fingerprint: str = ""
    chat_fingerprint: str = ""
    image_order: ImageOrder = "scales"
    image_positions: ImagePositions = "shared"
    boi_token_id: int = 1
    eoi_token_id: int = 2
    image_pad_token_id: int = 3
    image_token_offset: int = 64
    text_loss_weight: float = 1.0
    scale_loss_weights: list[float] | tuple[float, ...] | None = None
    modality_stride: int = 1
    tie_word_embeddings: bool = False
    format_version: int = FORMAT_VERSION

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """As HF's, for a config.json of any format version; ValueError for one newer than this package."""
        return super().from_dict(upgrade(config_dict, "config.json"), **kwargs)

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = bool(getattr(self.text_config, "tie_word_embeddings", False))
        self.auto_map = dict(AUTO_MAP)
        scales = normalize_patch_nums(self.patch_nums)
        if self.image_order == "raster" and len(scales) > 1:
            raise ValueError(
                f"image_order raster needs a tokenizer with one scale, got patch_nums {list(self.patch_nums)}; "
                "use image_order scales"
            )
        self.check_loss()

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Nothing, as `UnifiedPreTrainedModel`'s."""

    def save_pretrained(self, save_directory: str | PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Save config.json and the remote-code module through which HF's Auto classes find this package."""
        if not Path(save_directory).is_file():  # HF's own error says so
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            write_module(save_directory)  # before what is written is pushed
        super().save_pretrained(save_directory, push_to_hub, **kwargs)

    def check_loss(self) -> None:
        """Raise ValueError for invalid loss settings; call it again after changing them."""
        scales = normalize_patch_nums(self.patch_nums)
        if self.scale_loss_weights is not None and len(self.scale_loss_weights) != len(scales):
            raise ValueError(
                f"scale_loss_weights has {len(self.scale_loss_weights)} values for {len(scales)} scales; give one each"
            )
        weights = [self.text_loss_weight, *(self.scale_loss_weights or [1.0] * len(scales))]
        for weight in weights:
            if not 0 <= weight < math.inf:
                raise ValueError(f"a loss weight of {weight} in {weights}; give numbers of at least 0")
        if self.modality_stride < 1:
            raise ValueError(
                f"modality_stride {self.modality_stride} is below 1; set it to 1 to compute every position"
            )

    @property
    def patch_nums(self) -> tuple[tuple[int, int], ...]:
        """`(height, width)` of every scale."""
        return normalize_patch_nums(self.vq_config.patch_nums)

    @property
    def image_length(self) -> int:
        """Number of codes of an output image, L."""
        return image_length(self.patch_nums)

    @property
    def input_image_length(self) -> int:
        """Number of placeholders of an input image, h_K * w_K."""
        h, w = self.patch_nums[-1]
        return h * w

    @property
    def image_rope_positions(self) -> int:
        """Number of RoPE positions of an output image, including its start and end token."""
        shared = self.image_order == "scales" and self.image_positions == "shared"
        return (len(self.patch_nums) if shared else self.image_length) + 2

    @property
    def num_hidden_layers(self) -> int:
        """The backbone's."""
        return int(self.text_config.num_hidden_layers)

    @num_hidden_layers.setter
    def num_hidden_layers(self, value: int) -> None:
        raise ValueError(
            f"num_hidden_layers {value}: the backbone's is text_config.num_hidden_layers; a copy of fewer layers, as "
            "ShadowPEFT's, would be run on inputs_embeds, of which images have none: use LoRA"
        )

    @property
    def logit_cap(self) -> float | None:
        """Gemma's `final_logit_softcapping`, None for other backbones."""
        return self.text_config.to_dict().get("final_logit_softcapping")

    @property
    def logit_factor(self) -> float:
        """What logits are multiplied by before the cap, under the names and in the order that TRL's trainers read."""
        text_config: Any = self.text_config
        for name in ("logit_scale", "output_multiplier", "lm_head_multiplier"):
            if getattr(text_config, name, None) is not None:
                return float(getattr(text_config, name))
        scaling = getattr(text_config, "logits_scaling", None) or 1.0
        return float(scaling if self.text_config.model_type == "hyperclovax" else 1 / scaling)

    @property
    def vocabulary(self) -> Vocabulary:
        """The mapping between codes and ids."""
        return Vocabulary(
            image_token_offset=self.image_token_offset,
            codebook_size=self.vq_config.codebook_size,
            boi_token_id=self.boi_token_id,
            eoi_token_id=self.eoi_token_id,
            image_pad_token_id=self.image_pad_token_id,
        )
