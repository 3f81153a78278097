"""Multi-scale residual vector quantization, VAR's algorithms 1 and 2 (Tian et al. 2024, arXiv 2404.02905).

Legend: B batch, C code dim, V codebook size, K scales, L positions, `h_K w_K` the last scale = the latent grid.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from unified.image_tokenizer.scales import PatchNums, image_length, normalize_patch_nums, scale_spans


@dataclass
class QuantizerOutput:
    """`f_hat` (B, C, h_K, w_K) with straight-through gradients, `codes` (B, L), `vq_loss` averaged over scales."""

    f_hat: Tensor
    codes: Tensor
    vq_loss: Tensor


class Phi(nn.Conv2d):
    """phi(h) = (1 - r) h + r conv3x3(h): repairs what up-sampling blurs. Shape (B, C, h, w) is kept."""

    def __init__(self, code_dim: int, ratio: float) -> None:
        super().__init__(code_dim, code_dim, kernel_size=3, padding=1)
        self.ratio = ratio

    def forward(self, h: Tensor) -> Tensor:
        return h * (1 - self.ratio) + super().forward(h) * self.ratio


class SharedPhis(nn.Module):
    """`count` Phis spread over K scales by nearest tick, as VAR's partially shared ones."""

    def __init__(self, count: int, num_scales: int, code_dim: int, ratio: float) -> None:
        super().__init__()
        self.qresi_ls = nn.ModuleList([Phi(code_dim, ratio) for _ in range(count)])
        # VAR's own ticks: a third of a step from the ends for four Phis, half a step otherwise
        margin = 1 / 3 / count if count == 4 else 1 / 2 / count
        ticks = np.linspace(margin, 1 - margin, count)
        places = np.arange(num_scales) / max(num_scales - 1, 1)
        self.phi_of_scale = [int(np.abs(ticks - place).argmin()) for place in places]
        for spare in set(range(count)) - set(self.phi_of_scale):  # with few scales; DDP waits for gradients of all
            self.qresi_ls[spare].requires_grad_(False)

    def forward(self, h: Tensor, scale: int) -> Tensor:
        return self.qresi_ls[self.phi_of_scale[scale]](h)


class MultiScaleQuantizer(nn.Module):
    """Residual quantizer over the scales of `patch_nums` with one codebook.

    Args:
        codebook_size, code_dim: V and C.
        patch_nums: sides of the scales; the last one is the latent grid.
        phi_count: how many convolutions the scales share (4 in VAR).
        phi_ratio: r of `Phi`.
        cosine: nearest by cosine instead of Euclidean distance (VAR's `using_znorm`).
        beta: weight of the commitment term.
    """

    def __init__(
        self,
        codebook_size: int,
        code_dim: int,
        patch_nums: PatchNums,
        phi_count: int = 4,
        phi_ratio: float = 0.5,
        cosine: bool = False,
        beta: float = 0.25,
    ) -> None:
        super().__init__()
        self.patch_nums = normalize_patch_nums(patch_nums)
        self.cosine, self.beta = cosine, beta
        self.embedding = nn.Embedding(codebook_size, code_dim)
        self.quant_resi = SharedPhis(phi_count, len(self.patch_nums), code_dim, phi_ratio)

    @property
    def grid(self) -> tuple[int, int]:
        """Side of the latent, (h_K, w_K)."""
        return self.patch_nums[-1]

    def nearest(self, features: Tensor) -> Tensor:
        """Codes of the codebook vectors nearest to `features` (N, C) -> (N,)."""
        codebook = self.embedding.weight.detach()
        if self.cosine:
            return (F.normalize(features, dim=-1) @ F.normalize(codebook, dim=-1).T).argmax(dim=-1)
        # |x - e|^2 without |x|^2, which is the same for every e
        return (codebook.square().sum(dim=1) - 2 * features @ codebook.T).argmin(dim=-1)

    def contribution(self, codes: Tensor, scale: int) -> Tensor:
        """What `codes` (B, h_k*w_k) of one scale add to f_hat: phi_k(up(lookup(codes))), (B, C, h_K, w_K)."""
        h, w = self.patch_nums[scale]
        z = rearrange(self.embedding(codes), "b (h w) c -> b c h w", h=h, w=w)
        if scale < len(self.patch_nums) - 1:
            z = F.interpolate(z, size=self.grid, mode="bicubic")
        return self.quant_resi(z, scale)

    def scale_codes(self, rest: Tensor, scale: int) -> Tensor:
        """Codes of the residual `rest` (B, C, h_K, w_K) seen at one scale, (B, h_k*w_k)."""
        if scale < len(self.patch_nums) - 1:
            rest = F.interpolate(rest, size=self.patch_nums[scale], mode="area")
        h, w = self.patch_nums[scale]
        return rearrange(self.nearest(rearrange(rest, "b c h w -> (b h w) c")), "(b h w) -> b (h w)", h=h, w=w)

    def forward(self, features: Tensor, kept_scales: Tensor | None = None) -> QuantizerOutput:
        """Quantize `features` (B, C, h_K, w_K) with the VQ loss.

        Gradients reach the codebook through the loss and the encoder straight through `f_hat`. `kept_scales` (B,)
        in 1..K leaves the finer scales of an image out of its `f_hat`, as SoundStream's quantizer dropout does
        (arXiv 2107.03312, section III.C), so that the coarse ones learn to say what the picture is; codes and VQ
        loss cover all scales either way.
        """
        self.check_grid(features)
        target = features.detach()
        rest, f_hat = target.clone(), torch.zeros_like(target)
        shown, seen = f_hat, features
        vq_loss, codes = features.new_zeros(()), []
        for scale in range(len(self.patch_nums)):
            codes.append(self.scale_codes(rest, scale))
            z = self.contribution(codes[-1], scale)
            f_hat = f_hat + z
            rest = rest - z.detach()
            vq_loss = vq_loss + self.beta * F.mse_loss(f_hat.detach(), features) + F.mse_loss(f_hat, target)
            if kept_scales is not None:
                last = (kept_scales == scale + 1)[:, None, None, None]
                shown, seen = torch.where(last, f_hat, shown), torch.where(last, self.blurred(features, scale), seen)
        shown = f_hat if kept_scales is None else shown
        straight_through = seen + (shown - seen).detach()
        return QuantizerOutput(straight_through, torch.cat(codes, dim=1), vq_loss / len(self.patch_nums))

    def blurred(self, features: Tensor, scale: int) -> Tensor:
        """What one scale can see of `features` (B, C, h_K, w_K), the shape kept: down by area, up as codes are."""
        if scale == len(self.patch_nums) - 1:
            return features
        return F.interpolate(
            F.interpolate(features, size=self.patch_nums[scale], mode="area"), size=self.grid, mode="bicubic"
        )

    @torch.no_grad()
    def quantize(self, features: Tensor) -> Tensor:
        """Codes (B, L) of `features` (B, C, h_K, w_K): algorithm 1."""
        self.check_grid(features)
        rest, codes = features, []
        for scale in range(len(self.patch_nums)):
            codes.append(self.scale_codes(rest, scale))
            rest = rest - self.contribution(codes[-1], scale)
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
        """What each scale after the first is predicted from: f_hat of the scales before it, resized to its grid.

        `codes` (B, L), of which the last scale's are not looked at -> (B, L - h_1*w_1, C).
        """
        self.check_codes(codes)
        f_hat = self.embedding.weight.new_zeros(codes.shape[0], self.embedding.embedding_dim, *self.grid)
        inputs = []
        for scale, (start, stop) in enumerate(scale_spans(self.patch_nums)[:-1]):
            f_hat = f_hat + self.contribution(codes[:, start:stop], scale)
            inputs.append(self.scale_input(f_hat, scale + 1))
        return torch.cat(inputs, dim=1) if inputs else f_hat.new_zeros(codes.shape[0], 0, f_hat.shape[1])

    def scale_input(self, f_hat: Tensor, scale: int) -> Tensor:
        """`f_hat` (B, C, h_K, w_K) resized to one scale's grid, (B, h_k*w_k, C)."""
        return rearrange(F.interpolate(f_hat, size=self.patch_nums[scale], mode="area"), "b c h w -> b (h w) c")

    def check_grid(self, features: Tensor) -> None:
        """Raise ValueError unless `features` has the last scale's sides."""
        if tuple(features.shape[-2:]) != self.grid:
            raise ValueError(
                f"features are {tuple(features.shape[-2:])} but the last of patch_nums is {self.grid}; "
                "let patch_nums end at image_size / downsampling, or give images of the tokenizer's size"
            )

    def check_codes(self, codes: Tensor) -> None:
        """Raise ValueError unless `codes` is (B, L)."""
        length = image_length(self.patch_nums)
        if codes.ndim != 2 or codes.shape[1] != length:
            raise ValueError(
                f"codes have shape {tuple(codes.shape)} but patch_nums {self.patch_nums} make {length} an image; "
                "encode the image with this tokenizer"
            )
