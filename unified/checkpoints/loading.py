"""A folder to a model that is ready to use, and back: full checkpoints, and PEFT adapters merged into their base."""

import hashlib
import json
import os
from pathlib import Path

import torch
from peft import PeftModel
from peft.utils import AuxiliaryTrainingWrapper
from safetensors import safe_open

from unified.checkpoints.adapters import (
    ADAPTER_WEIGHTS,
    attach,
    base_of,
    check_base,
    is_adapter,
    positions_of,
)
from unified.files.weights import check_weights
from unified.hardware.device import best_device
from unified.models.configuration import UnifiedConfig
from unified.models.modeling import UnifiedForCausalLM
from unified.models.processing import UnifiedProcessor

FROZEN = "model.vq_model."


def load(
    model_dir: str | os.PathLike, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> tuple[UnifiedForCausalLM, UnifiedProcessor]:
    """Model in eval mode and processor of a checkpoint or of an adapter, merged into its base as far as it can be.

    Args:
        device: the best there is by default: CUDA, then Apple's MPS, then the CPU.
        dtype: of the weights; as stored by default.

    Raises ValueError as `checkpoint_of`.
    """
    folder, base = Path(model_dir), checkpoint_of(model_dir)
    model = UnifiedForCausalLM.from_pretrained(base, dtype=dtype or "auto")
    if base != folder:
        adapted = attach(model, folder)
        model = adapted.merge_and_unload() if positions_of(folder) == "all" else merge_new_parts(adapted)
    processor = UnifiedProcessor.from_pretrained(base)
    return model.to(device or best_device()).eval(), processor  # type: ignore[arg-type]  # HF wraps nn.Module.to


def checkpoint_of(model_dir: str | os.PathLike) -> Path:
    """The checkpoint that `model_dir` is or, of an adapter, starts from.

    Raises ValueError where it (or the adapter) is missing, of another kind, incomplete, damaged, or not the base that
    a published adapter was trained on.
    """
    folder = Path(model_dir)
    if not is_adapter(folder):
        check_checkpoint(folder)
        return folder
    check_weights(folder, ADAPTER_WEIGHTS)
    base = base_of(folder)
    check_checkpoint(base)
    check_base(folder, base)
    return base


def merge_new_parts(adapted: PeftModel) -> UnifiedForCausalLM:
    """The model inside `adapted` with rows and image embedding merged, and only low-rank updates left to compute."""
    model = adapted.get_base_model()
    for name, part in list(model.named_modules()):
        if isinstance(part, AuxiliaryTrainingWrapper):
            whole = part.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
            model.set_submodule(name, whole)
    return model  # type: ignore[return-value]  # PEFT knows it as some module


def weights_digest(model_dir: str | os.PathLike) -> str:
    """SHA-256 of the files with weights: a checkpoint's, or an adapter's and its base's."""
    folder, digest = Path(model_dir), hashlib.sha256()
    folders = [folder, base_of(folder)] if is_adapter(folder) else [folder]
    for path in (path for folder in folders for path in sorted(folder.glob("*.safetensors"))):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def frozen_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The image tokenizer's weights in a checkpoint, by their names there."""
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            weights |= {name: file.get_tensor(name) for name in file.keys() if name.startswith(FROZEN)}
    return weights


def check_checkpoint(folder: Path) -> None:
    """Raise ValueError unless `folder` holds a unified model, its weights and its processor."""
    remedy = "give a folder written by `unified extend`, recipes/sft.py or `unified merge`"
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; {remedy}")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; {remedy}")
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind != UnifiedConfig.model_type:
        raise ValueError(f"{folder} holds a model of type {kind!r}, not {UnifiedConfig.model_type!r}; {remedy}")
    for needed in ("*.safetensors", "processor_config.json"):
        if not any(folder.glob(needed)):
            raise ValueError(f"{folder} has no {needed}; {remedy}")
    check_weights(folder)
