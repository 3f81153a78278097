"""A VAR tokenizer's file becomes a VQModel that computes what VAR's own code computed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from unified import VQConfig, VQModel

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT.parent / "shared" / "golden" / "var_a"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="golden vectors are not beside the repository")


@pytest.fixture
def convert(run_script, capfd):
    """Run the script; returns its exit status and the last line it wrote to stderr."""

    def run(*arguments):
        status = run_script("data_prep/convert_var_vq.py", *arguments)
        return status, ([""] + capfd.readouterr().err.splitlines())[-1]

    return run


def assert_refused(result, *words):
    status, line = result
    assert status == 2 and line.startswith("error: "), line
    assert all(word in line for word in words), line


def var_names(model, phi):
    """State dict of a VQModel under VAR's names; `phi` is how VAR calls the shared convolutions."""
    weights = {name.replace("quantizer.", "quantize."): tensor for name, tensor in model.state_dict().items()}
    return {name.replace("qresi_ls.0." if phi == "qresi." else "qresi_ls.", phi): t for name, t in weights.items()}


@pytest.fixture(scope="module")
def small_var():
    torch.manual_seed(0)
    shape = {"architecture": "var", "channels": [32, 32], "num_res_blocks": 1, "codebook_size": 8, "code_dim": 4}

    def make(phi_count):
        return VQModel(VQConfig(**shape, image_size=8, patch_nums=[1, 2, 4], phi_count=phi_count)).eval()

    return make


@needs_golden
@torch.no_grad()
def test_codes_are_equal_and_values_within_1e_4(convert, tmp_path):
    result = convert(GOLDEN / "vae.pth", tmp_path, "--patch-nums", 1, 2, 3, 4)
    assert result[0] == 0, result
    assert (tmp_path / "model.safetensors").is_file()
    model, expected = VQModel.from_pretrained(tmp_path).eval(), load_file(GOLDEN / "expected.safetensors")
    config = model.config
    assert (list(config.channels), config.num_res_blocks) == ([32, 32, 64, 64, 128], 2)
    assert (config.codebook_size, config.code_dim, config.phi_count, config.image_size) == (96, 8, 4, 64)
    codes = model.encode(expected["pixel_values"])
    assert torch.equal(codes, expected["codes"])
    for name, value in {
        "features": model.features(expected["pixel_values"]),
        "f_hat": model.quantizer.codes_to_f_hat(codes),
        "next_scale_inputs": model.quantizer.next_scale_inputs(codes),
        "reconstruction": model.decode(codes),
    }.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize(("phi_count", "phi"), [(1, "qresi."), (2, "qresi_ls."), (3, "")])
def test_every_sharing_of_phi_is_read(convert, small_var, tmp_path, phi_count, phi):
    model = small_var(phi_count)
    torch.save(var_names(model, phi) | {"quantize.ema_vocab_hit_SV": torch.zeros(3, 8)}, tmp_path / "vae.pth")
    result = convert(tmp_path / "vae.pth", tmp_path / "out", "--patch-nums", 1, 2, 4, "--znorm")
    assert result[0] == 0, result
    loaded = VQModel.from_pretrained(tmp_path / "out")
    assert loaded.config.cosine and loaded.config.phi_count == phi_count and loaded.config.image_size == 8
    ours, theirs = loaded.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_wrong_files_are_refused(convert, small_var, tmp_path):
    out, scales = tmp_path / "out", ("--patch-nums", 1, 2, 4)
    assert_refused(convert(tmp_path / "none.pth", out, *scales), "none.pth", "is not a file")
    (tmp_path / "text.pth").write_text("hello")
    assert_refused(convert(tmp_path / "text.pth", out, *scales), "text.pth", "not a file of weights")
    torch.save({"blocks.0.weight": torch.zeros(1)}, tmp_path / "other.pth")
    assert_refused(convert(tmp_path / "other.pth", out, *scales), "other.pth", "not a VAR tokenizer")
    weights = var_names(small_var(2), "qresi_ls.")
    torch.save(weights, tmp_path / "vae.pth")
    refused = convert(tmp_path / "vae.pth", out, *scales, "--image-size", 16)
    assert_refused(refused, "patch_nums", "8x8")
    del weights["decoder.conv_out.bias"]
    torch.save(weights, tmp_path / "part.pth")
    assert_refused(convert(tmp_path / "part.pth", out, *scales), "part.pth", "decoder.conv_out.bias")
    assert not out.exists()
