"""The tolerance holds for sums in any order, and not for mistakes."""

import pytest
import torch
from tolerances import assert_sums_agree, error_of, near


@pytest.mark.parametrize("terms", [3, 64, 1000, 30_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_in_another_order_agree(terms: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(terms)
    left, right = (torch.randn(200, terms, generator=generator).to(dtype) for _ in range(2))
    order = torch.randperm(terms, generator=generator)

    def in_parts(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Partial sums of 20 terms, as kernels make them."""
        return torch.stack([part.sum(dim=1) for part in (a * b).split(20, dim=1)], dim=1).sum(dim=1)

    whole = (left * right).sum(dim=1)
    assert_sums_agree((left[:, order] * right[:, order]).sum(dim=1), whole, terms)
    assert_sums_agree(in_parts(left[:, order], right[:, order]), whole, terms)


def test_mistakes_are_found() -> None:
    values = torch.randn(50, 64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(AssertionError):
        assert_sums_agree(values[:, 1:].sum(dim=1), values.sum(dim=1), 64)  # a term is missing
    with pytest.raises(AssertionError):
        assert_sums_agree(values * 1.001, values, 64)
    assert near(1.0, 64) != 1.001 and near(1.0, 64) == 1.0 + 1e-7


def test_the_error_grows_with_the_root_of_the_length_and_with_the_dtypes_step() -> None:
    assert error_of(400) == 2 * error_of(100) and error_of(1) == 8 * torch.finfo(torch.float32).eps
    assert error_of(100, torch.bfloat16) / error_of(100) == 2**16
