"""LoRA that acts where images are: text before or without an image stays exactly the base model's.

CogVLM's visual expert (arXiv 2311.03079) as a low-rank update, at one of three kinds of `positions`:
    image_tokens  inside the blocks of input and output images, where states come from image features. Text after an
                  image sees its updated keys and values, through its own unchanged weights.
    after_image   there and at all that follows a document's first image: answers about it need not come from weights
                  that have never seen one, but text after an image is the base's no more.
    split_ranks   as after_image, by ranks of their own: the last quarter acts after images alone, the others inside
                  alone. Text need not use what was made for codes, and a document's first image is generated as with
                  `image_tokens`.

Built from what PEFT offers for the purpose: a LoRA variant, a custom layer that knows it, and a configuration that
asks for both. A saved adapter says `"peft_type": "IMAGE_LORA"`, so that PEFT without this room refuses to load it
instead of updating every position.
"""

import math
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora import Linear
from peft.tuners.lora.layer import LoraVariant
from peft.utils.integrations import gather_params_ctx
from torch import Tensor, nn
from transformers import PreTrainedModel

from unified.hardware.precision import product_dtype
from unified.models.format_version import upgrade

IMAGE_LORA = "IMAGE_LORA"
POSITIONS = ("image_tokens", "after_image", "split_ranks")
NEW_ROW = 3**-0.5  # expected norm of a row of a new `lora_A`: uniform within 1 / sqrt(in)


def ranks_after_image(rank: int) -> int:
    """How many of a `split_ranks` adapter's ranks act after images."""
    return max(1, rank // 4)


def check_rank(rank: int) -> None:
    """Raise ValueError where an adapter of `rank` has too few to split."""
    if rank < 2:
        raise ValueError(f"lora_rank {rank} leaves images nothing with split_ranks; give at least 2")


class ImageGate:
    """Tells the linear layers of a backbone, which see states and no ids, where images are.

    Every model owns one; `places` has masks (B, T, 1) bool of the states which run, `image_tokens` and `after_image`,
    and (B, T, rank) for the `ranks` of `split_ranks` adapters. All are made before the backbone runs, whose layers may
    be compiled.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.places: dict[str | int, Tensor] = {}
        self.ranks: set[int] = set()
        for layer in backbone.modules():
            if isinstance(layer, nn.Linear):
                layer.image_gate = self  # type: ignore[assignment]  # torch expects tensors and modules

    def run(
        self, backbone: PreTrainedModel, inside: Tensor, documents: Tensor | None, seen: Tensor | None, **inputs: Any
    ) -> Any:
        """`backbone(**inputs)` on states in images where `inside` (B, T) bool; see `after_image` for the others.

        Checkpointed layers run again in the backward pass, and other batches may have come in between: the gate goes
        back to where it was.
        """
        here: dict[str | int, Tensor] = {"image_tokens": inside[..., None]}
        self.places = here
        cache = inputs.get("past_key_values")
        if seen is not None or cache is None or not cache.get_seq_length():
            here["after_image"] = after_image(inside, documents, seen)[..., None]
            here |= {rank: rank_mask(here["image_tokens"], here["after_image"], rank) for rank in self.ranks}
        outputs = backbone(**inputs)
        if outputs[0].requires_grad and backbone.is_activation_checkpointing:
            outputs[0].register_hook(lambda _: setattr(self, "places", here))
        return outputs

    def of(self, positions: str, rank: int) -> Tensor:
        """Where an adapter's `rank` updates act: (B, T, 1) bool, or (B, T, rank) where they differ.

        Raises ValueError behind a cache of which nobody said whether it holds images, where that matters.
        """
        if positions != "image_tokens" and "after_image" not in self.places:
            raise ValueError("image_seen must be given with a filled cache: these updates act behind images too")
        return self.places[rank if positions == "split_ranks" else positions]


def rank_mask(inside: Tensor, later: Tensor, rank: int) -> Tensor:
    """Where each of `rank` updates acts, (B, T, rank) bool: most `inside` (B, T, 1), the last only `later`."""
    behind = ranks_after_image(rank)
    return torch.cat([inside.expand(-1, -1, rank - behind), (later & ~inside).expand(-1, -1, behind)], dim=-1)


def after_image(inside: Tensor, documents: Tensor | None, seen: Tensor | None) -> Tensor:
    """Positions (B, T) bool that are `inside` (B, T) an image or behind one of their document.

    documents: (B, T), ids that never fall along a row, -1 at its padding; None: every row is one.
    seen: (B,) bool, rows whose cached positions, in front of these, hold an image; None: none.
    """
    numbers = torch.ones_like(inside, dtype=torch.long) if documents is None else documents + 1
    latest = torch.where(inside, numbers, 0).cummax(dim=1).values  # the document of the last image so far
    behind = (latest == numbers) & (latest > 0)
    return behind if seen is None else behind | seen[:, None]


class ImageVariant(LoraVariant):
    """Of a layer's low-rank update, what falls on the adapter's positions."""

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        """Notes where the adapter acts; LoRA's own matrices are all else it needs."""
        module.positions[adapter_name] = positions = kwargs["config"].positions
        if positions == "split_ranks":
            module.get_base_layer().image_gate.ranks.add(module.r[adapter_name])

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """`result` (B, T, out) of the base plus the update of `x` (B, T, in); plus exact zeros elsewhere."""
        places = module.get_base_layer().image_gate.of(module.positions[active_adapter], module.r[active_adapter])
        assert places.shape[:2] == x.shape[:2], f"gate of {tuple(places.shape)} for states {tuple(x.shape)}"
        low_rank = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        gate = places * module.scaling[active_adapter]  # scaled here, where a position has r values and not `out`
        return result.add_(module.lora_B[active_adapter](low_rank * gate.to(low_rank.dtype)))

    @staticmethod
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        """Raise ValueError: one matrix cannot update some positions only."""
        raise ValueError("updates of some positions cannot be merged into weights that text uses; keep the adapter")

    merge_safe = merge_unsafe = unmerge = refuse

    def supports_lora_conversion(self) -> bool:
        """No: a plain LoRA acts everywhere."""
        return False


class ImageLinear(Linear):
    """PEFT's LoRA layer, for adapters of `ImageLoraConfig` beside plain ones."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        vars(self)["positions"] = {}  # by adapter; before torch's own start, which ends with the first adapter's
        super().__init__(*args, **kwargs)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """PEFT's; under autocast `x` (B, T, in) is cast once, for the base and for its update."""
        return super().forward(x.to(product_dtype(x.device, x.dtype)), *args, **kwargs)

    def _cast_input_dtype(self, x: Any, dtype: torch.dtype) -> Any:
        return super()._cast_input_dtype(x, dtype if x is None else product_dtype(x.device, dtype))

    @property
    def lora_variants(self) -> dict[tuple[str, ...], type[LoraVariant] | None]:
        return {(): None, ("positions",): ImageVariant}


@torch.no_grad()
def split_ranks(layer: ImageLinear, adapter: str) -> None:
    """Free the ranks of an `image_tokens` adapter's layer that act after images once it is `split_ranks`.

    The others become the nearest update of so few ranks, by its singular vectors. All start as large as new ones do
    where they read, `lora_A`, so that each can learn; the freed ones at an update of zero.
    """
    down, up = (part[adapter].get_parameter("weight") for part in (layer.lora_A, layer.lora_B))  # (r, in), (out, r)
    with gather_params_ctx([down, up]):
        kept = len(down) - ranks_after_image(len(down))
        (out, left), (in_, right) = torch.linalg.qr(up.float()), torch.linalg.qr(down.T.float())
        u, s, v = torch.linalg.svd(left @ right.T, full_matrices=False)
        u, s, v = u[:, :kept], s[:kept], v[:kept]
        nn.init.kaiming_uniform_(down, a=math.sqrt(5))
        down[: len(s)] = (v @ in_.T * NEW_ROW).to(down)
        up.zero_()[:, : len(s)] = (out @ (u * s / NEW_ROW)).to(up)


@dataclass
class ImageLoraConfig(LoraConfig):
    """`LoraConfig` of an adapter whose low-rank updates act at some `POSITIONS` of a unified model only."""

    positions: str = field(default="image_tokens", metadata={"help": "where updates act", "is_lora_variant": True})
    format_version: int | None = field(default=None, metadata={"help": "of what is stored, see format_version.py"})

    def __post_init__(self) -> None:
        super().__post_init__()
        stored = upgrade({"positions": self.positions, "format_version": self.format_version}, "adapter_config.json")
        self.positions, self.format_version = stored["positions"], stored["format_version"]
        if self.positions not in POSITIONS:
            raise ValueError(f"positions {self.positions!r} is not one of {', '.join(POSITIONS)}: choose one of them")
        if self.positions == "split_ranks":
            check_rank(self.r)
        if self.lora_bias:
            raise ValueError("lora_bias True would move all positions; leave it off or use LoraConfig")
        self._register_custom_module({nn.Linear: ImageLinear})

    def to_dict(self) -> dict[str, Any]:
        """PEFT runs it as LoRA; what is written to disk names it as what it is."""
        return super().to_dict() | {"peft_type": IMAGE_LORA}


PEFT_TYPE_TO_CONFIG_MAPPING[IMAGE_LORA] = ImageLoraConfig  # type: ignore[index]  # its enum of types is closed
