"""Both families of image tokenizer: shapes, round trips through disk, and what the fingerprint notices."""

from pathlib import Path

import pytest
import torch
from tolerances import assert_sums_agree, terms_of
from transformers import AutoModel

from unified import VQConfig, VQModel

FAMILIES = {"small": 16, "var": 8}  # image side whose latent is 2x2


def model_of(architecture: str, **settings: object) -> VQModel:
    torch.manual_seed(0)
    sizes = {"image_size": FAMILIES[architecture], "channels": (32, 32), "patch_nums": (1, 2)}
    if architecture == "var":
        sizes |= {"channels": (32, 32, 32)}
    config = VQConfig(architecture=architecture, codebook_size=16, code_dim=4, **{**sizes, **settings})
    return VQModel(config).eval()


def random_images(architecture: str, count: int = 3) -> torch.Tensor:
    side = FAMILIES[architecture]
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("architecture", FAMILIES)
def test_encode_decode_and_forward_agree(architecture: str) -> None:
    model, pixel_values = model_of(architecture), random_images(architecture)
    codes, output = model.encode(pixel_values), model(pixel_values)
    assert codes.shape == (3, 5) and codes.dtype == torch.int64 and codes.max() < 16
    assert torch.equal(output.codes, codes)
    assert_sums_agree(model.decode(codes), output.reconstruction.clamp(-1, 1), terms_of(model))


@pytest.mark.parametrize("architecture", FAMILIES)
def test_training_reaches_every_weight(architecture: str) -> None:
    model, pixel_values = model_of(architecture), random_images(architecture)
    output = model(pixel_values)
    (output.commitment_loss + (output.reconstruction - pixel_values).abs().mean()).backward()
    unused = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # two scales reach two of the four shared convolutions
    assert unused == {f"quantizer.quant_resi.qresi_ls.{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias")}


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("load", [VQModel.from_pretrained, AutoModel.from_pretrained])
def test_a_saved_tokenizer_is_the_same(architecture: str, load: object, tmp_path: Path) -> None:
    model, pixel_values = model_of(architecture, cosine=True, phi_ratio=0.25, phi_count=2), random_images(architecture)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert isinstance(loaded, VQModel) and not loaded.training
    assert loaded.fingerprint() == model.fingerprint()
    codes = model.encode(pixel_values)
    assert torch.equal(loaded.encode(pixel_values), codes)
    assert torch.equal(loaded.decode(codes), model.decode(codes))


def test_decoded_pixels_stay_in_range() -> None:
    model = model_of("small")
    with torch.no_grad():
        model.decoder[-2].weight.mul_(1000)
    pixels = model.decode(model.encode(random_images("small")))
    assert pixels.min() == -1 and pixels.max() == 1


@pytest.mark.parametrize("part", ["encoder", "decoder", "quantizer", "quant_conv", "post_quant_conv"])
def test_the_fingerprint_sees_every_weight(part: str) -> None:
    model = model_of("small")
    before = model.fingerprint()
    with torch.no_grad():
        next(model.get_submodule(part).parameters()).view(-1)[0].add_(1e-3)
    assert model.fingerprint() != before


def test_the_fingerprint_sees_what_changes_the_codes() -> None:
    prints = {
        model_of("small").fingerprint(),
        model_of("small", cosine=True).fingerprint(),
        model_of("small", patch_nums=(2, 2)).fingerprint(),
    }
    assert len(prints) == 3 and model_of("small").fingerprint() in prints


@pytest.mark.parametrize(
    ("image_size", "patch_nums"), [(16, (1, 4)), (18, (1, 2)), (32, (1, 2)), (16, ((1, 1), (2, 1)))]
)
def test_scales_end_at_the_latent_grid(image_size: int, patch_nums: tuple) -> None:
    with pytest.raises(ValueError, match="let patch_nums end there"):
        VQConfig(image_size=image_size, channels=(32, 32), patch_nums=patch_nums)


@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 1, 16, 16)])
def test_pixel_values_have_four_dimensions_and_three_channels(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"give \(B, 3, H, W\)"):
        model_of("small").encode(torch.zeros(shape))


def test_an_image_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="images of the tokenizer's size"):
        model_of("small").encode(torch.zeros(1, 3, 24, 16))


def test_the_scales_follow_the_side_and_old_configurations_are_what_they_were(tmp_path: Path) -> None:
    assert VQConfig().patch_nums == (1, 2, 4, 8) and VQConfig(image_size=128).patch_nums == (1, 2, 4, 8, 16)
    assert VQConfig(image_size=128, channels=(32, 32, 32)).patch_nums == (1, 2, 4, 8)
    for config in (VQConfig(image_size=128), VQConfig(image_size=128, channels=(32, 32, 32)), VQConfig()):
        config.save_pretrained(tmp_path)
        assert tuple(VQConfig.from_pretrained(tmp_path).patch_nums) == tuple(config.patch_nums)
    assert VQConfig(patch_nums=(1, 2, 4, 8)).upsampling == "shuffle"
    with pytest.raises(ValueError, match="image_size 100 is no multiple of 8"):
        VQConfig(image_size=100)
    with pytest.raises(ValueError, match=r"image_size \(64, 48\): images are squares; give one side"):
        VQConfig(image_size=(64, 48))


def test_the_small_decoder_starts_without_a_lattice() -> None:
    """The first picture of one feature everywhere is one colour away from the borders, not a block repeated."""
    spreads = {}
    for upsampling in ("shuffle", "bilinear"):
        torch.manual_seed(0)
        model = VQModel(VQConfig(channels=(32, 32), codebook_size=16, upsampling=upsampling))
        flat = torch.randn(1, 16, 1, 1).expand(1, 16, 32, 32)
        inner = model.f_hat_to_pixels(flat)[0, :, 120:136, 120:136]
        spreads[upsampling] = float(inner.detach().std(dim=(1, 2)).max())
    assert spreads["bilinear"] < 1e-4 and spreads["shuffle"] > 0.01


def test_what_a_checkpoint_gave_is_not_initialized_again(tmp_path: Path) -> None:
    model = model_of("small", upsampling="bilinear")
    with torch.no_grad():
        for value in model.parameters():
            value += 0.1
    model.save_pretrained(tmp_path)
    loaded = VQModel.from_pretrained(tmp_path)
    loaded.init_weights()
    assert loaded.fingerprint() == model.fingerprint()
