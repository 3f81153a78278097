"""How far two ways to one sum may differ: from the dtype and the length of the sums, on any CPU.

CPUs differ in the order in which they add, and so in the last bits. Of `terms` numbers added in two orders the results
differ by about eps * sqrt(terms) times their size; `terms` counts all sums on the way from input to value, one behind
the other: a layer of width 32 behind one of 64 has 96. Exact equality is for the same arithmetic in the same order.
"""

import math

import pytest
import torch
from torch import Tensor, nn

SAFETY = 8.0  # values that are compared are many, and the furthest counts; a mistake is thousands of times larger


def error_of(terms: int, dtype: torch.dtype = torch.float32) -> float:
    """Difference, relative to the values' size, that sums of so many terms in `dtype` may show."""
    return SAFETY * torch.finfo(dtype).eps * math.sqrt(max(1, terms))


def assert_sums_agree(
    found: Tensor, expected: Tensor, terms: int, dtype: torch.dtype | None = None, msg: str | None = None
) -> None:
    """Values agree to `error_of` of the largest of them; `dtype` is that of the products, by default the values'."""
    size = float(expected.detach().abs().max()) if expected.numel() else 0.0
    error = error_of(terms, dtype or found.dtype)
    torch.testing.assert_close(found, expected, rtol=error, atol=error * size, msg=msg)


def near(value: float, terms: int, size: float = 1.0, dtype: torch.dtype = torch.float32) -> object:
    """`pytest.approx` of a number made of values of this size."""
    error = error_of(terms, dtype)
    return pytest.approx(value, rel=error, abs=error * size)


def terms_of(module: nn.Module) -> int:
    """`terms` of a forward pass: what every matrix and convolution sums for one of its outputs, all of them together.

    A backward pass has as many again for its inputs' gradients, and sums over the batch's positions for weights.
    """
    return sum(p[0].numel() for p in module.parameters() if p.ndim > 1)
