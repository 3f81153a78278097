"""Loading an image tokenizer from a folder."""

import json
import os
from pathlib import Path

import torch

from unified.files.weights import check_weights
from unified.hardware.device import best_device
from unified.image_tokenizer.configuration import VQConfig
from unified.image_tokenizer.model import VQModel


def load_vq(folder: str | os.PathLike, device: str | torch.device | None = None) -> VQModel:
    """Image tokenizer in eval mode and float32, on the best device by default; ValueError if `folder` has none."""
    config = Path(folder, "config.json")
    kind = json.loads(config.read_text(encoding="utf-8")).get("model_type") if config.is_file() else None
    if kind != VQConfig.model_type:
        found = "no config.json" if kind is None else f"a model of type {kind!r}"
        raise ValueError(
            f"vq {folder} holds no tokenizer ({found}); give a folder that recipes/train_vq.py or "
            "data_prep/convert_var_vq.py has written"
        )
    check_weights(Path(folder))
    vq = VQModel.from_pretrained(folder, dtype=torch.float32).eval()
    spoilt = [name for name, value in vq.state_dict().items() if not value.isfinite().all()]
    if spoilt:
        raise ValueError(f"vq {folder} has weights that are not finite, {spoilt[0]} first: its training diverged")
    return vq.to(device or best_device())  # type: ignore[arg-type]  # HF wraps nn.Module.to
