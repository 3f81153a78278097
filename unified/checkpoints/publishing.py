"""Saving checkpoints and adapters to new folders, with a card: saved, merged into one checkpoint, or published."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from unified.checkpoints.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_RECORD,
    adapter_positions,
    base_name,
    found_base,
    is_adapter,
    make_base_record,
    read_adapter_config,
)
from unified.checkpoints.loading import load, load_processor, resolve_base_checkpoint
from unified.checkpoints.model_card import RESULTS, SAMPLES, run_of, write_card
from unified.files.atomic import check_not_exists, new_folder
from unified.files.hub import hub_name
from unified.models.modeling import UnifiedForCausalLM
from unified.models.processing import UnifiedProcessor


def merge(model_dir: str | os.PathLike, out: str | os.PathLike, base: str | os.PathLike | None = None) -> None:
    """Write the adapter `model_dir` and its base to `out` as one full checkpoint with its processor and card.

    `base` is where its base is, if not where the adapter says. Raises ValueError if `model_dir` contains no adapter,
    one with other `lora_positions` than all or one that was not trained, or if `out` exists.
    """
    check_adapter(model_dir)
    positions = adapter_positions(Path(model_dir))
    if positions != "all":
        raise ValueError(
            f"{model_dir} was trained with lora_positions {positions}: some text does not use its updates, so they "
            "cannot be merged into the weights; use the folder as it is, or train with lora_positions all"
        )
    check_not_exists(out)
    trained_weights(Path(model_dir))
    source = resolve_base_checkpoint(model_dir, base)
    save(*load(model_dir, device="cpu", base=base), out, [source], run_of(Path(model_dir)))


def publish(
    model_dir: str | os.PathLike,
    out: str | os.PathLike,
    dtype: torch.dtype = torch.bfloat16,
    base: str | None = None,
    made_with: Sequence[str] = (),
    results: Sequence[str | os.PathLike] = (),
    name: str | None = None,
    samples: Image.Image | None = None,
    licence: str | None = None,
) -> None:
    """Write the adapter or checkpoint `model_dir` to the new folder `out` in a small dtype, with processor and card.

    Args:
        dtype: of the weights; further training converts them to float32, and an image tokenizer keeps float32.
        base: path or hub name of an adapter's base for users; by default the adapter's. Its digest is recorded.
        made_with: commands that make the base, for users without it.
        results: result JSONs of evaluations, or folders of them, beside those in `model_dir`, for the card.
        name: what users call it, for the card; by default `out`.
        samples: a grid of its pictures for the card; by default the newest one of its training.
        licence: as the hub names licences; by default that of the base, where its card says it.

    Raises ValueError for an untrained adapter, as `resolve_base_checkpoint`, if `out` exists, and if `base` is another
    checkpoint, or given for what is no adapter.
    """
    model = Path(model_dir)
    check_not_exists(out)
    found = [path for place in (model / RESULTS, *map(Path, results)) for path in result_files(place)]
    with new_folder(out) as folder:
        if is_adapter(model):
            sources = publish_adapter(model, folder, dtype, base, made_with)
        elif base or made_with:
            raise ValueError(f"--base and --made-with are for an adapter, which {model} is not; leave them out")
        else:
            sources = [resolve_base_checkpoint(model)]
            loaded, processor = load(model, device="cpu", dtype=dtype)
            loaded.save_pretrained(folder)
            processor.save_pretrained(folder)
        for path in found:
            (folder / RESULTS).mkdir(exist_ok=True)
            shutil.copyfile(path, folder / RESULTS / path.name)
        grids = sorted(model.glob(f"{SAMPLES}/*.png")) or sorted(model.glob(f"{SAMPLES}.png"))
        if samples is not None:
            samples.save(folder / f"{SAMPLES}.png")
        elif grids:
            shutil.copyfile(grids[-1], folder / f"{SAMPLES}.png")
        write_card(folder, sources, run_of(model), name or str(out), licence)


def base_here(model: Path, base: str | None) -> str | None:
    """Where `model`'s base is now: `base` if it is a folder here and the adapter's is not found; else None."""
    elsewhere = base is not None and Path(base).is_dir() and is_adapter(model) and found_base(model) is None
    return base if elsewhere else None


def publish_adapter(
    adapter: Path, folder: Path, dtype: torch.dtype, base: str | None, made_with: Sequence[str]
) -> list[Path]:
    """The files of a published adapter, in `folder`; returns its base. See `publish`."""
    trained = trained_weights(adapter)
    source = resolve_base_checkpoint(adapter, base_here(adapter, base))
    repository = hub_name(source)
    default = str(base_name(adapter)) if repository is None else repository[0]
    record = make_base_record(adapter, source, base or default, made_with)
    config = read_adapter_config(adapter) | {"base_model_name_or_path": record["base"]}
    if repository is not None and record["base"] == repository[0]:
        config["revision"] = repository[1]
    weights = {name: value.to(dtype) for name, value in trained.items()}
    load_processor(adapter, source).save_pretrained(folder)
    save_file(weights, folder / ADAPTER_WEIGHTS, {"format": "pt"})
    for name, content in ((ADAPTER_CONFIG, config), (BASE_RECORD, record)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return [source]


def result_files(place: Path) -> list[Path]:
    """Result JSONs: `place` itself, or all in that folder; none where there is nothing."""
    return sorted(place.glob("*.json")) if place.is_dir() else [place] if place.is_file() else []


def check_adapter(folder: str | os.PathLike) -> None:
    """Raise ValueError if `folder` contains no adapter."""
    if not is_adapter(folder):
        raise ValueError(f"{folder} has no {ADAPTER_CONFIG}; give the output folder of a LoRA run")


def trained_weights(adapter: Path) -> dict[str, Tensor]:
    """An adapter's weights; ValueError where they are not finite, or its updates are as they began: zero."""
    weights, updates = load_file(adapter / ADAPTER_WEIGHTS), []
    for name, value in weights.items():
        if not value.isfinite().all():
            raise ValueError(f"{adapter} has weights that are not finite, {name} first: its training diverged")
        if ".lora_B." in name:
            updates.append(bool(value.any()))
    if updates and not any(updates):
        raise ValueError(f"{adapter} was never trained: its updates are all zero; give the output of a LoRA run")
    return weights


def save(
    model: UnifiedForCausalLM,
    processor: UnifiedProcessor,
    out: str | os.PathLike,
    sources: Sequence[str | os.PathLike] = (),
    run: Mapping[str, Any] | None = None,
) -> None:
    """Write both to the new folder `out`, atomically, with a card; `sources` and `run` as `write_card`."""
    with new_folder(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        write_card(folder, sources, run, str(out))
