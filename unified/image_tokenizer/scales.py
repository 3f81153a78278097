"""Pure functions of `patch_nums`, the grid sizes of an image's scales from coarse to fine.

`patch_nums` is `(1, 2, 4, 8)` for squares or `((1, 1), (2, 4), ...)` for `(height, width)`; every function takes
either form. Legend: K scales, L = sum of h*w positions, all scales concatenated coarse to fine, row-major in a scale.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

PatchNums = Sequence[int | Sequence[int]]


def normalize_patch_nums(patch_nums: PatchNums) -> tuple[tuple[int, int], ...]:
    """Every scale as `(height, width)`; raises ValueError unless sides are positive and non-decreasing."""
    scales: list[tuple[int, int]] = []
    for side in patch_nums:
        h, w = (side, side) if isinstance(side, int) else tuple(side)
        if h < 1 or w < 1:
            raise ValueError(f"patch_nums {patch_nums}: a scale has sides ({h}, {w}); give sides of at least 1")
        if scales and (h < scales[-1][0] or w < scales[-1][1]):
            raise ValueError(f"patch_nums {patch_nums}: ({h}, {w}) is smaller than the scale before; put coarse first")
        scales.append((h, w))
    if not scales:
        raise ValueError("patch_nums is empty; give at least one scale, for instance (1, 2, 4, 8)")
    return tuple(scales)


def doubling_patch_nums(side: int) -> tuple[int, ...]:
    """Scales of a square latent grid: 1, 2, 4, ... and `side` itself."""
    return *(2**power for power in range((side - 1).bit_length())), side


def image_length(patch_nums: PatchNums) -> int:
    """Number of codes of one image, L."""
    return sum(h * w for h, w in normalize_patch_nums(patch_nums))


def scale_spans(patch_nums: PatchNums) -> list[tuple[int, int]]:
    """Half-open `(start, stop)` of every scale within the L positions."""
    spans, start = [], 0
    for h, w in normalize_patch_nums(patch_nums):
        spans.append((start, start + h * w))
        start += h * w
    return spans


def scale_ids(patch_nums: PatchNums) -> Tensor:
    """Scale of every position, `(L,)` int64 in [0, K)."""
    lengths = torch.tensor([h * w for h, w in normalize_patch_nums(patch_nums)])
    return torch.repeat_interleave(torch.arange(len(lengths)), lengths)


def grid_centres(patch_nums: PatchNums) -> Tensor:
    """Centre of every position's cell as `(row, column)` in (0, 1), `(L, 2)`, in the same units at all scales."""
    grids = []
    for h, w in normalize_patch_nums(patch_nums):
        rows, columns = (torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w
        grids.append(torch.stack(torch.meshgrid(rows, columns, indexing="ij"), dim=-1).reshape(-1, 2))
    return torch.cat(grids)


def resize_area(features: Tensor, size: tuple[int, int]) -> Tensor:
    """`features` (B, C, H, W) resized by area to `size`: every new pixel is the mean of those it covers."""
    if pools_elsewhere(features.device, (features.shape[-2], features.shape[-1]), size):
        return F.interpolate(features.cpu(), size=size, mode="area").to(features.device)
    return F.interpolate(features, size=size, mode="area")


def pools_elsewhere(device: torch.device, sides: tuple[int, int], size: tuple[int, int]) -> bool:
    """Whether a device cannot resize these sides by area: MPS pools only where the new sides divide the old ones."""
    return device.type == "mps" and any(old % new for old, new in zip(sides, size, strict=True))
