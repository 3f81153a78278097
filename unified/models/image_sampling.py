"""Sampling settings of image codes, without loading torch."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class ImageSampling:
    """Sampling settings of image codes. Raises ValueError for values that have no meaning.

    temperature 0 is greedy; top_k 0 and top_p 1 are off; guidance_scale 1 needs no second pass. `on_scale(scale,
    codes)` is called after every scale with the codes (B, <= L) generated so far.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    guidance_scale: float = 1.0
    on_scale: "Callable[[int, Tensor], None] | None" = None

    def __post_init__(self) -> None:
        for name in ("temperature", "top_k", "guidance_scale"):
            if not 0 <= vars(self)[name] < math.inf:
                raise ValueError(f"{name} {vars(self)[name]}; give at least 0, and a finite number")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p {self.top_p}; give more than 0 and at most 1")
