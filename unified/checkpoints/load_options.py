"""How scripts and commands load a model: what `load` is told beside the folder."""

from dataclasses import dataclass
from typing import Any, Literal

from unified.arguments.fields import arg
from unified.checkpoints.loading import load, weights_digest
from unified.checkpoints.quantization import Bits
from unified.models.modeling import UnifiedForCausalLM
from unified.models.processing import UnifiedProcessor


@dataclass(kw_only=True)
class LoadOptions:
    """How the model of a script is loaded."""

    dtype: Literal["auto", "float32", "bfloat16"] = arg("auto", "of the weights; auto: as stored")
    base: str | None = arg(
        None, "folder or hub name of an adapter's base; None: where the adapter says it is, or UNIFIED_BASE"
    )
    quantize: Bits | None = arg(
        None, "the LLM's layers in 4 or 8 bit of bitsandbytes, an adapter's beside them; None: as stored"
    )

    def load(self, model: str) -> tuple[UnifiedForCausalLM, UnifiedProcessor]:
        """`load` of the folder or hub name `model`."""
        return load(model, dtype=None if self.dtype == "auto" else self.dtype, base=self.base, quantize=self.quantize)

    def digest(self, model: str) -> str:
        """`weights_digest` of what `load` loads."""
        return weights_digest(model, self.base)

    def quantized(self) -> dict[str, Any]:
        """`quantize` where it is given, for records: those of earlier versions have none."""
        return {} if self.quantize is None else {"quantize": self.quantize}
