"""Losses of the image tokenizer's training (GAN, LPIPS), and codebook usage and revival.

Legend: B batch, C code dim, V codebook size, K scales, L positions of an image (all scales), h w a grid.
"""

from collections import OrderedDict
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unified.image_tokenizer.scales import PatchNums, normalize_patch_nums, resize_area, scale_spans


class PatchDiscriminator(nn.Module):
    """Scores overlapping patches of an image as real or fake (Isola et al. 2017, arXiv 1611.07004, section 3.2.2).

    (B, 3, H, W) -> (B, 1, H / 2**depth, W / 2**depth). GroupNorm instead of BatchNorm: real and fake images are
    separate batches, whose statistics would give them away.
    """

    def __init__(self, base_channels: int = 32, depth: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width_in, width = 3, base_channels
        for level in range(depth):
            layers += [nn.Conv2d(width_in, width, kernel_size=4, stride=2, padding=1), nn.LeakyReLU(0.2)]
            if level > 0:
                layers.insert(-1, nn.GroupNorm(8, width))
            width_in, width = width, min(width * 2, 8 * base_channels)
        self.layers = nn.Sequential(*layers, nn.Conv2d(width_in, 1, kernel_size=3, padding=1))

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.layers(pixel_values)


def hinge_d_loss(real_scores: Tensor, fake_scores: Tensor) -> Tensor:
    """Discriminator's hinge loss, a scalar: 0 when every real score is >= 1 and every fake one <= -1."""
    return 0.5 * (F.relu(1 - real_scores).mean() + F.relu(1 + fake_scores).mean())


def adaptive_weight(reconstruction_loss: Tensor, gan_loss: Tensor, last_layer: Tensor, limit: float = 1e4) -> Tensor:
    """Weight that makes the GAN's gradient at `last_layer` as large as the reconstruction's (VQGAN, eq. 7).

    The losses are scalars of one graph, which is kept; the result is a detached scalar in [0, limit].
    """
    (reconstruction_grad,) = torch.autograd.grad(reconstruction_loss, last_layer, retain_graph=True)
    (gan_grad,) = torch.autograd.grad(gan_loss, last_layer, retain_graph=True)
    return (reconstruction_grad.norm() / (gan_grad.norm() + 1e-4)).clamp(0, limit).detach()


def drop_scales(batch: int, num_scales: int, share: float, generator: torch.Generator) -> Tensor:
    """Number of scales each image is decoded from, (B,) in 1..K: about `share` of images lose their finer ones.

    The number of kept scales is then uniform in 1..K-1 (quantizer dropout, arXiv 2107.03312, section III.C).
    """
    if num_scales == 1:
        return torch.ones(batch, dtype=torch.long)
    fewer = torch.randint(1, num_scales, (batch,), generator=generator)
    return torch.where(torch.rand(batch, generator=generator) < share, fewer, num_scales)


LEAST_USED = 0.5  # share of the codebook below which a training says so


class CodeUsage(nn.Module):
    """Counts the codes used by every scale since the last `reset`, and the steps each code has been unused.

    Its buffers are part of a checkpoint. `update` does not synchronize the device.
    """

    counts: Tensor
    idle_steps: Tensor

    def __init__(self, codebook_size: int, patch_nums: PatchNums) -> None:
        super().__init__()
        self.spans = scale_spans(patch_nums)
        self.register_buffer("counts", torch.zeros(len(self.spans), codebook_size, dtype=torch.long))
        self.register_buffer("idle_steps", torch.zeros(codebook_size, dtype=torch.long))

    @torch.no_grad()
    def update(self, codes: Tensor) -> None:
        """Count one batch of codes (B, L)."""
        for scale, (start, stop) in enumerate(self.spans):
            flat = codes[:, start:stop].flatten()
            self.counts[scale].scatter_add_(0, flat, torch.ones_like(flat))
        self.idle_steps += 1
        self.idle_steps[codes.flatten()] = 0

    def usage(self) -> Tensor:
        """Share of the codebook each scale used since `reset`, (K,) in [0, 1]."""
        return (self.counts > 0).float().mean(dim=1)

    def perplexity(self) -> Tensor:
        """exp(entropy) of each scale's codes since `reset`, (K,) in [1, V]; 1 where nothing was counted."""
        p = self.counts / self.counts.sum(dim=1, keepdim=True).clamp(min=1)
        return torch.special.entr(p).sum(dim=1).exp()

    def warning(self) -> str:
        """What to do about a codebook of which little is used; empty where enough is, or too little was counted."""
        used, size = int((self.counts.sum(dim=0) > 0).sum()), self.counts.shape[1]
        if used >= LEAST_USED * size or int(self.counts.sum()) < 2 * size:
            return ""
        return (
            f"low usage: {used} of {size} codes are used on held-out images, and an LLM learns a row for each; give "
            f"--codebook_size {max(2, 2 ** (used - 1).bit_length())}, more steps, or a --revive_until nearer 1"
        )

    def reset(self) -> None:
        """Start a new counting window; idle steps are kept."""
        self.counts.zero_()


def residuals(features: Tensor, next_scale_inputs: Tensor, patch_nums: PatchNums) -> Tensor:
    """Residual of each position when its code was chosen, (B * L, C).

    `features` (B, C, h_K, w_K) and `next_scale_inputs` (B, L - h_1*w_1, C) are the quantizer's. Area
    resizing is linear, so resized(f - f_hat) is resized(f) - resized(f_hat).
    """
    sides = normalize_patch_nums(patch_nums)
    resized = torch.cat([resize_area(features, side).flatten(2) for side in sides], dim=2)
    first = sides[0][0] * sides[0][1]
    known = F.pad(next_scale_inputs, (0, 0, first, 0))
    return (resized.transpose(1, 2) - known).flatten(0, 1)


@torch.no_grad()
def revive_dead_codes(embedding: Tensor, dead: Tensor, features: Tensor, generator: torch.Generator) -> Tensor:
    """Overwrite in place the `dead` (V,) bool rows of `embedding` (V, C) with random rows of `features` (N, C).

    Noise (1% of the features' standard deviation) makes repeated rows differ. Returns the indices of revived rows.
    Raises ValueError when `features` is empty.
    """
    if len(features) == 0:
        raise ValueError("revive_dead_codes: features is empty; give at least one row to sample codes from")
    rows = dead.nonzero().flatten()
    # sampled on the CPU with its generator, so a run is the same on every device
    chosen = torch.randint(len(features), (len(rows),), generator=generator)
    noise = torch.randn(len(rows), embedding.shape[1], generator=generator).to(features)
    fresh = features[chosen.to(features.device)] + 0.01 * features.std() * noise
    embedding[rows] = fresh.to(embedding.dtype)
    return rows


class LPIPS(nn.Module):
    """Perceptual distance on VGG-16 features (Zhang et al. 2018, arXiv 1801.03924, eq. 1): two (B, 3, H, W) -> (B,).

    Module names are those of `lpips.LPIPS(net="vgg").state_dict()`, whose weights `load` reads. Images in [-1, 1].
    """

    # (index of the convolution in VGG-16's feature list, channels in, channels out) for each of the five slices
    SLICES = (
        ((0, 3, 64), (2, 64, 64)),
        ((5, 64, 128), (7, 128, 128)),
        ((10, 128, 256), (12, 256, 256), (14, 256, 256)),
        ((17, 256, 512), (19, 512, 512), (21, 512, 512)),
        ((24, 512, 512), (26, 512, 512), (28, 512, 512)),
    )

    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.net, self.lins = nn.ModuleDict(), nn.ModuleList()
        for number, convolutions in enumerate(self.SLICES, start=1):
            layers: dict[str, nn.Module] = {"pool": nn.MaxPool2d(2)} if number > 1 else {}
            for index, width_in, width_out in convolutions:
                layers[str(index)] = nn.Conv2d(width_in, width_out, kernel_size=3, padding=1)
                layers[f"relu{index}"] = nn.ReLU()
            self.net[f"slice{number}"] = nn.Sequential(OrderedDict(layers))
            head = nn.Conv2d(convolutions[-1][2], 1, kernel_size=1, bias=False)
            self.lins.append(nn.Sequential(OrderedDict(model=nn.Sequential(OrderedDict({"1": head})))))
        # ImageNet's mean and standard deviation, converted from [0, 1] to [-1, 1]
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None], persistent=False)
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None], persistent=False)

    @classmethod
    def load(cls, path: str | None) -> "LPIPS":
        """Frozen LPIPS from a file; raises ValueError when it is missing or holds other weights."""
        how = "save one with torch.save(lpips.LPIPS(net='vgg').state_dict(), FILE), or set lpips_weight to 0"
        if path is None or not Path(path).is_file():
            raise ValueError(f"lpips_path {path} is not a file, but lpips_weight > 0 needs VGG weights; {how}")
        model, stored = cls(), torch.load(path, weights_only=True, map_location="cpu")
        missing = sorted(set(model.state_dict()) - set(stored))
        if missing:
            raise ValueError(f"lpips_path {path} lacks {missing[0]} and {len(missing) - 1} more weights; {how}")
        model.load_state_dict({name: stored[name] for name in model.state_dict()})
        return model.requires_grad_(False).eval()

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        x = (torch.cat([a, b]) - self.shift) / self.scale
        distance = x.new_zeros(len(a))
        for stage, head in zip(self.net.values(), self.lins, strict=True):
            x = stage(x)
            ours, theirs = F.normalize(x, dim=1, eps=1e-10).chunk(2)
            distance = distance + head((ours - theirs).square()).mean(dim=(1, 2, 3))
        return distance
