"""Convert a VAR tokenizer (https://github.com/FoundationVision/VAR, vae_ch160v4096z32.pth) to a VQModel folder.

    python data_prep/convert_var_vq.py vae_ch160v4096z32.pth out/var_vq --patch-nums 1 2 3 4 5 6 8 10 13 16
    python data_prep/convert_var_vq.py IN.pth OUT_DIR --patch-nums 1 2 3 4 --znorm --image-size 64

Widths, residual blocks, code dim, codebook size and the sharing of phi are read off the weights. The scales and
`--znorm` (cosine codes) are not in them. The file is read with `weights_only=True`: nothing in it is executed.
Writes OUT_DIR/config.json and OUT_DIR/model.safetensors. Exit status 2 and one line on stderr when the input is wrong.
"""

import argparse
import pickle
import re
import zipfile
from pathlib import Path

import torch
from torch import Tensor

from unified.arguments.parser import run_main
from unified.files.images import SIDE_RULE
from unified.image_tokenizer.configuration import VQConfig
from unified.image_tokenizer.model import VQModel
from unified.reports.endings import say_end

UNUSED = "quantize.ema_vocab_hit_SV"  # usage statistics of VAR's training


def main() -> None:
    """Read the weights, read the configuration off them, fill a VQModel, save it."""
    args = make_parser().parse_args()
    weights = read_weights(args.weights)
    config = read_config(weights, args.patch_nums, args.znorm, args.image_size)
    model = VQModel(config)
    load(model, weights, args.weights)
    model.save_pretrained(args.out)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{args.out}: {size:.1f}M parameters, {config.codebook_size} codes, fingerprint {model.fingerprint()[:12]}")
    say_end(args.out, {}, f"unified extend --llm MY_LLM --vq {args.out} --out out/base")


def make_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", help="state dict saved by VAR (*.pth)")
    parser.add_argument("out", help="folder to write")
    parser.add_argument("--patch-nums", type=int, nargs="+", required=True, help="sides of the scales, coarse to fine")
    parser.add_argument("--znorm", action="store_true", help="the tokenizer was trained with using_znorm=True")
    parser.add_argument("--image-size", type=side, help="default: last of --patch-nums times the downsampling")
    return parser


def side(text: str) -> int:
    """A number of pixels, from the command line."""
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give {SIDE_RULE}") from None


def read_weights(path: str) -> dict[str, Tensor]:
    """State dict of a VAR tokenizer; raises ValueError when the file is missing or holds something else."""
    if not Path(path).is_file():
        raise ValueError(f"{path} is not a file; give a VAR tokenizer such as vae_ch160v4096z32.pth")
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is not a file of weights: torch.save writes a zip archive, and this is none")
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError) as error:
        raise ValueError(f"{path} is not a file of weights: {str(error).splitlines()[0]}") from None
    needed = ("encoder.conv_in.weight", "quantize.embedding.weight", "quant_conv.weight")
    missing = [name for name in needed if not isinstance(weights, dict) or name not in weights]
    if missing:
        raise ValueError(f"{path} is not a VAR tokenizer: {missing[0]} is missing; give its vae_*.pth, not var_*.pth")
    return weights


def read_config(weights: dict[str, Tensor], patch_nums: list[int], znorm: bool, image_size: int | None) -> VQConfig:
    """VQConfig whose model has exactly the shapes of `weights`; raises ValueError when `patch_nums` do not fit."""
    levels = 1 + highest(weights, r"encoder\.down\.(\d+)\.block")
    blocks = 1 + highest(weights, r"encoder\.down\.0\.block\.(\d+)\.")
    downsampling = 2 ** (levels - 1)
    codebook_size, code_dim = weights["quantize.embedding.weight"].shape
    return VQConfig(
        architecture="var",
        image_size=image_size or patch_nums[-1] * downsampling,
        channels=[len(weights[f"encoder.down.{level}.block.0.conv1.bias"]) for level in range(levels)],
        num_res_blocks=blocks,
        codebook_size=codebook_size,
        code_dim=code_dim,
        patch_nums=patch_nums,
        phi_count=read_phi_count(weights),
        cosine=znorm,
    )


def read_phi_count(weights: dict[str, Tensor]) -> int:
    """Number of phi convolutions: VAR names one for all scales `qresi`, some shared ones `qresi_ls.N`, else `N`."""
    if "quantize.quant_resi.qresi.weight" in weights:
        return 1
    return 1 + highest(weights, r"quantize\.quant_resi\.(?:qresi_ls\.)?(\d+)\.")


def highest(weights: dict[str, Tensor], pattern: str) -> int:
    """Largest number the pattern's group takes among the names."""
    numbers = [int(match[1]) for match in map(re.compile(pattern).match, weights) if match]
    if not numbers:
        raise ValueError(f"these are not a VAR tokenizer's weights: no name matches {pattern}")
    return max(numbers)


def load(model: VQModel, weights: dict[str, Tensor], path: str) -> None:
    """Fill `model` with renamed weights; raises ValueError on the first name or shape that does not fit."""
    renamed = {rename(name): tensor for name, tensor in weights.items() if name != UNUSED}
    expected = model.state_dict()
    for name in sorted(expected.keys() | renamed.keys()):
        ours = tuple(expected[name].shape) if name in expected else "absent"
        theirs = tuple(renamed[name].shape) if name in renamed else "absent"
        if ours != theirs:
            raise ValueError(f"{path}: {name} is {theirs}, this configuration needs {ours}; not a VAR file?")
    model.load_state_dict(renamed)


def rename(name: str) -> str:
    """VAR's name of a weight -> ours."""
    name = re.sub(r"^quantize\.", "quantizer.", name)
    name = re.sub(r"quant_resi\.qresi\.", "quant_resi.qresi_ls.0.", name)
    return re.sub(r"quant_resi\.(\d+)\.", r"quant_resi.qresi_ls.\1.", name)


if __name__ == "__main__":
    run_main(main)
