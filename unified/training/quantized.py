"""QLoRA (arXiv 2305.14314): the frozen layers of a backbone in 4 or 8 bit of bitsandbytes, under a LoRA that learns.

Image tokenizer, image embedding and the vocabulary's matrices stay whole, see `NEVER_QUANTIZED`.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import nn
from transformers import BitsAndBytesConfig
from transformers.integrations import is_deepspeed_zero3_enabled

from unified.training.arguments import UnifiedTrainingArguments
from unified.training.engines import engine_of


def quantization(bits: str | None, device: torch.device) -> dict[str, Any]:
    """Options of `from_pretrained` for `quantize` on a device; none without it."""
    if bits is None:
        return {}
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    # products on the CPU are float32, as its machine may have no fast bf16
    compute = {"bnb_4bit_compute_dtype": torch.float32 if device.type == "cpu" else torch.bfloat16}
    config = BitsAndBytesConfig(**(four | compute if bits == "4bit" else {"load_in_8bit": True}))
    return {"quantization_config": config, "device_map": {"": device}}


def keep_trainable(model: nn.Module) -> nn.Module:
    """`model`, whose 4-bit layers do not pack their weights for inference on the CPU: such have no gradient after."""
    for layer in model.modules():
        if type(layer).__module__.startswith("bitsandbytes"):
            layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]  # any module, to torch
    return model


def check_quantized(bits: str | None, args: UnifiedTrainingArguments) -> None:
    """Raise ValueError for `quantize` without LoRA, without bitsandbytes, or where an engine would part the layers."""
    if bits is None:
        return
    if args.tuning != "lora":
        raise ValueError(f"quantize {bits} keeps frozen layers small, but tuning {args.tuning} trains them; use lora")
    if find_spec("bitsandbytes") is None:
        raise ValueError(f"quantize {bits}: bitsandbytes is not installed; pip install 'unified-ar[quantized]'")
    if is_deepspeed_zero3_enabled() or engine_of(args) == "FSDP":
        raise ValueError(f"quantize {bits} works in one process, DDP and ZeRO-2: ZeRO-3 and FSDP part the layers")
