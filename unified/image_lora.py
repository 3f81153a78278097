"""LoRA that acts on image positions only: text before or without an image stays exactly the base model's.

CogVLM's visual expert (arXiv 2311.03079) as a low-rank update. It acts inside the blocks of images that are written or
read, where states come from image features; `boi` and `eoi` are rows of the vocabulary and run on the base's weights,
as text does. Text behind an image sees the image's updated keys and values, through its own unchanged weights.

Built from what PEFT offers for the purpose: a LoRA variant, a custom layer that knows it, and a configuration that
asks for both. A saved adapter says `"peft_type": "IMAGE_LORA"`, so that PEFT without this room refuses to load it
instead of updating every position.
"""

from dataclasses import dataclass, field
from typing import Any, NoReturn

from peft import LoraConfig
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.lora import Linear
from peft.tuners.lora.layer import LoraVariant
from torch import Tensor, nn
from transformers import PreTrainedModel

IMAGE_LORA = "IMAGE_LORA"


class ImageGate:
    """Tells the linear layers of a backbone, which see states and no ids, which positions lie in images.

    Every model owns one; `inside` (B, T, 1) bool is that of the states which run.
    """

    def __init__(self, backbone: nn.Module) -> None:
        self.inside: Tensor | None = None
        for layer in backbone.modules():
            if isinstance(layer, nn.Linear):
                layer.image_gate = self  # type: ignore[assignment]  # torch expects tensors and modules

    def run(self, backbone: PreTrainedModel, inside: Tensor, **inputs: Any) -> Any:
        """`backbone(**inputs)` on states that lie in images where `inside` (B, T) bool.

        Checkpointed layers run again in the backward pass, and other batches may have come in between: the gate goes
        back to where it was.
        """
        self.inside = here = inside[..., None]
        outputs = backbone(**inputs)
        if outputs[0].requires_grad and backbone.is_activation_checkpointing:
            outputs[0].register_hook(lambda _: setattr(self, "inside", here))
        return outputs


class ImageVariant(LoraVariant):
    """Of a layer's low-rank update, what falls on image positions."""

    @staticmethod
    def init(module: Any, adapter_name: str, **kwargs: Any) -> None:
        """LoRA's own matrices are all it needs."""

    @staticmethod
    def forward(module: Any, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any) -> Tensor:
        """`result` (B, T, out) of the base plus the update of `x` (B, T, in); plus exact zeros outside images."""
        inside: Tensor = module.get_base_layer().image_gate.inside
        assert inside.shape[:2] == x.shape[:2], f"gate of {tuple(inside.shape)} for states {tuple(x.shape)}"
        low_rank = module.lora_A[active_adapter](module.lora_dropout[active_adapter](x))
        gate = inside * module.scaling[active_adapter]  # scaled here, where a position has r values and not `out`
        return result + module.lora_B[active_adapter](low_rank * gate.to(low_rank.dtype))

    @staticmethod
    def refuse(*args: Any, **kwargs: Any) -> NoReturn:
        """Raise ValueError: one matrix cannot update some positions only."""
        raise ValueError("updates of image positions cannot be merged into weights that text uses; keep the adapter")

    merge_safe = merge_unsafe = unmerge = refuse

    def supports_lora_conversion(self) -> bool:
        """No: a plain LoRA acts everywhere."""
        return False


class ImageLinear(Linear):
    """PEFT's LoRA layer, for adapters of `ImageLoraConfig` beside plain ones."""

    @property
    def lora_variants(self) -> dict[tuple[str, ...], type[LoraVariant] | None]:
        return {(): None, ("positions",): ImageVariant}


@dataclass
class ImageLoraConfig(LoraConfig):
    """`LoraConfig` of an adapter whose low-rank updates act on image positions of a unified model only."""

    positions: str = field(default="image", metadata={"help": "where updates act", "is_lora_variant": True})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lora_bias:
            raise ValueError("lora_bias True would move text positions as well; leave it off or use LoraConfig")
        self._register_custom_module({nn.Linear: ImageLinear})

    def to_dict(self) -> dict[str, Any]:
        """PEFT runs it as LoRA; what is written to disk names it as what it is."""
        return super().to_dict() | {"peft_type": IMAGE_LORA}


PEFT_TYPE_TO_CONFIG_MAPPING[IMAGE_LORA] = ImageLoraConfig  # type: ignore[index]  # its enum of types is closed
