"""Which device a model runs on."""

import torch


def best_device() -> str:
    """CUDA, then MPS, then the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
