"""Weighted means of adapters or checkpoints with one start: a fine-tuning and its start, or runs of one model.

A share of the way from a start to what was fine-tuned from it keeps more of what the start knew, above all of what
lies outside the data of the fine-tuning (Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", WiSE-FT).
"""

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from unified.checkpoints.adapters import (
    ADAPTER_WEIGHTS,
    found_base,
    is_adapter,
    move_base_record,
    read_adapter_config,
)
from unified.checkpoints.model_card import run_of, write_card
from unified.files.atomic import atomic_path, check_not_exists, new_folder
from unified.files.hub import model_folder
from unified.files.records import RECORDS
from unified.files.weights import check_weights

COMPARED = ("base_model_name_or_path", "peft_type", "r", "lora_alpha", "positions", "target_modules")
COPIED = (".json", ".jinja", ".model", ".txt")  # of the last model's folder: its config and processor


def average(models: Sequence[str | os.PathLike], shares: Sequence[float], out: str | os.PathLike) -> None:
    """Write the mean of adapters of one base, `shares` of each, to the new folder `out` with the last one's processor.

    Weights are summed in float32 and stored as the last adapter's are. Raises ValueError unless there are two models
    or more, as many shares, which sum to 1, and adapters that have the same settings and weights of the same shapes.
    """
    folders = [model_folder(model) for model in models]
    check_shares(folders, shares)
    check_not_exists(out)
    for folder in folders:
        if not is_adapter(folder):
            raise ValueError(f"{folder} is not a LoRA adapter; give the output folders of LoRA runs")
        check_weights(folder, ADAPTER_WEIGHTS)
    check_alike(folders)
    mean, differ = mean_of(folders, shares)
    if not differ:
        told = ", ".join(map(str, folders))
        raise ValueError(f"{told} have the same weights, so their mean is no other; give adapters that differ")
    with new_folder(out) as made:
        last = folders[-1]
        for path in last.iterdir():
            if path.suffix in COPIED and path.name not in RECORDS:
                (made / path.name).write_bytes(path.read_bytes())
        save_file(mean, made / ADAPTER_WEIGHTS, {"format": "pt"})
        describe_copy(last, made, str(out))


def describe_copy(adapter: Path, copy: Path, name: str) -> None:
    """Base record and card of the `copy` of an adapter with other weights; no card where its base is not here."""
    move_base_record(adapter, copy)
    base = found_base(copy)
    if base is not None:
        write_card(copy, [base], run_of(adapter), name)


def mix_in(start: str | os.PathLike, share: float, adapter: str | os.PathLike) -> None:
    """Replace an adapter's weights by their mean with `share` of those of its `start`, atomically.

    Raises ValueError as `average`.
    """
    folders, shares = [Path(start), Path(adapter)], [share, 1 - share]
    check_shares(folders, shares)
    check_alike(folders)
    weights, _ = mean_of(folders, shares)
    with atomic_path(folders[1] / ADAPTER_WEIGHTS) as partial:
        save_file(weights, partial, {"format": "pt"})


def mean_of(folders: Sequence[Path], shares: Sequence[float]) -> tuple[dict[str, Tensor], bool]:
    """The weights of adapters, `shares` of each, summed in float32, in the last one's dtypes; whether they differ.

    Each is read once. Raises ValueError for weights that are not finite.
    """
    total: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    differ = False
    for folder, share in zip(folders, shares, strict=True):
        weights = load_file(folder / ADAPTER_WEIGHTS)
        first = first or weights
        for name, value in weights.items():
            if not value.isfinite().all():
                raise ValueError(f"{folder} has weights that are not finite, {name} first: its training diverged")
            differ = differ or not torch.equal(value, first[name])
            part = value.float() * share
            total[name] = total[name].add_(part) if name in total else part
    return {name: total[name].to(value.dtype) for name, value in weights.items()}, differ


def read_shares(text: str | None, count: int) -> list[float]:
    """`text` as a list of numbers, 0.25,0.75; equal shares of `count` models where it is None."""
    if text is None:
        return [1 / count] * count
    try:
        return [float(share) for share in text.split(",")]
    except ValueError:
        raise ValueError(
            f"--shares {text!r} is not a list of numbers; give one for each model, as in 0.25,0.75"
        ) from None


def check_shares(folders: Sequence[Path], shares: Sequence[float]) -> None:
    """Raise ValueError unless every one of two or more `folders` has a share, and they sum to 1."""
    if len(folders) < 2 or len(folders) != len(shares):
        raise ValueError(
            f"{len(folders)} models and {len(shares)} shares; give two models or more, and a share of each"
        )
    if min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        told = ", ".join(f"{share:g}" for share in shares)
        raise ValueError(f"the shares {told} sum to {sum(shares):g}; give shares from 0 on that sum to 1")


def check_alike(adapters: Sequence[Path]) -> None:
    """Raise ValueError for adapters whose mean is no adapter: of other bases, settings or shapes."""
    settings = [_comparable(read_adapter_config(adapter)) for adapter in adapters]
    shapes = [_shapes(adapter) for adapter in adapters]
    for adapter, found, shape in zip(adapters[1:], settings[1:], shapes[1:], strict=True):
        for name in COMPARED:
            if found[name] != settings[0][name]:
                raise ValueError(
                    f"{name} is {found[name]} in {adapter} and {settings[0][name]} in {adapters[0]}; give adapters "
                    "that were trained on from one another, or from one start"
                )
        if shape != shapes[0]:
            differing = sorted(name for name, _ in shape.items() ^ shapes[0].items())
            raise ValueError(
                f"{differing[0]} differs in shape between {adapters[0]} and {adapter}; give adapters of one start"
            )


def _comparable(config: Mapping[str, object]) -> dict[str, object]:
    """The settings that must agree; module names in one order."""
    found = {name: config.get(name) for name in COMPARED}
    modules = found["target_modules"]
    if isinstance(modules, list):
        found["target_modules"] = sorted(modules)
    return found


def _shapes(adapter: Path) -> dict[str, tuple[int, ...]]:
    """The shape of each of an adapter's weights; reads the file's header alone."""
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
