"""`UnifiedConfig`: a backbone, an image tokenizer, and how the two are joined."""

from os import PathLike
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
LAYER_KINDS = {"full_attention", "sliding_attention"}  # those that a mask of blocks can be given to


def layer_kinds(text_config: PreTrainedConfig) -> set[str]:
    """Kinds of a backbone's layers, as HF names them. Raises ValueError unless all are `LAYER_KINDS`."""
    kinds = set(getattr(text_config, "layer_types", None) or ["full_attention"])
    if not kinds <= LAYER_KINDS or not getattr(text_config, "num_attention_heads", 0):
        found = f"layers of kind {', '.join(sorted(kinds))}" if not kinds <= LAYER_KINDS else "no attention heads"
        raise ValueError(f"the backbone has {found}; take one whose layers are all {' or '.join(sorted(LAYER_KINDS))}")
    return kinds


class UnifiedConfig(PreTrainedConfig):
    """A causal LM whose vocabulary goes on with the codes of an image tokenizer.

    Attributes:
        text_config: the backbone's own configuration, `vocab_size` already that of the union.
        vq_config: the image tokenizer's.
        vq_fingerprint: `VQModel.fingerprint()` of the tokenizer whose codes this model speaks.
        image_order: "scales" (next-scale prediction: one parallel step a scale) or "raster" (code by code).
        image_positions: RoPE positions of an image: "shared" (by all of a scale) or "sequential" (one a token).
        boi_token_id, eoi_token_id, image_pad_token_id, image_token_offset: see `Vocabulary`.
        text_loss_weight, scale_loss_weights: weights of the loss for text and for every scale (None: all 1).
        modality_stride: the `-log p(image)` part of the image loss is computed on every n-th image position and
            counted n times (see `union_loss`); above 1 it spares most of the output matrix.
        format_version: of what is stored, see `format_version.py`.
    """

    model_type = "unified"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
        "vq_config": SubConfigSpec(config_class=VQConfig),
    }

    if TYPE_CHECKING:  # what HF makes of the values it takes
        text_config: PreTrainedConfig
        vq_config: VQConfig
    else:
        text_config: dict | PreTrainedConfig | None = None
        vq_config: dict | PreTrainedConfig | None = None
    vq_fingerprint: str = ""
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
        """HF's, of any version's config.json; ValueError for one that is newer than this package."""
        return super().from_dict(upgrade(config_dict, "config.json"), **kwargs)

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = self.text_config.tie_word_embeddings
        self.auto_map = dict(AUTO_MAP)
        scales = normalize_patch_nums(self.patch_nums)
        if self.image_order == "raster" and len(scales) > 1:
            raise ValueError(
                f"image_order raster takes a tokenizer of one scale, got patch_nums {list(self.patch_nums)}; "
                "use image_order scales"
            )
        self.check_loss()

    def save_pretrained(self, save_directory: str | PathLike, push_to_hub: bool = False, **kwargs: Any) -> None:
        """Write config.json, and beside it the module through which HF's Auto classes find this package."""
        super().save_pretrained(save_directory, push_to_hub, **kwargs)
        write_module(save_directory)

    def check_loss(self) -> None:
        """Raise ValueError for settings of the loss that make none; for who changes them after construction."""
        scales = normalize_patch_nums(self.patch_nums)
        if self.scale_loss_weights is not None and len(self.scale_loss_weights) != len(scales):
            raise ValueError(
                f"scale_loss_weights has {len(self.scale_loss_weights)} values for {len(scales)} scales; give one each"
            )
        if self.modality_stride < 1:
            raise ValueError(f"modality_stride {self.modality_stride} is below 1; 1 computes every position")

    @property
    def patch_nums(self) -> tuple[tuple[int, int], ...]:
        """Sides of an image's scales."""
        return normalize_patch_nums(self.vq_config.patch_nums)

    @property
    def image_length(self) -> int:
        """Codes of an output image, L."""
        return image_length(self.patch_nums)

    @property
    def input_image_length(self) -> int:
        """Placeholders of an input image, h_K * w_K."""
        h, w = self.patch_nums[-1]
        return h * w

    @property
    def image_rope_positions(self) -> int:
        """RoPE positions that an output image takes, with its start and end."""
        shared = self.image_order == "scales" and self.image_positions == "shared"
        return (len(self.patch_nums) if shared else self.image_length) + 2

    @property
    def logit_cap(self) -> float | None:
        """Gemma's soft cap of the final logits, None for other backbones."""
        return self.text_config.to_dict().get("final_logit_softcapping")

    @property
    def vocabulary(self) -> Vocabulary:
        """The map between codes and ids."""
        return Vocabulary(
            image_token_offset=self.image_token_offset,
            codebook_size=self.vq_config.codebook_size,
            boi_token_id=self.boi_token_id,
            eoi_token_id=self.eoi_token_id,
            image_pad_token_id=self.image_pad_token_id,
        )
