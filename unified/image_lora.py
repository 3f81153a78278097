"""LoRA that acts where images are: text before or without an image stays exactly the base model's.

CogVLM's visual expert (arXiv 2311.03079) as a low-rank update, at one of two kinds of `positions`:
    image   inside the blocks of images that are written or read, where states come from image features. Text behind
            an image sees its updated keys and values, through its own unchanged weights.
    onward  there and at all that follows a document's first image: answers about it need not come from weights that
            have never seen one, but words behind an image are the base's no more.

Built from what PEFT offers for the purpose: a LoRA variant, a custom layer that knows it, and a configuration that
asks for both. A saved adapter says `"peft_type": "IMAGE_LORA"`, so that PEFT without this room refuses to load it
instead of updating every position.
"""

from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora import Linear
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn
from transformers import PreTrainedModel

from unified.precision import product_dtype

IMAGE_LORA = "IMAGE_LORA"
POSITIONS = ("image", "onward")


class ImageGate:
    """Tells the linear layers of a backbone, which see states and no ids, where images are.

    Every model owns one; `places` has a mask (B, T, 1) bool for each of `POSITIONS`, of the states which run.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.places: dict[str, Tensor] = {}
        for layer in backbone.modules():
            if isinstance(layer, nn.Linear):
                layer.image_gate = self  # type: ignore[assignment]  # torch expects tensors and modules

    def run(
        self, backbone: PreTrainedModel, inside: Tensor, documents: Tensor | None, seen: Tensor | None, **inputs: Any
    ) -> Any:
        """`backbone(**inputs)` on states that lie in images where `inside` (B, T) bool; see `onward` for the others.

        Checkpointed layers run again in the backward pass, and other batches may have come in between: the gate goes
        back to where it was.
        """
        self.places = here = {"image": inside[..., None]}
        cache = inputs.get("past_key_values")
        if seen is not None or cache is None or not cache.get_seq_length():
            here["onward"] = onward(inside, documents, seen)[..., None]
        outputs = backbone(**inputs)
        if outputs[0].requires_grad and backbone.is_activation_checkpointing:
            outputs[0].register_hook(lambda _: setattr(self, "places", here))
        return outputs


def onward(inside: Tensor, documents: Tensor | None, seen: Tensor | None) -> Tensor:
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
        module.positions[adapter_name] = kwargs["config"].positions

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """`result` (B, T, out) of the base plus the update of `x` (B, T, in); plus exact zeros elsewhere.

        Raises ValueError behind a cache of which nobody said whether it holds images, where that matters.
        """
        inside = module.get_base_layer().image_gate.places.get(module.positions[active_adapter])
        if inside is None:
            raise ValueError("image_seen must be given with a filled cache: these updates act behind images too")
        assert inside.shape[:2] == x.shape[:2], f"gate of {tuple(inside.shape)} for states {tuple(x.shape)}"
        low_rank = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        gate = inside * module.scaling[active_adapter]  # scaled here, where a position has r values and not `out`
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


@dataclass
class ImageLoraConfig(LoraConfig):
    """`LoraConfig` of an adapter whose low-rank updates act at some `POSITIONS` of a unified model only."""

    positions: str = field(default="image", metadata={"help": "where updates act", "is_lora_variant": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.positions not in POSITIONS:
            raise ValueError(f"positions {self.positions!r} is not one of {', '.join(POSITIONS)}: choose one of them")
        if self.lora_bias:
            raise ValueError("lora_bias True would move all positions; leave it off or use LoraConfig")
        self._register_custom_module({nn.Linear: ImageLinear})

    def to_dict(self) -> dict[str, Any]:
        """PEFT runs it as LoRA; what is written to disk names it as what it is."""
        return super().to_dict() | {"peft_type": IMAGE_LORA}


PEFT_TYPE_TO_CONFIG_MAPPING[IMAGE_LORA] = ImageLoraConfig  # type: ignore[index]  # its enum of types is closed
