"""The quantizer against VAR's own code (golden vectors) and against the algorithm written out.

`golden/` is a random quantizer with scales (1, 2, 3, 4) and what the original project's code computes with it.
"""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from unified.image_tokenizer.quantizer import MultiScaleQuantizer, SharedPhis
from unified.image_tokenizer.scales import scale_spans

GOLDEN = Path(__file__).parent / "golden"
PATCH_NUMS = (1, 2, 3, 4)


@pytest.fixture
def quantizer() -> MultiScaleQuantizer:
    weights = load_file(GOLDEN / "quantizer.safetensors")
    quantizer = MultiScaleQuantizer(*weights["embedding.weight"].shape, PATCH_NUMS)
    quantizer.load_state_dict(weights)
    return quantizer


@pytest.fixture
def expected() -> dict[str, Tensor]:
    return load_file(GOLDEN / "expected.safetensors")


def small_quantizer(patch_nums: tuple[int, ...] = (2, 4), **settings: object) -> MultiScaleQuantizer:
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(16, 4, patch_nums, **settings)
    torch.nn.init.normal_(quantizer.embedding.weight)
    return quantizer


def assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_codes_are_var_s(quantizer: MultiScaleQuantizer, expected: dict[str, Tensor]) -> None:
    assert torch.equal(quantizer.quantize(expected["features"]), expected["codes"])
    assert len(expected["codes"].unique()) > 10


@torch.no_grad()
def test_feature_maps_are_var_s(quantizer: MultiScaleQuantizer, expected: dict[str, Tensor]) -> None:
    assert_close(quantizer.codes_to_f_hat(expected["codes"]), expected["f_hat"])
    assert_close(quantizer.next_scale_inputs(expected["codes"]), expected["next_scale_inputs"])


def test_training_sees_what_encoding_gives(quantizer: MultiScaleQuantizer, expected: dict[str, Tensor]) -> None:
    output = quantizer(expected["features"])
    assert torch.equal(output.codes, expected["codes"])
    assert_close(output.f_hat, expected["f_hat"])


@torch.no_grad()
def test_partial_feature_maps_add_up(quantizer: MultiScaleQuantizer, expected: dict[str, Tensor]) -> None:
    codes, so_far = expected["codes"], torch.zeros_like(expected["f_hat"])
    for scale, (start, stop) in enumerate(scale_spans(PATCH_NUMS)):
        so_far = so_far + quantizer.contribution(codes[:, start:stop], scale)
        assert_close(quantizer.partial_f_hat(codes[:, :stop]), so_far)
        if scale + 1 < len(PATCH_NUMS):
            following = scale_spans(PATCH_NUMS)[scale + 1]
            given = expected["next_scale_inputs"][:, following[0] - 1 : following[1] - 1]
            assert_close(quantizer.scale_input(so_far, scale + 1), given)
    assert_close(so_far, expected["f_hat"])


@torch.no_grad()
def test_the_last_scale_predicts_nothing(quantizer: MultiScaleQuantizer, expected: dict[str, Tensor]) -> None:
    other = expected["codes"].clone()
    other[:, -16:] = (other[:, -16:] + 1) % 96
    assert torch.equal(quantizer.next_scale_inputs(other), quantizer.next_scale_inputs(expected["codes"]))


@torch.no_grad()
def test_one_scale_is_a_plain_quantizer() -> None:
    quantizer = small_quantizer(patch_nums=(3,))
    features = torch.randn(2, 4, 3, 3)
    vectors = features.permute(0, 2, 3, 1).reshape(-1, 4)
    nearest = torch.cdist(vectors, quantizer.embedding.weight).argmin(dim=1).view(2, 9)
    assert torch.equal(quantizer.quantize(features), nearest)
    vectors = quantizer.embedding(nearest).permute(0, 2, 1).reshape(2, 4, 3, 3)
    assert_close(quantizer.codes_to_f_hat(nearest), quantizer.quant_resi(vectors, 0))
    assert quantizer.next_scale_inputs(nearest).shape == (2, 0, 4)


@torch.no_grad()
def test_cosine_looks_at_directions_only() -> None:
    quantizer, features = small_quantizer((2,), cosine=True), torch.randn(50, 4)
    quantizer.embedding.weight.mul_(torch.linspace(0.1, 10, 16)[:, None])
    codes = quantizer.nearest(features)
    by_hand = F.cosine_similarity(features[:, None], quantizer.embedding.weight[None], dim=-1).argmax(dim=1)
    assert torch.equal(codes, by_hand) and torch.equal(quantizer.nearest(7 * features), codes)
    quantizer.cosine = False
    assert not torch.equal(quantizer.nearest(features), codes)


def test_the_loss_is_the_mean_over_scales_of_both_terms() -> None:
    quantizer, features = small_quantizer((1, 2, 4), beta=0.5), torch.randn(3, 4, 4, 4)
    output = quantizer(features)
    partial = [quantizer.partial_f_hat(output.codes[:, :stop]) for _, stop in scale_spans((1, 2, 4))]
    by_hand = torch.stack([1.5 * F.mse_loss(f_hat, features) for f_hat in partial]).mean()
    torch.testing.assert_close(output.vq_loss, by_hand)


def test_gradients_reach_codebook_phis_and_features() -> None:
    quantizer, features = small_quantizer(), torch.randn(2, 4, 4, 4, requires_grad=True)
    output = quantizer(features)
    output.vq_loss.backward()
    used = output.codes.unique()
    assert (quantizer.embedding.weight.grad[used].abs().sum(dim=1) > 0).all()
    assert all(p.grad.abs().sum() > 0 for p in quantizer.quant_resi.qresi_ls[0].parameters())
    assert (features.grad != 0).all()


@pytest.mark.parametrize("patch_nums", [(4,), (1, 4), (1, 2, 4)])
def test_all_that_learns_has_a_gradient(patch_nums: tuple[int, ...]) -> None:
    """As DDP expects of every parameter; of four phis, few scales use some."""
    quantizer = small_quantizer(patch_nums, phi_count=4)
    quantizer(torch.randn(2, 4, 4, 4)).vq_loss.backward()
    assert all((parameter.grad is None) != parameter.requires_grad for parameter in quantizer.parameters())
    assert len(quantizer.state_dict()) == len(list(quantizer.parameters())) == 1 + 2 * 4


def test_the_decoder_s_gradient_goes_straight_to_the_features() -> None:
    quantizer, features = small_quantizer(), torch.randn(2, 4, 4, 4, requires_grad=True)
    weights = torch.randn(2, 4, 4, 4)
    (quantizer(features).f_hat * weights).sum().backward()
    torch.testing.assert_close(features.grad, weights)


@pytest.mark.parametrize(("count", "scales"), [(1, 5), (2, 3), (4, 4), (4, 10)])
def test_phis_are_shared_in_order(count: int, scales: int) -> None:
    phi_of_scale = SharedPhis(count, scales, code_dim=2, ratio=0.5).phi_of_scale
    assert phi_of_scale == sorted(phi_of_scale) and set(phi_of_scale) == set(range(count))


@pytest.mark.parametrize("shape", [(2, 19), (2, 21), (20,)])
def test_codes_of_another_length_are_refused(shape: tuple[int, ...]) -> None:
    quantizer = small_quantizer()
    for method in (quantizer.codes_to_f_hat, quantizer.next_scale_inputs):
        with pytest.raises(ValueError, match="make 20 an image"):
            method(torch.zeros(shape, dtype=torch.long))


def test_features_of_another_grid_are_refused() -> None:
    quantizer, features = small_quantizer(), torch.zeros(1, 4, 5, 4)
    for method in (quantizer, quantizer.quantize):
        with pytest.raises(ValueError, match=r"\(5, 4\).*\(4, 4\)"):
            method(features)


def test_dropped_scales_leave_the_partial_feature_map(
    quantizer: MultiScaleQuantizer, expected: dict[str, Tensor]
) -> None:
    features = expected["features"].repeat(4, 1, 1, 1)[:4]
    kept = torch.tensor([1, 2, 3, 4])
    output, full = quantizer(features, kept), quantizer(features)
    assert torch.equal(output.codes, full.codes) and output.vq_loss == full.vq_loss
    for row, scales in enumerate(kept.tolist()):
        stop = scale_spans(PATCH_NUMS)[scales - 1][1]
        assert_close(output.f_hat[row], quantizer.partial_f_hat(output.codes[:, :stop])[row])


def test_gradients_of_coarse_images_are_as_coarse() -> None:
    quantizer = small_quantizer((1, 2, 4))
    features = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weights = torch.randn(3, 4, 4, 4, generator=torch.Generator().manual_seed(1))
    (quantizer(features, torch.tensor([1, 2, 3])).f_hat * weights).sum().backward()
    coarse, middle, fine = features.grad
    assert_close(coarse, weights[0].mean(dim=(1, 2), keepdim=True).expand_as(coarse))
    quarters = middle.unflatten(1, (2, 2)).unflatten(3, (2, 2))
    assert_close(quarters, quarters[:, :, :1, :, :1].expand_as(quarters))
    assert torch.equal(fine, weights[2])
