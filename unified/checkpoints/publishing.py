"""Saving checkpoints and adapters to new folders: saved, merged into one checkpoint, or published."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from unified.checkpoints.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_RECORD,
    adapter_positions,
    is_adapter,
    make_base_record,
    read_adapter_config,
)
from unified.checkpoints.loading import load, resolve_base_checkpoint
from unified.files.atomic import check_not_exists, new_folder
from unified.models.modeling import UnifiedForCausalLM
from unified.models.processing import UnifiedProcessor


def merge(model_dir: str | os.PathLike, out: str | os.PathLike) -> None:
    """Write the adapter `model_dir` and its base to `out` as one full checkpoint with its processor.

    Raises ValueError if `model_dir` contains no adapter, one with other `lora_positions` than all or one that was not
    trained, or if `out` exists.
    """
    check_adapter(model_dir)
    positions = adapter_positions(Path(model_dir))
    if positions != "all":
        raise ValueError(
            f"{model_dir} was trained with lora_positions {positions}: some text does not use its updates, so they "
            "cannot be merged into the weights; use the folder as it is, or train with lora_positions all"
        )
    check_not_exists(out)
    check_trained(model_dir)
    save(*load(model_dir, device="cpu"), out)


def publish(
    model_dir: str | os.PathLike,
    out: str | os.PathLike,
    dtype: torch.dtype = torch.bfloat16,
    base: str | None = None,
    made_with: Sequence[str] = (),
) -> None:
    """Write the adapter `model_dir` to the new folder `out` in a small dtype, with processor and digest of its base.

    Args:
        dtype: of the weights; further training converts them to float32.
        base: path of the base for users, relative to their working directory; by default the adapter's.
        made_with: commands that make the base, for users without it.

    Raises ValueError if `model_dir` contains no adapter or an untrained one, as `resolve_base_checkpoint`, if `out`
    exists, and if `base` is another checkpoint.
    """
    adapter = Path(model_dir)
    check_adapter(adapter)
    check_not_exists(out)
    check_trained(adapter)
    source = resolve_base_checkpoint(adapter)
    record = make_base_record(adapter, source, base or str(source), made_with)
    config = read_adapter_config(adapter) | {"base_model_name_or_path": record["base"]}
    weights = {name: value.to(dtype) for name, value in load_file(adapter / ADAPTER_WEIGHTS).items()}
    with new_folder(out) as folder:
        UnifiedProcessor.from_pretrained(source).save_pretrained(folder)
        save_file(weights, folder / ADAPTER_WEIGHTS, {"format": "pt"})
        for name, content in ((ADAPTER_CONFIG, config), (BASE_RECORD, record)):
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_adapter(folder: str | os.PathLike) -> None:
    """Raise ValueError if `folder` contains no adapter."""
    if not is_adapter(folder):
        raise ValueError(f"{folder} has no {ADAPTER_CONFIG}; give the output folder of a LoRA run")


def check_trained(adapter: str | os.PathLike) -> None:
    """Raise ValueError for an adapter whose weights are not finite, or whose updates are as they began: zero."""
    updates = []
    for name, value in load_file(Path(adapter) / ADAPTER_WEIGHTS).items():
        if not value.isfinite().all():
            raise ValueError(f"{adapter} has weights that are not finite, {name} first: its training diverged")
        if ".lora_B." in name:
            updates.append(bool(value.any()))
    if updates and not any(updates):
        raise ValueError(f"{adapter} was never trained: its updates are all zero; give the output of a LoRA run")


def save(model: UnifiedForCausalLM, processor: UnifiedProcessor, out: str | os.PathLike) -> None:
    """Write both to the new folder `out`, atomically."""
    with new_folder(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
