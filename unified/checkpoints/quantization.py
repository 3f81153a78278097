"""Layers of a backbone in 4 or 8 bit of bitsandbytes: the options of `from_pretrained`, for use and for QLoRA.

Image tokenizer, image embedding and the vocabulary's matrices stay whole, see `NEVER_QUANTIZED`.
"""

from importlib.util import find_spec
from typing import Any, Literal, get_args

import torch
from transformers import BitsAndBytesConfig

Bits = Literal["4bit", "8bit"]


def check_bits(bits: str | None) -> None:
    """Raise ValueError for a `quantize` that does not exist, and where bitsandbytes is not installed."""
    if bits is not None and bits not in get_args(Bits):
        raise ValueError(f"quantize {bits!r}; choose from {', '.join(get_args(Bits))}")
    if bits is not None and find_spec("bitsandbytes") is None:
        raise ValueError(f"quantize {bits}: bitsandbytes is not installed; pip install 'unified-ar[quantized]'")


def quantization(bits: Bits | None, device: torch.device) -> dict[str, Any]:
    """Options of `from_pretrained` for `quantize` on a device; none without it. Raises ValueError as `check_bits`."""
    check_bits(bits)
    if bits is None:
        return {}
    four = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}
    # products on the CPU are float32, as its machine may have no fast bf16
    compute = {"bnb_4bit_compute_dtype": torch.float32 if device.type == "cpu" else torch.bfloat16}
    config = BitsAndBytesConfig(**(four | compute if bits == "4bit" else {"load_in_8bit": True}))
    return {"quantization_config": config, "device_map": {"": device}}
