"""Checkpoints and adapters to new folders: saved whole, merged into one checkpoint, or small enough to ship."""

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
    is_adapter,
    make_record,
    positions_of,
    read_adapter_config,
)
from unified.checkpoints.loading import checkpoint_of, load
from unified.files.atomic import check_free, new_folder
from unified.models.modeling import UnifiedForCausalLM
from unified.models.processing import UnifiedProcessor


def merge(model_dir: str | os.PathLike, out: str | os.PathLike) -> None:
    """Write the adapter `model_dir` and its base to `out` as one full checkpoint with its processor.

    Raises ValueError where `model_dir` holds no adapter, or one that does not act everywhere, or `out` is in the way.
    """
    check_adapter(model_dir)
    positions = positions_of(Path(model_dir))
    if positions != "all":
        raise ValueError(
            f"{model_dir} was trained with lora_positions {positions}: some text does not use its updates, so they "
            "cannot be merged into the weights; use the folder as it is, or train with lora_positions all"
        )
    check_free(out)
    save(*load(model_dir, device="cpu"), out)


def publish(
    model_dir: str | os.PathLike,
    out: str | os.PathLike,
    dtype: torch.dtype = torch.bfloat16,
    base: str | None = None,
    made_with: Sequence[str] = (),
) -> None:
    """Write the adapter `model_dir` to the new folder `out`, small enough to ship, with processor and base's digest.

    Args:
        dtype: of the weights; training goes on in float32 from any.
        base: where others find the base, relative to the folder they work in; by default what the adapter says.
        made_with: the commands that make it, for those who do not have it.

    Raises ValueError where `model_dir` holds no adapter, as `checkpoint_of`, where `out` is in the way, and where
    `base` is another checkpoint here.
    """
    adapter = Path(model_dir)
    check_adapter(adapter)
    check_free(out)
    source = checkpoint_of(adapter)
    record = make_record(adapter, source, base or str(source), made_with)
    config = read_adapter_config(adapter) | {"base_model_name_or_path": record["base"]}
    weights = {name: value.to(dtype) for name, value in load_file(adapter / ADAPTER_WEIGHTS).items()}
    with new_folder(out) as folder:
        UnifiedProcessor.from_pretrained(source).save_pretrained(folder)
        save_file(weights, folder / ADAPTER_WEIGHTS, {"format": "pt"})
        for name, content in ((ADAPTER_CONFIG, config), (BASE_RECORD, record)):
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_adapter(folder: str | os.PathLike) -> None:
    """Raise ValueError where `folder` holds no adapter."""
    if not is_adapter(folder):
        raise ValueError(f"{folder} has no {ADAPTER_CONFIG}; give the output folder of a LoRA run")


def save(model: UnifiedForCausalLM, processor: UnifiedProcessor, out: str | os.PathLike) -> None:
    """Write both to the new folder `out`, whole or not at all."""
    with new_folder(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
