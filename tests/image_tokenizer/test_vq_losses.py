"""Adversarial losses, scale dropout and code bookkeeping of the tokenizer's training, on toys."""

import math

import pytest
import torch
from torch import nn

from unified.evaluation.metrics import psnr
from unified.image_tokenizer.losses import (
    LPIPS,
    CodeUsage,
    PatchDiscriminator,
    adaptive_weight,
    drop_scales,
    hinge_d_loss,
    residuals,
    revive_dead_codes,
)
from unified.image_tokenizer.quantizer import MultiScaleQuantizer


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_hinge_is_zero_when_the_margin_is_kept():
    assert hinge_d_loss(torch.tensor([1.0, 2.0]), torch.tensor([-1.0, -3.0])) == 0
    assert hinge_d_loss(torch.tensor([0.0]), torch.tensor([0.0])) == 1


def test_discriminator_scores_patches_and_learns():
    torch.manual_seed(0)
    critic = PatchDiscriminator(base_channels=8, depth=2)
    real, fake = torch.rand(4, 3, 16, 16), -torch.rand(4, 3, 16, 16)
    assert critic(real).shape == (4, 1, 4, 4)
    optimizer = torch.optim.Adam(critic.parameters(), 1e-2)
    for _ in range(20):
        loss = hinge_d_loss(critic(real), critic(fake))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1


def test_adaptive_weight_equals_the_ratio_of_gradients():
    layer = nn.Parameter(torch.tensor([3.0, 4.0]))
    weight = adaptive_weight(6 * layer.sum(), 2 * layer.sum(), layer)
    assert weight == pytest.approx(3, rel=1e-3) and not weight.requires_grad
    assert adaptive_weight(6 * layer.sum(), 0 * layer.sum(), layer, limit=7.0) == 7


def test_code_usage_counts_by_scale():
    usage = CodeUsage(codebook_size=4, patch_nums=(1, 2))
    usage.update(torch.tensor([[0, 0, 1, 2, 3], [0, 0, 1, 2, 3]]))
    assert usage.usage().tolist() == [0.25, 1.0]
    assert usage.perplexity().tolist() == pytest.approx([1, 4])
    usage.update(torch.tensor([[0, 0, 0, 0, 0]]))
    assert usage.idle_steps.tolist() == [0, 1, 1, 1]
    usage.reset()
    assert usage.counts.sum() == 0 and usage.perplexity().tolist() == [1, 1]
    assert usage.idle_steps.tolist() == [0, 1, 1, 1]


def test_code_usage_survives_a_checkpoint():
    usage, other = CodeUsage(4, (1, 2)), CodeUsage(4, (1, 2))
    usage.update(torch.tensor([[0, 0, 1, 2, 3]]))
    other.load_state_dict(usage.state_dict())
    assert torch.equal(other.counts, usage.counts) and torch.equal(other.idle_steps, usage.idle_steps)


def test_residuals_are_what_the_quantizer_looked_up():
    torch.manual_seed(0)
    quantizer = MultiScaleQuantizer(codebook_size=16, code_dim=4, patch_nums=(1, 2, 4), phi_count=2)
    features = torch.randn(3, 4, 4, 4)
    codes = quantizer.quantize(features)
    rest = residuals(features, quantizer.next_scale_inputs(codes), (1, 2, 4)).detach()
    assert rest.shape == (3 * 21, 4)
    nearest = torch.cdist(rest, quantizer.embedding.weight.detach()).argmin(dim=1)
    assert torch.equal(nearest, codes.flatten())


def test_only_dead_codes_are_revived_and_near_the_features():
    embedding = torch.zeros(6, 2)
    features = torch.tensor([[5.0, 5.0], [-5.0, 5.0]])
    dead = torch.tensor([True, False, True, False, False, True])
    rows = revive_dead_codes(embedding, dead, features, generator())
    assert rows.tolist() == [0, 2, 5]
    assert embedding[[1, 3, 4]].eq(0).all()
    assert torch.cdist(embedding[rows], features).amin(dim=1).max() < 0.5
    again = torch.zeros(6, 2)
    revive_dead_codes(again, dead, features, generator())
    assert torch.equal(again, embedding)


def test_revival_needs_features():
    with pytest.raises(ValueError, match="features is empty"):
        revive_dead_codes(torch.zeros(2, 2), torch.tensor([True, False]), torch.zeros(0, 2), generator())


def test_lpips_reads_the_published_names_and_is_zero_on_equal_images(tmp_path):
    names = LPIPS().state_dict().keys()
    assert {"net.slice1.0.weight", "net.slice5.28.bias", "lins.0.model.1.weight"} <= set(names)
    torch.save(LPIPS().state_dict(), tmp_path / "vgg.pth")
    lpips = LPIPS.load(str(tmp_path / "vgg.pth"))
    a, b = torch.rand(2, 3, 32, 32, generator=generator()), torch.rand(2, 3, 32, 32, generator=generator(1))
    assert lpips(a, a).tolist() == [0, 0]
    assert lpips(a, b).shape == (2,) and lpips(a, b).abs().min() > 0


def test_lpips_refuses_a_missing_or_foreign_file(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    for path in (None, str(tmp_path / "none.pth")):
        with pytest.raises(ValueError, match="lpips_path .* is not a file"):
            LPIPS.load(path)
    with pytest.raises(ValueError, match="lacks"):
        LPIPS.load(str(tmp_path / "other.pth"))


def test_psnr_by_hand():
    a = torch.zeros(2, 3, 4, 4)
    b = torch.stack([torch.full((3, 4, 4), 0.2), torch.zeros(3, 4, 4)])
    assert psnr(a, b)[0] == pytest.approx(20)
    assert psnr(a, b)[1] == math.inf
    assert psnr(a, b, data_range=1.0)[0] == pytest.approx(13.979, abs=1e-3)
    with pytest.raises(ValueError, match="one shape"):
        psnr(a, b[:1])


def test_scale_dropout_drops_its_share_and_every_scale_alike():
    kept = drop_scales(30_000, 4, 0.3, generator())
    shares = torch.bincount(kept, minlength=5) / len(kept)
    assert shares.tolist() == pytest.approx([0, 0.1, 0.1, 0.1, 0.7], abs=0.01)
    assert drop_scales(8, 4, 0.0, generator()).eq(4).all() and drop_scales(8, 1, 1.0, generator()).eq(1).all()
    assert torch.equal(drop_scales(8, 4, 0.5, generator(1)), drop_scales(8, 4, 0.5, generator(1)))


def test_low_usage_is_warned_of_with_a_size_that_fits():
    usage = CodeUsage(64, (1, 2))
    usage.update(torch.arange(20).repeat(10).reshape(-1, 5))
    assert (
        usage.warning().startswith("low usage: 20 of 64 codes are used") and "--codebook_size 32," in usage.warning()
    )
    usage.update(torch.arange(40).repeat(10).reshape(-1, 5))
    assert usage.warning() == ""
    few = CodeUsage(64, (1, 2))
    few.update(torch.zeros(3, 5, dtype=torch.long))
    assert few.warning() == ""  # 15 codes tell nothing of 64
