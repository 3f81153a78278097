"""Checkpoints whose files name a model's parts as training has them, as DeepSpeed's zero_to_fp32.py writes them.

Everything else saves whole matrices of the vocabulary (see new_rows.py), in safetensors.
"""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from unified.models.configuration import UnifiedConfig
from unified.models.new_rows import HEAD, INPUT, OUTPUT, SOURCE, new_row_ids

ROWS = "model.new_rows."
FILES = ("model*.safetensors", "pytorch_model*.bin")  # the second where the first is not there, as HF reads them


def weight_files(folder: Path) -> list[Path]:
    """Files of a checkpoint's weights; none in a folder without any."""
    return next((found for pattern in FILES if (found := sorted(folder.glob(pattern)))), [])


def whole_weights(files: Iterable[str | Path], config: UnifiedConfig) -> dict[str, Tensor] | None:
    """Weights in `files` with whole matrices, where they hold rows beside them; None where they do not."""
    paths = [Path(path) for path in files]
    if not any(name.startswith(ROWS) for path in paths for name in _read(path, names_alone=True)):
        return None
    state = {name: value for path in paths for name, value in _read(path).items()}
    ids, head = new_row_ids(config), HEAD.removesuffix("weight") + SOURCE
    for name in [name for name in state if name.endswith(SOURCE)]:
        matrix = OUTPUT if name == head else INPUT
        if matrix in ids:
            table = state.pop(name).clone()
            table[ids[matrix]] = state.pop(f"{ROWS}{matrix}.values").to(table)
            state[name.removesuffix(SOURCE) + "weight"] = table
        else:  # of tied matrices, a second name of the first
            del state[name]
    return state


def _read(path: Path, names_alone: bool = False) -> dict[str, Tensor]:
    if path.suffix == ".bin":
        # tensors alone, never code
        found: dict[str, Tensor] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return found
    with safe_open(path, framework="pt") as file:
        return {name: torch.empty(0) if names_alone else file.get_tensor(name) for name in file.keys()}
