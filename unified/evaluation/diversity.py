"""Diversity and low-level statistics of images, as pure functions: numbers that fall where a model collapses.

Legend: N images of one prompt, L codes of an image, B images.
"""

from itertools import combinations

import torch
from torch import Tensor

LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601


def pair_differences(codes: Tensor) -> Tensor:
    """Which codes differ between every two of N images: (N, L) -> bool (N (N - 1) / 2, L)."""
    pairs = torch.tensor(list(combinations(range(len(codes)), 2)), dtype=torch.long).reshape(-1, 2)
    return codes[pairs[:, 0]] != codes[pairs[:, 1]]


def image_statistics(pixel_values: Tensor) -> dict[str, Tensor]:
    """Low-level statistics of every image (B, 3, H, W) in [-1, 1], each (B,), of values scaled to [0, 1].

    brightness, contrast: mean and standard deviation of luminance; sharpness: its mean absolute difference between
    neighbours; colourfulness: Hasler and Suesstrunk 2003.
    """
    red, green, blue = ((pixel_values.float() + 1) / 2).unbind(dim=1)
    luminance = sum(share * channel for share, channel in zip(LUMINANCE, (red, green, blue), strict=True))
    assert isinstance(luminance, Tensor)
    steps = [luminance.diff(dim=dim).abs().mean(dim=(1, 2)) for dim in (1, 2)]
    opponents = torch.stack([red - green, (red + green) / 2 - blue]).flatten(2)
    spread, centre = opponents.std(dim=2, correction=0).norm(dim=0), opponents.mean(dim=2).norm(dim=0)
    return {
        "brightness": luminance.mean(dim=(1, 2)),
        "contrast": luminance.flatten(1).std(dim=1, correction=0),
        "sharpness": (steps[0] + steps[1]) / 2,
        "colourfulness": spread + 0.3 * centre,
    }
