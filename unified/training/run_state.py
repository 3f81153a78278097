"""State of a loop's run in a checkpoint, written by accelerate and read without executing anything.

Weights and averages are safetensors; optimizers, random numbers and fp16's scaler are read with torch's
`weights_only`, which knows tensors, numbers and containers of them, and nothing that could be called.
"""

import pickle
import random
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import load as load_with_numpy
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.serialization import get_unsafe_globals_in_checkpoint

STATES = ("*.bin", "*.pt", "*.pth", "*.pkl")
NEVER_READ = "training_args.bin"  # HF writes it for people
SHARDED = ("*.distcp", ".metadata")  # torch's distributed checkpoints, whose metadata is a pickle of classes
# what DeepSpeed's own files name besides tensors: classes of numbers and places, none of which runs anything
KNOWN = frozenset(
    {
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
        "numpy.core.multiarray._reconstruct",
        "numpy._core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy._core.multiarray.scalar",
        "numpy.ndarray",
        "numpy.dtype",
        "numpy.dtypes.UInt32DType",
        "_codecs.encode",
    }
)


def read_state(path: Path) -> Any:
    """What torch.save wrote, on the CPU; ValueError for a file that is damaged or names anything that could run."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # what it cannot read is an error below
            return load_with_numpy(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"{path} is missing; copy the checkpoint again, or remove {path.parent}") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise ValueError(unreadable(path, str(error).splitlines()[0])) from None


def check_states(folder: Path) -> None:
    """Raise ValueError if a pickle in a checkpoint names anything that could run, before it is opened.

    Also for a checkpoint in shards, as FSDP writes with SHARDED_STATE_DICT: it is not opened at all.
    """
    for path in sorted(path for pattern in SHARDED for path in folder.rglob(pattern)):
        raise ValueError(
            f"{path} is of a checkpoint in shards (SHARDED_STATE_DICT), which is not opened, as reading one executes "
            f"what it holds; save with fsdp_state_dict_type FULL_STATE_DICT, and remove {folder}"
        )
    for path in sorted(path for pattern in STATES for path in folder.rglob(pattern)):
        if path.name == NEVER_READ:
            continue
        try:
            named = {*get_unsafe_globals_in_checkpoint(str(path))} - KNOWN
        except (pickle.UnpicklingError, ValueError, RuntimeError, EOFError, IndexError) as error:
            raise ValueError(unreadable(path, str(error).splitlines()[0], folder)) from None
        if named:
            raise ValueError(unreadable(path, f"it names {sorted(named)[0]}", folder))


def unreadable(path: Path, why: str, checkpoint: Path | None = None) -> str:
    """The error for a file of a `checkpoint`, by default of its own folder, that is not opened."""
    return (
        f"{path} holds more than a training's state or is damaged ({why:.200}), so it is not opened; "
        f"remove {checkpoint or path.parent}, and the run goes on from the checkpoint before"
    )


def write_modules(folder: Path, modules: Mapping[str, nn.Module]) -> None:
    """Write what accelerate does not, as `<name>.safetensors`."""
    for name, module in modules.items():
        save_file(
            {key: value.contiguous() for key, value in module.state_dict().items()}, folder / f"{name}.safetensors"
        )


def read_modules(folder: Path, modules: Mapping[str, nn.Module]) -> None:
    """Read them; earlier versions had accelerate write them, by number. ValueError for a damaged file."""
    for number, (name, module) in enumerate(modules.items()):
        path, before = folder / f"{name}.safetensors", folder / f"custom_checkpoint_{number}.pkl"
        state = read_state(before) if before.is_file() and not path.is_file() else read_weights(path)
        module.load_state_dict(state)


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """A safetensors file; ValueError where it is missing or damaged."""
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ValueError(unreadable(path, str(error))) from None


def read_accelerators_files(
    folder: Path, accelerator: Accelerator, trained: Sequence[tuple[nn.Module, torch.optim.Optimizer]]
) -> None:
    """What `Accelerator.save_state` wrote: models with their optimizers, the scaler, this process's random numbers."""
    for number, (model, optimizer) in enumerate(trained):
        ending = f"_{number}" if number else ""
        model.load_state_dict(read_weights(folder / f"model{ending}.safetensors"))
        optimizer.load_state_dict(read_state(folder / f"optimizer{ending}.bin"))
    if accelerator.scaler is not None:
        accelerator.scaler.load_state_dict(read_state(folder / "scaler.pt"))
    path = folder / f"random_states_{accelerator.process_index}.pkl"
    if not path.is_file():  # there are more processes than before, or another machine has it
        sys.stderr.write(f"{path} is missing: this process's random numbers begin anew\n")
        return
    states = read_state(path)
    random.setstate(states["random_state"])
    np.random.set_state(states["numpy_random_seed"])
    torch.set_rng_state(states["torch_manual_seed"])
    of_gpus = states.get("torch_cuda_manual_seed", ())
    if torch.cuda.is_available() and len(of_gpus) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(of_gpus)
