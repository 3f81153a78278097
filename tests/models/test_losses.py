"""The loss without logits against PyTorch's own, in value and in gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from unified.models import losses
from unified.models.losses import UnionTargets, cast_weight, chunked_cross_entropy, soft_cap, union_loss
from unified.models.trainable_token_rows import TrainableRows
from unified.models.vocabulary import Vocabulary

N, D, OFFSET, CODES = 13, 6, 10, 8
VOCABULARY = Vocabulary(OFFSET, CODES, boi_token_id=1, eoi_token_id=2, image_pad_token_id=3)


def problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`hidden` (N, D), `weight` (V, D), `targets` (N,), `scale` (N,)."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(N, D, generator=generator).requires_grad_()
    weight = torch.randn(OFFSET + CODES, D, generator=generator).requires_grad_()
    targets = torch.randint(OFFSET + CODES, (N,), generator=generator)
    return hidden, weight, targets, torch.rand(N, generator=generator)


def plain_losses(hidden: Tensor, weight: Tensor, targets: Tensor, cap: float | None = None) -> Tensor:
    logits = hidden @ weight.T
    return F.cross_entropy(logits if cap is None else cap * torch.tanh(logits / cap), targets, reduction="none")


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("chunk_rows", [1, 5, 100])
def test_value_and_gradients_are_cross_entropy_s(
    cap: float | None, chunk_rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "CHUNK_ELEMENTS", chunk_rows * (OFFSET + CODES))
    hidden, weight, targets, scale = problem()
    expected_losses = plain_losses(hidden, weight, targets, cap)
    expected = (expected_losses * scale).sum()
    expected_gradients = torch.autograd.grad(3 * expected, [hidden, weight])
    total, found_losses = chunked_cross_entropy(hidden, weight, targets, scale, cap)
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(found_losses, expected_losses)
    torch.testing.assert_close(torch.autograd.grad(3 * total, [hidden, weight]), expected_gradients)


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_side_costs_the_other_nothing(frozen: int) -> None:
    hidden, weight, targets, scale = problem()
    sides = [hidden, weight]
    expected = torch.autograd.grad((plain_losses(*sides, targets) * scale).sum(), sides[1 - frozen])
    sides[frozen].requires_grad_(False)
    chunked_cross_entropy(hidden, weight, targets, scale)[0].backward()
    torch.testing.assert_close(sides[1 - frozen].grad, expected[0])
    assert sides[frozen].grad is None


def test_a_frozen_matrix_is_cast_once_and_again_when_it_changes() -> None:
    weight = torch.randn(5, 3)
    cast = cast_weight(weight, torch.bfloat16)
    assert cast_weight(weight, torch.bfloat16) is cast and cast_weight(weight, torch.float32) is weight
    weight.add_(1)
    assert torch.equal(cast_weight(weight, torch.bfloat16), weight.bfloat16()) and not torch.equal(cast, weight)
    kept = len(losses._CASTS)
    del weight
    assert len(losses._CASTS) == kept - 1
    learns = torch.randn(5, 3, requires_grad=True)
    assert cast_weight(learns, torch.bfloat16) is not cast_weight(learns, torch.bfloat16)


OWN_IDS = torch.tensor([2, *range(OFFSET, OFFSET + CODES - 1)])  # a special token's and all codes' but one


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("stride", [1, 3])
def test_trainable_rows_equal_a_merged_matrix(cap: float | None, stride: int) -> None:
    hidden, weight, targets, scale = problem()
    values = torch.randn(len(OWN_IDS), D, generator=torch.Generator().manual_seed(1)).requires_grad_()
    wanted = UnionTargets(targets, VOCABULARY.is_image(targets), scale)
    sides = [hidden, weight, values]
    expected, expected_losses = union_loss(
        hidden, weight.index_copy(0, OWN_IDS, values), wanted, VOCABULARY, stride, cap
    )
    total, found_losses = union_loss(hidden, weight, wanted, VOCABULARY, stride, cap, TrainableRows(OWN_IDS, values))
    torch.testing.assert_close((total, found_losses), (expected, expected_losses))
    torch.testing.assert_close(torch.autograd.grad(3 * total, sides), torch.autograd.grad(3 * expected, sides))


def test_without_positions_the_loss_is_zero() -> None:
    hidden, weight, targets, scale = problem()
    total, _ = chunked_cross_entropy(hidden[:0], weight, targets[:0], scale[:0])
    total.backward()
    assert total == 0 and not weight.grad.any()


def test_autocast_computes_in_bf16_and_keeps_the_gradients_dtype() -> None:
    hidden, weight, targets, scale = problem()
    expected = (plain_losses(hidden, weight, targets) * scale).sum()
    with torch.autocast("cpu", torch.bfloat16):
        total, found = chunked_cross_entropy(hidden, weight, targets, scale)
    total.backward()
    assert found.dtype == weight.grad.dtype == hidden.grad.dtype == torch.float32
    torch.testing.assert_close(total, expected, rtol=0.02, atol=0)
    assert total != expected


def test_the_soft_cap_bounds_and_hardly_touches_small_logits() -> None:
    logits = torch.tensor([-1000.0, 0.01, 1000.0])
    torch.testing.assert_close(soft_cap(logits, 30.0), torch.tensor([-30.0, 0.01, 30.0]))
    assert soft_cap(logits, None) is logits


def union_targets(shift: int = 0) -> UnionTargets:
    """Eight image and five text targets; the last text one, of weight 0, moves the targets' sum by `shift`."""
    generator = torch.Generator().manual_seed(1)
    is_image = torch.tensor([0, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1, 0, 0]).bool()
    codes, words = torch.randint(CODES, (N,), generator=generator), torch.randint(OFFSET, (N,), generator=generator)
    targets, weights = torch.where(is_image, codes + OFFSET, words), torch.rand(N, generator=generator) + 0.5
    targets[-1], weights[-1] = shift, 0.0
    return UnionTargets(targets, is_image, weights)


@pytest.mark.parametrize("cap", [None, 2.0])
def test_stride_one_is_the_weighted_loss(cap: float | None) -> None:
    hidden, weight, _, _ = problem()
    wanted = union_targets()
    expected = plain_losses(hidden, weight, wanted.targets, cap)
    total, found = union_loss(hidden, weight, wanted, VOCABULARY, stride=1, cap=cap)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(total, (expected * wanted.weights).sum())


@pytest.mark.parametrize("cap", [None, 2.0])
@pytest.mark.parametrize("stride", [2, 3])
def test_a_stride_is_right_on_average(stride: int, cap: float | None) -> None:
    """The mean over all offsets is the loss of stride 1: value, gradients, and every position's loss."""
    hidden, weight, _, _ = problem()
    results = []
    for wanted, step in [(union_targets(), 1)] + [(union_targets(shift), stride) for shift in range(stride)]:
        total, found = union_loss(hidden, weight, wanted, VOCABULARY, stride=step, cap=cap)
        gradients = torch.autograd.grad(total, [hidden, weight])
        results.append([total.detach(), (found * wanted.weights).detach(), *gradients])
    exact, begun = results[0], results[1:]
    for index, value in enumerate(exact):
        torch.testing.assert_close(torch.stack([result[index] for result in begun]).mean(dim=0), value)
    assert len({round(float(result[0]), 4) for result in begun}) == stride  # each began elsewhere


def test_a_stride_leaves_text_exact() -> None:
    hidden, weight, _, _ = problem()
    wanted = union_targets()
    _, exact = union_loss(hidden, weight, wanted, VOCABULARY)
    _, strided = union_loss(hidden, weight, wanted, VOCABULARY, stride=3)
    text = ~wanted.is_image
    assert torch.equal(strided[text], exact[text]) and not torch.allclose(strided, exact)
