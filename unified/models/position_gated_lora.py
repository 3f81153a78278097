"""LoRA applied at image positions: text before or without an image is exactly the base model's.

CogVLM's visual expert (arXiv 2311.03079) as a low-rank update, applied at one of three sets of `positions`:
    image_tokens  positions inside input and output images, where states come from image features. Text after an
                  image attends to its updated keys and values, with unchanged weights of its own.
    after_image   these and all positions after a document's first image: answers about it need not come from weights
                  that were never trained on one, but text after an image is no longer the base's.
    split_ranks   as after_image, with separate ranks: the last quarter is applied after images only, the others inside
                  only. Text need not use updates trained for codes, and a document's first image is generated as with
                  `image_tokens`.

Built from PEFT's extension points: a LoRA variant, a custom layer with this variant, and a configuration that selects
both. A saved adapter has `"peft_type": "IMAGE_LORA"`, so that PEFT without this package refuses to load it instead of
updating every position.
"""

import math
import threading
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora import Linear
from peft.tuners.lora.layer import LoraVariant
from peft.utils.integrations import gather_params_ctx
from torch import Tensor, nn

from unified.hardware.precision import product_dtype
from unified.models.format_version import upgrade

IMAGE_LORA = "IMAGE_LORA"
POSITIONS = ("image_tokens", "after_image", "split_ranks")
LORA_A_ROW_NORM = 3**-0.5  # expected norm of a newly initialized row of `lora_A`: uniform within 1 / sqrt(in)


def ranks_after_image(rank: int) -> int:
    """Number of a `split_ranks` adapter's ranks that are applied after images."""
    return max(1, rank // 4)


def check_rank(rank: int) -> None:
    """Raise ValueError if `rank` is too small to be split."""
    if rank < 2:
        raise ValueError(f"lora_rank {rank} leaves no rank for images with split_ranks; set it to at least 2")


class _PassingMasks(threading.local):
    """Masks of the backbone's pass that this thread is in; none outside of one.

    Linear layers get states without ids, so the masks have to meet them there. A thread's own, because torch.compile
    can read these and no `ContextVar`. Keys: `image_tokens` and `after_image`, (B, T, 1) bool, and the ranks of
    `split_ranks` adapters, (B, T, rank).
    """

    def __init__(self) -> None:
        self.masks: dict[str | int, Tensor] = {}


_PASS = _PassingMasks()


class ImageGate:
    """Gives the image positions of a pass to the linear layers of a backbone.

    One per model; `ranks` are those of `split_ranks` adapters. The masks of a pass are computed before the backbone
    runs, whose layers may be compiled; none of them is kept here, so that threads may share a model.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.ranks: set[int] = set()
        self.bind(backbone)

    def bind(self, backbone: nn.Module) -> None:
        """Reach all linear layers of a backbone, also those that have been put in others' places: quantized ones."""
        for layer in backbone.modules():
            if isinstance(layer, nn.Linear):
                layer.image_gate = self  # type: ignore[assignment]  # torch expects tensors and modules

    def run_backbone(
        self,
        backbone: Any,  # a PreTrainedModel, or its compiled scale step, which runs without gradient
        in_image: Tensor,
        documents: Tensor | None,
        image_seen: Tensor | None,
        **inputs: Any,
    ) -> Any:
        """`backbone(**inputs)` with the masks of `in_image` (B, T) bool; see `after_image` for the others.

        Checkpointed layers are recomputed in the backward pass, possibly after other batches and in a thread of
        autograd's: a hook sets the masks there.
        """
        masks: dict[str | int, Tensor] = {"image_tokens": in_image[..., None]}
        cache = inputs.get("past_key_values")
        if image_seen is not None or cache is None or not cache.get_seq_length():
            masks["after_image"] = after_image(in_image, documents, image_seen)[..., None]
            masks |= {rank: rank_mask(masks["image_tokens"], masks["after_image"], rank) for rank in self.ranks}
        outer, _PASS.masks = _PASS.masks, masks
        try:
            outputs = backbone(**inputs)
        finally:
            _PASS.masks = outer
        if outputs[0].requires_grad and backbone.is_activation_checkpointing:
            outputs[0].register_hook(lambda _: setattr(_PASS, "masks", masks))
        return outputs


def update_mask(positions: str, rank: int) -> Tensor:
    """Where an adapter's updates are applied in this pass: (B, T, 1) bool, or (B, T, rank) if that differs by rank.

    Raises ValueError for `positions` after images with a filled cache but without `image_seen`, and outside a pass.
    """
    masks = _PASS.masks
    if not masks:
        raise ValueError("an adapter of image positions needs the ids; call the model, and not its language_model")
    if positions != "image_tokens" and "after_image" not in masks:
        raise ValueError("these updates are applied after images too; with a filled cache pass image_seen")
    return masks[rank if positions == "split_ranks" else positions]


def rank_mask(in_image: Tensor, after: Tensor, rank: int) -> Tensor:
    """Where each of `rank` ranks is applied, (B, T, rank) bool: most `in_image` (B, T, 1), the last only `after`."""
    count = ranks_after_image(rank)
    return torch.cat([in_image.expand(-1, -1, rank - count), (after & ~in_image).expand(-1, -1, count)], dim=-1)


def after_image(in_image: Tensor, documents: Tensor | None, image_seen: Tensor | None) -> Tensor:
    """Positions (B, T) bool that are inside an image (`in_image` (B, T)) or after one of the same document.

    documents: (B, T), non-decreasing ids along a row, -1 at its padding; None: one document per row.
    image_seen: (B,) bool, rows whose cache contains an image; None: none.
    """
    numbers = torch.ones_like(in_image, dtype=torch.long) if documents is None else documents + 1
    latest = torch.where(in_image, numbers, 0).cummax(dim=1).values  # the document of the last image so far
    after = (latest == numbers) & (latest > 0)
    return after if image_seen is None else after | image_seen[:, None]


class ImageVariant(LoraVariant):
    """Applies a layer's low-rank update at the adapter's positions only."""

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        """Registers the adapter's positions; it has no parameters besides LoRA's."""
        module.positions[adapter_name] = positions = kwargs["config"].positions
        if positions == "split_ranks":
            module.get_base_layer().image_gate.ranks.add(module.r[adapter_name])

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """The base's `result` (B, T, out) plus the update of `x` (B, T, in), which is exactly 0 elsewhere."""
        mask = update_mask(module.positions[active_adapter], module.r[active_adapter])
        mask = mask.flatten(0, 1) if x.ndim == 2 else mask  # a mixture of experts has no rows
        assert mask.shape[:-1] == x.shape[:-1], f"mask of {tuple(mask.shape)} for states {tuple(x.shape)}"
        low_rank = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        gate = mask * module.scaling[active_adapter]  # scaled here, where a position has r values and not `out`
        return result.add_(module.lora_B[active_adapter](low_rank * gate.to(low_rank.dtype)))

    @staticmethod
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        """Raise ValueError: merged weights would apply to all positions."""
        raise ValueError("updates of some positions cannot be merged into weights that text uses; keep the adapter")

    merge_safe = merge_unsafe = unmerge = refuse

    def supports_lora_conversion(self) -> bool:
        """No: a plain LoRA is applied at all positions."""
        return False


class ImageLinear(Linear):
    """PEFT's LoRA layer for adapters of `ImageLoraConfig`, besides plain ones."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        vars(self)["positions"] = {}  # by adapter; set before PEFT's constructor, which adds the first adapter
        super().__init__(*args, **kwargs)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As PEFT's; under autocast `x` (B, T, in) is cast once, for both the base layer and its update."""
        return super().forward(x.to(product_dtype(x.device, x.dtype)), *args, **kwargs)

    def _cast_input_dtype(self, x: Any, dtype: torch.dtype) -> Any:
        return super()._cast_input_dtype(x, dtype if x is None else product_dtype(x.device, dtype))

    @property
    def lora_variants(self) -> dict[tuple[str, ...], type[LoraVariant] | None]:
        return {(): None, ("positions",): ImageVariant}


@torch.no_grad()
def split_ranks(layer: ImageLinear, adapter: str) -> None:
    """Reinitialize the ranks of an `image_tokens` adapter's layer that are applied after images with `split_ranks`.

    The other ranks become the best low-rank approximation of the update (truncated SVD). Rows of `lora_A` have the
    norm of newly initialized ones, so that each can be trained; the reinitialized ranks' update is zero.
    """
    down, up = (part[adapter].get_parameter("weight") for part in (layer.lora_A, layer.lora_B))  # (r, in), (out, r)
    with gather_params_ctx([down, up]):
        kept = len(down) - ranks_after_image(len(down))
        (out, left), (in_, right) = torch.linalg.qr(up.float()), torch.linalg.qr(down.T.float())
        u, s, v = torch.linalg.svd(left @ right.T, full_matrices=False)
        u, s, v = u[:, :kept], s[:kept], v[:kept]
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        down[: len(s)] = (v @ in_.T * LORA_A_ROW_NORM).to(down)
        up.zero_()[:, : len(s)] = (out @ (u * s / LORA_A_ROW_NORM)).to(up)


@dataclass
class ImageLoraConfig(LoraConfig):
    """`LoraConfig` of an adapter whose low-rank updates are applied at some `POSITIONS` of a unified model only."""

    positions: str = field(
        default="image_tokens", metadata={"help": "where updates are applied", "is_lora_variant": True}
    )
    format_version: int | None = field(
        default=None, metadata={"help": "version of the stored format, see format_version.py"}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        stored = upgrade({"positions": self.positions, "format_version": self.format_version}, "adapter_config.json")
        self.positions, self.format_version = stored["positions"], stored["format_version"]
        if self.positions not in POSITIONS:
            raise ValueError(f"unknown positions {self.positions!r}; choose from {', '.join(POSITIONS)}")
        if self.positions == "split_ranks":
            check_rank(self.r)
        if self.lora_bias:
            raise ValueError("lora_bias True would change all positions; set it to False or use LoraConfig")
        self._register_custom_module({nn.Linear: ImageLinear})

    def to_dict(self) -> dict[str, Any]:
        """PEFT handles it as LoRA; on disk its `peft_type` is IMAGE_LORA."""
        return super().to_dict() | {"peft_type": IMAGE_LORA}


PEFT_TYPE_TO_CONFIG_MAPPING[IMAGE_LORA] = ImageLoraConfig  # type: ignore[index]  # its enum of types is closed
