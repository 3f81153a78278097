"""Multi-scale residual vector quantization, VAR's algorithms 1 and 2 (Tian et al. 2024, arXiv 2404.02905).

Legend: B batch, C code dim, V codebook size, K scales, L positions, `h_K w_K` the last scale = the latent grid.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from unified.image_tokenizer.configuration import VQConfig
from unified.image_tokenizer.scales import PatchNums, image_length, normalize_patch_nums, resize_area, scale_spans


@dataclass
class QuantizerOutput:
    """`f_hat` (B, C, h_K, w_K) with straight-through gradients, `codes` (B, L), `vq_loss` averaged over scales."""

    f_hat: Tensor
    codes: Tensor
    vq_loss: Tensor


class Phi(nn.Conv2d):
    """phi(h) = (1 - r) h + r conv3x3(h), applied after upsampling. The shape (B, C, h, w) is kept."""

    def __init__(self, code_dim: int, ratio: float) -> None:
        super().__init__(code_dim, code_dim, kernel_size=3, padding=1)
        self.ratio = ratio

    def forward(self, h: Tensor) -> Tensor:
        return h * (1 - self.ratio) + super().forward(h) * self.ratio


class SharedPhis(nn.Module):
    """`count` Phis for K scales, each scale using the nearest one, as VAR's PhiPartiallyShared."""

    def __init__(self, count: int, num_scales: int, code_dim: int, ratio: float) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList([Phi(code_dim, ratio) for _ in range(count)])
        # VAR's `ticks`: a third of a step from the ends for four Phis, half a step otherwise
        margin = 1 / 3 / count if count == 4 else 1 / 2 / count
        centres = np.linspace(margin, 1 - margin, count)
        positions = np.arange(num_scales) / max(num_scales - 1, 1)
        self.phi_of_scale = [int(np.abs(centres - position).argmin()) for position in positions]
        for unused in set(range(count)) - set(self.phi_of_scale):  # with few scales; DDP waits for gradients of all
            self.qresi_ls[unused].requires_grad_(False)

    def forward(self, h: Tensor, scale: int) -> Tensor:
        return self.qresi_ls[self.phi_of_scale[scale]](h)


class MultiScaleQuantizer(nn.Module):
    """Residual quantizer over the scales of `patch_nums` with one codebook.

    Args:
        codebook_size, code_dim: V and C.
        patch_nums: sides of the scales; the last one is the latent grid.
        phi_count: number of Phis shared by the scales (4 in VAR).
        phi_ratio: r of `Phi`.
        cosine: nearest code by cosine instead of Euclidean distance (VAR's `using_znorm`).
        beta: weight of the commitment term.
    """

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        patch_nums: PatchNums,
        phi_count: int = VQConfig.phi_count,
        phi_ratio: float = VQConfig.phi_ratio,
        cosine: bool = VQConfig.cosine,
        beta: float = VQConfig.beta,
    ) -> None:
        super().__init__()
        self.patch_nums = normalize_patch_nums(patch_nums)
        self.cosine, self.beta = cosine, beta
        self.embedding = nn.Embedding(codebook_size, code_dim)
        self.quant_resi = SharedPhis(phi_count, len(self.patch_nums), code_dim, phi_ratio)

    @property
    def grid(self) -> tuple[int, int]:
        """Latent grid, (h_K, w_K)."""
        return self.patch_nums[-1]

    def nearest(self, features: Tensor) -> Tensor:
        """Codes of the codebook vectors nearest to `features` (N, C) -> (N,)."""
        codebook = self.embedding.weight.detach()
        if self.cosine:
            return (F.normalize(features, dim=-1) @ F.normalize(codebook, dim=-1).T).argmax(dim=-1)
        # |x - e|^2 without |x|^2, which is constant over e
        return (codebook.square().sum(dim=1) - 2 * features @ codebook.T).argmin(dim=-1)

    def contribution(self, codes: Tensor, scale: int) -> Tensor:
        """Summand of f_hat from one scale's `codes` (B, h_k*w_k): phi_k(up(lookup(codes))), (B, C, h_K, w_K)."""
        h, w = self.patch_nums[scale]
        z = rearrange(self.embedding(codes), "b (h w) c -> b c h w", h=h, w=w)
        if scale < len(self.patch_nums) - 1:
            z = F.interpolate(z, size=self.grid, mode="bicubic")
        return self.quant_resi(z, scale)

    def scale_codes(self, residual: Tensor, scale: int) -> Tensor:
        """Codes of `residual` (B, C, h_K, w_K) at one scale, (B, h_k*w_k)."""
        if scale < len(self.patch_nums) - 1:
            residual = resize_area(residual, self.patch_nums[scale])
        h, w = self.patch_nums[scale]
        return rearrange(self.nearest(rearrange(residual, "b c h w -> (b h w) c")), "(b h w) -> b (h w)", h=h, w=w)

    def forward(self, features: Tensor, kept_scales: Tensor | None = None) -> QuantizerOutput:
        """Quantize `features` (B, C, h_K, w_K) with the VQ loss.

        The codebook gets gradients from the loss, the encoder straight-through from `f_hat`. `kept_scales` (B,) in
        1..K omits the finer scales of an image from its `f_hat`, as SoundStream's quantizer dropout (arXiv
        2107.03312, section III.C), so that coarse codes carry more of the image; codes and VQ loss always cover all
        scales.
        """
        self.check_grid(features)
        target = features.detach()
        residual, f_hat = target.clone(), torch.zeros_like(target)
        kept_f_hat, kept_features = f_hat, features
        vq_loss, codes = features.new_zeros(()), []
        for scale in range(len(self.patch_nums)):
            codes.append(self.scale_codes(residual, scale))
            z = self.contribution(codes[-1], scale)
            f_hat = f_hat + z
            residual = residual - z.detach()
            vq_loss = vq_loss + self.beta * F.mse_loss(f_hat.detach(), features) + F.mse_loss(f_hat, target)
            if kept_scales is not None:
                last = (kept_scales == scale + 1)[:, None, None, None]
                kept_f_hat = torch.where(last, f_hat, kept_f_hat)
                kept_features = torch.where(last, self.resample_through_scale(features, scale), kept_features)
        kept_f_hat = f_hat if kept_scales is None else kept_f_hat
        straight_through = kept_features + (kept_f_hat - kept_features).detach()
        return QuantizerOutput(straight_through, torch.cat(codes, dim=1), vq_loss / len(self.patch_nums))

    def resample_through_scale(self, features: Tensor, scale: int) -> Tensor:
        """`features` (B, C, h_K, w_K) downsampled to one scale by area and upsampled like codes, in the same shape."""
        if scale == len(self.patch_nums) - 1:
            return features
        return F.interpolate(resize_area(features, self.patch_nums[scale]), size=self.grid, mode="bicubic")

    @torch.no_grad()
    def quantize(self, features: Tensor) -> Tensor:
        """Codes (B, L) of `features` (B, C, h_K, w_K): algorithm 1."""
        self.check_grid(features)
        residual, codes = features, []
        for scale in range(len(self.patch_nums)):
            codes.append(self.scale_codes(residual, scale))
            residual = residual - self.contribution(codes[-1], scale)
        return torch.cat(codes, dim=1)

    def codes_to_f_hat(self, codes: Tensor) -> Tensor:
        """Feature map (B, C, h_K, w_K) of `codes` (B, L): algorithm 2 without the decoder."""
        self.check_codes(codes)
        return self.partial_f_hat(codes)

    def partial_f_hat(self, codes: Tensor) -> Tensor:
        """Feature map (B, C, h_K, w_K) of the scales that `codes` (B, <= L) hold, coarse to fine."""
        spans = [(k, a, b) for k, (a, b) in enumerate(scale_spans(self.patch_nums)) if b <= codes.shape[1]]
        return torch.stack([self.contribution(codes[:, a:b], k) for k, a, b in spans]).sum(dim=0)

    def next_scale_inputs(self, codes: Tensor) -> Tensor:
        """Inputs from which each scale after the first is predicted: f_hat of earlier scales, resized to its grid.

        `codes` (B, L), of which the last scale's are not used -> (B, L - h_1*w_1, C).
        """
        self.check_codes(codes)
        f_hat, inputs = self.no_f_hat(codes.shape[0]), []
        for scale, (start, stop) in enumerate(scale_spans(self.patch_nums)[:-1]):
            f_hat = f_hat + self.contribution(codes[:, start:stop], scale)
            inputs.append(self.scale_input(f_hat, scale + 1))
        return torch.cat(inputs, dim=1) if inputs else f_hat.new_zeros(codes.shape[0], 0, f_hat.shape[1])

    def no_f_hat(self, batch: int) -> Tensor:
        """f_hat (B, C, h_K, w_K) of no scale: zeros, to which each scale's `contribution` is added."""
        return self.embedding.weight.new_zeros(batch, self.embedding.embedding_dim, *self.grid)

    def scale_input(self, f_hat: Tensor, scale: int) -> Tensor:
        """`f_hat` (B, C, h_K, w_K) resized to one scale's grid, (B, h_k*w_k, C)."""
        return rearrange(resize_area(f_hat, self.patch_nums[scale]), "b c h w -> b (h w) c")

    def check_grid(self, features: Tensor) -> None:
        """Raise ValueError unless `features` has the last scale's sides."""
        if tuple(features.shape[-2:]) != self.grid:
            raise ValueError(
                f"features are {tuple(features.shape[-2:])} but the last of patch_nums is {self.grid}; "
                "let patch_nums end at image_size / downsampling, or pass images of the tokenizer's size"
            )

    def check_codes(self, codes: Tensor) -> None:
        """Raise ValueError unless `codes` is (B, L)."""
        length = image_length(self.patch_nums)
        if codes.ndim != 2 or codes.shape[1] != length:
            raise ValueError(
                f"codes have shape {tuple(codes.shape)} but patch_nums {self.patch_nums} make {length} an image; "
                "encode the image with this tokenizer"
            )
