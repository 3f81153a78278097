"""Pure functions that score: no model, no files."""

import torch
from torch import Tensor


def psnr(a: Tensor, b: Tensor, data_range: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio in dB of every image, `(B, ...)` twice -> `(B,)`; equal images give inf.

    `data_range` is the distance between the darkest and the brightest value: 2 for pixel_values in [-1, 1].
    Raises ValueError when the shapes differ.
    """
    if a.shape != b.shape:
        raise ValueError(f"psnr compares images of one shape, got {tuple(a.shape)} and {tuple(b.shape)}; resize one")
    error = (a.float() - b.float()).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(data_range**2 / error)
