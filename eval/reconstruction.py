"""Reconstruction quality of an image tokenizer: PSNR, SSIM, use of the codebook, and on demand LPIPS and rFID.

    python eval/reconstruction.py --vq weights/scenes-vq --images data/scenes_heldout --n 512 --grid grid.png
    python eval/reconstruction.py --vq out/vq --images /data/imagenet_val --n 50000 --rfid --lpips vgg.pth \\
        --out results/vq_reconstruction.json

Images are a folder of png/jpg/webp files (searched through) or of *.parquet shards with `images` or `image`; the first
--n by name, scaled and cropped to the tokenizer's square. Printed, and written to --out, is one JSON:

    value, stderr          PSNR in dB, mean over images, of decoded values clipped to [-1, 1] and not rounded
    psnr_by_scale          the same after the first 1, 2, ... scales
    ssim                   torchmetrics' (Wang et al. 2004: Gaussian window of 11, sigma 1.5), on values in [0, 1]
    usage_by_scale         share of the codebook that a scale used for these images; codes_used: that any scale used
    perplexity_by_scale    exp(entropy) of a scale's codes
    lpips                  with --lpips FILE, made by torch.save(lpips.LPIPS(net='vgg').state_dict(), FILE)
    rfid                   with --rfid; weights from --inception FILE or torch.hub's cache. Compare equal --n only

--grid writes the first images: originals in the top row, below them their reconstructions from 1, 2, ... scales.
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from tqdm import tqdm

from unified.arguments.needs import Needs, WithNeeds
from unified.arguments.parser import check_minimum, parse, run_main
from unified.evaluation.inception import Inception, feature_statistics
from unified.evaluation.metrics import clustered_mean, frechet_distance, psnr
from unified.files.images import Fit, pixels_to_image, to_pixel_values, to_uint8, write_image
from unified.files.results import write_result
from unified.hardware.arguments import HardwareArguments
from unified.hardware.setup import set_up
from unified.image_tokenizer.image_dataset import PixelDataset, open_images
from unified.image_tokenizer.loading import load_vq
from unified.image_tokenizer.losses import LPIPS, CodeUsage
from unified.image_tokenizer.model import VQModel
from unified.reports.endings import end_evaluation


@dataclass
class ReconstructionArguments(WithNeeds):
    """What is measured on what."""

    NEEDS = (
        Needs("inception", lambda args: args.rfid, "give --rfid", "rfid"),
        Needs("grid_images", lambda args: args.grid, "give --grid", "grid"),
    )

    vq: str = field(metadata={"help": "folder of the image tokenizer"})
    images: str = field(metadata={"help": "folder of png/jpg/webp files or of *.parquet shards"})
    n: int = field(default=512, metadata={"help": "images, the first by name; 0 is all"})
    fit: Fit = field(default="crop", metadata={"help": "images that are not square: crop, pad with white, or refuse"})
    batch_size: int = field(default=32, metadata={"help": "images at once"})
    rfid: bool = field(default=False, metadata={"help": "also the Frechet distance of Inception features"})
    inception: str | None = field(default=None, metadata={"help": "its weights; needed where no cache has them"})
    lpips: str | None = field(default=None, metadata={"help": "VGG weights of LPIPS; without them it is left out"})
    grid: str | None = field(default=None, metadata={"help": "PNG with originals and reconstructions"})
    grid_images: int = field(default=8, metadata={"help": "images in the grid"})
    out: str | None = field(default=None, metadata={"help": "JSON to write, beside printing it"})

    def __post_init__(self) -> None:
        check_minimum(self, n=0, batch_size=1, grid_images=1)
        if self.grid is not None and not self.grid.endswith(".png"):
            raise ValueError(f"--grid {self.grid} is no PNG; end it with .png")


def ssim(fake: Tensor, real: Tensor) -> Tensor:
    """Structural similarity of images (B, 3, H, W) in [-1, 1], (B,)."""
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure  # slow to import
    except ModuleNotFoundError:
        raise ValueError("SSIM needs torchmetrics; pip install 'unified-ar[eval]'") from None
    # its constants are meant for values from 0 on
    scores = structural_similarity_index_measure((fake + 1) / 2, (real + 1) / 2, data_range=1.0, reduction="none")
    assert isinstance(scores, Tensor)
    return scores


@dataclass
class Scores:
    """What is gathered batch by batch; every tensor is on the CPU, images first but for `psnr` (K, B)."""

    usage: CodeUsage
    psnr: list[Tensor] = field(default_factory=list)
    ssim: list[Tensor] = field(default_factory=list)
    lpips: list[Tensor] = field(default_factory=list)
    real_features: list[Tensor] = field(default_factory=list)
    fake_features: list[Tensor] = field(default_factory=list)

    def details(self) -> dict[str, Any]:
        """Everything but the headline."""
        by_scale = torch.cat(self.psnr, dim=1)
        stderr = clustered_mean([[value] for value in by_scale[-1].tolist()])[1]
        details: dict[str, Any] = {
            "stderr": stderr and round(stderr, 4),
            "psnr_by_scale": rounded(by_scale.mean(dim=1), 3),
            "ssim": round(float(torch.cat(self.ssim).mean()), 5),
            "usage_by_scale": rounded(self.usage.usage(), 4),
            "codes_used": round(float((self.usage.counts.sum(dim=0) > 0).float().mean()), 4),
            "perplexity_by_scale": rounded(self.usage.perplexity(), 1),
        }
        if self.lpips:
            details["lpips"] = round(float(torch.cat(self.lpips).mean()), 5)
        if self.real_features:
            both = [feature_statistics(torch.cat(kind)) for kind in (self.real_features, self.fake_features)]
            details["rfid"] = round(frechet_distance(*both[0], *both[1]), 4)
        return details


def rounded(values: Tensor, digits: int) -> list[float]:
    """Numbers as a JSON shows them."""
    return [round(value, digits) for value in values.tolist()]


@torch.no_grad()
def measure(
    model: VQModel, dataset: PixelDataset, count: int, args: ReconstructionArguments, lpips: LPIPS | None, net: Any
) -> Scores:
    """Run the tokenizer over the first `count` images."""
    scores = Scores(CodeUsage(model.config.codebook_size, model.config.patch_nums))
    with tqdm(total=count, unit="image") as bar:
        for start in range(0, count, args.batch_size):
            stop = min(start + args.batch_size, count)
            images = torch.stack([dataset[index] for index in range(start, stop)])
            real = to_pixel_values(images.to(model.device))
            codes = model.encode(real)
            stages = model.decode_by_scale(codes)
            scores.usage.update(codes.cpu())
            scores.psnr.append(torch.stack([psnr(fake, real) for fake in stages]).cpu())
            scores.ssim.append(ssim(stages[-1], real).cpu())
            if lpips is not None:
                scores.lpips.append(lpips(stages[-1], real).cpu())
            if net is not None:
                scores.real_features.append(net(images.to(model.device)).cpu())
                scores.fake_features.append(net(to_uint8(stages[-1])).cpu())
            bar.update(stop - start)
    return scores


def draw_grid(model: VQModel, images: Tensor, path: Path) -> None:
    """Write `images` uint8 (B, H, W, 3) over their reconstructions from 1, 2, ... K scales."""
    real = to_pixel_values(images.to(model.device))
    rows = torch.stack([real, *model.decode_by_scale(model.encode(real))])
    write_image(pixels_to_image(rearrange(rows, "row b c h w -> c (row h) (b w)")), path)


def main() -> None:
    hardware, args = parse((HardwareArguments, ReconstructionArguments))
    set_up(hardware)
    net = Inception.load(args.inception) if args.rfid or args.inception else None
    lpips = LPIPS.load(args.lpips) if args.lpips else None
    model = load_vq(args.vq)
    source = open_images(args.images)
    count = args.n or len(source)
    if count > len(source):
        raise ValueError(f"--n {args.n}, but {args.images} holds {len(source)} images; give --n 0 for all of them")
    dataset = PixelDataset(
        source, model.config.image_size, 0, args.fit, max_bad=None, limit=count, exact=net is not None
    )
    started = time.perf_counter()
    scores = measure(model, dataset, count, args, lpips and lpips.to(model.device), net and net.to(model.device))
    if args.grid:
        shown = [dataset[index] for index in range(min(args.grid_images, count))]
        draw_grid(model, torch.stack(shown), Path(args.grid))
    details = scores.details()
    details |= {"tokenizer": model.fingerprint(), "prompts_sha256": None, "seed": None}
    details["seconds"] = time.perf_counter() - started
    config = {"images": args.images, "image_size": model.config.image_size, "patch_nums": model.config.patch_nums}
    config |= {} if args.fit == "crop" else {"fit": args.fit}
    path = Path(args.out) if args.out else None
    end_evaluation(write_result(path, "psnr", details["psnr_by_scale"][-1], count, args.vq, config, **details), path)


if __name__ == "__main__":
    run_main(main)
