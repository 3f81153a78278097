"""QLoRA (arXiv 2305.14314): the frozen layers of a backbone in 4 or 8 bit of bitsandbytes, under a LoRA that learns.

`unified.checkpoints.quantization` has the options by which they are loaded.
"""

from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from unified.checkpoints.quantization import check_bits
from unified.training.arguments import UnifiedTrainingArguments
from unified.training.engines import engine_of


def keep_trainable(model: nn.Module) -> nn.Module:
    """`model`, whose 4-bit layers do not pack their weights for inference on the CPU: such have no gradient after."""
    for layer in model.modules():
        if type(layer).__module__.startswith("bitsandbytes"):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # any module, to torch
    return model


def check_quantized(bits: str | None, args: UnifiedTrainingArguments) -> None:
    """Raise ValueError for `quantize` without LoRA, where an engine would part the layers, and as `check_bits`."""
    check_bits(bits)
    if bits is None:
        return
    if args.tuning != "lora":
        raise ValueError(f"quantize {bits} keeps frozen layers small, but tuning {args.tuning} trains them; use lora")
    if is_deepspeed_zero3_enabled() or engine_of(args) == "FSDP":
        raise ValueError(f"quantize {bits} works in one process, DDP and ZeRO-2: ZeRO-3 and FSDP part the layers")
