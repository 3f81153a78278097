"""Which device a model runs on where nobody says."""

import torch

_DEFAULT: list[str] = []  # what this process's command has chosen


def best_device() -> str:
    """The one that this process's command has chosen (`setup.set_up`); else CUDA, then MPS, then the CPU."""
    if _DEFAULT:
        return _DEFAULT[0]
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def set_best_device(device: str) -> None:
    """What `best_device` answers from now on."""
    _DEFAULT[:] = [device]
