"""What torch runs is counted: kernels without views, waits for values on the host, time inside products."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from unified.hardware.operations import Operations

MATRIX = torch.arange(12.0).view(3, 4)


@pytest.mark.parametrize(
    ("work", "kernels"),
    [
        (lambda x: x.t()[1:].unsqueeze(0).expand(2, -1, -1), 0),
        (lambda x: x @ x.t(), 1),
        (lambda x: nn.functional.linear(x, x).relu(), 2),
        (lambda x: x.reshape(4, 3).transpose(0, 1).contiguous(), 1),
        (lambda x: torch.cat([x, x]).softmax(-1), 2),
    ],
)
def test_kernels_are_what_is_no_view(work: Callable[[Tensor], object], kernels: int) -> None:
    with Operations() as operations:
        work(MATRIX)
    assert operations.kernels == kernels


@pytest.mark.parametrize(
    "work",
    [
        lambda x: x[0, 0].item(),
        lambda x: bool((x > 3).any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 3],
        lambda x: x.masked_select(x > 3),
        lambda x: torch.equal(x, x),
        lambda x: x.clone().index_put_((x > 3,), torch.tensor(1.0)),
        lambda x: torch.repeat_interleave(x, torch.tensor([1, 2, 1]), dim=0),
    ],
)
def test_the_host_waits_for_values(work: Callable[[Tensor], object]) -> None:
    with Operations() as operations:
        work(MATRIX)
    assert operations.waits


@pytest.mark.parametrize(
    "work",
    [lambda x: torch.where(x > 3, x, 0.0), lambda x: x[torch.tensor([0, 1])], lambda x: x.masked_fill(x > 3, 0)],
)
def test_it_waits_for_nothing_else(work: Callable[[Tensor], object]) -> None:
    with Operations() as operations:
        work(MATRIX)
    assert not operations.waits


@pytest.mark.parametrize(
    "product",
    [
        lambda x: x @ x.t(),
        lambda x: nn.functional.linear(x, x, x[:, 0]),
        lambda x: torch.baddbmm(x[None], x[None, :, :3], x[None]),
        lambda x: nn.functional.conv2d(x[None, None], x[None, None, :2, :2]),
        lambda x: nn.functional.scaled_dot_product_attention(x[None, None], x[None, None], x[None, None]),
    ],
)
def test_products_have_their_own_time(product: Callable[[Tensor], Tensor]) -> None:
    with Operations() as operations:
        MATRIX.softmax(-1) + 1
        assert operations.product_seconds == 0
        found = product(MATRIX)
    assert operations.product_seconds > 0 and torch.equal(found, product(MATRIX))
