"""What torch.compile needs of the machine."""

import os
import shutil

import torch
from torch.utils._triton import has_triton


def check_compiler(device: torch.device, asked: str) -> None:
    """Raise ValueError where torch.compile, for which `asked` asks, has no compiler for `device`."""
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and not shutil.which(compiler):
        raise ValueError(f"{asked} needs {compiler}, which is not installed; install it, set CXX, or switch it off")
    if device.type == "cuda" and not has_triton():
        raise ValueError(f"{asked} needs triton on a GPU; pip install triton, or switch it off")
