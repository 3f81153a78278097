"""Encoders and decoders of the image tokenizer: VAR's architecture and the small default one.

Module names and shapes of the VAR architecture are those of its published checkpoints (vae_ch160v4096z32.pth).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import initialization as init  # leaves what a checkpoint has given

from unified.image_tokenizer.configuration import SMALL_STEM_STRIDE, VQConfig


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of (B, C, h, w): unlike group norm, positions do not depend on one another."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def group_norm(channels: int) -> nn.GroupNorm:
    """VAR's norm: 32 groups, eps 1e-6."""
    return nn.GroupNorm(num_groups=32, num_channels=channels, eps=1e-6)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions, each after norm and SiLU, with a shortcut; (B, in, h, w) -> (B, out, h, w)."""

    def __init__(self, in_channels: int, out_channels: int, norm: type[nn.Module] | None = None) -> None:
        super().__init__()
        make_norm = norm or group_norm
        self.norm1 = make_norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = make_norm(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        same = in_channels == out_channels
        self.nin_shortcut = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions, with a residual connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = rearrange(self.qkv(self.norm(x)), "b (three c) h w -> three b 1 (h w) c", three=3)
        out = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(out, "b 1 (h w) c -> b c h w", h=x.shape[2]))


class Downsample2x(nn.Module):
    """Downsamples by 2 with a strided convolution, padded on the right and bottom only."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample2x(nn.Module):
    """Upsamples by 2 with nearest neighbour and a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Middle(nn.Module):
    """Block, attention, block at the coarsest resolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels)
        self.attn_1 = AttnBlock(channels)
        self.block_2 = ResnetBlock(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Level(nn.Module):
    """Blocks of one resolution, each followed by attention where `attention`, then a change of resolution."""

    def __init__(self, widths: list[int], attention: bool) -> None:
        super().__init__()
        self.block = nn.ModuleList([ResnetBlock(a, b) for a, b in zip(widths, widths[1:], strict=False)])
        self.attn = nn.ModuleList([AttnBlock(width) for width in widths[1:]] if attention else [])

    def forward(self, x: Tensor) -> Tensor:
        for index, block in enumerate(self.block):
            x = block(x)
            if len(self.attn):
                x = self.attn[index](x)
        return x


class VarEncoder(nn.Module):
    """VAR's encoder: (B, 3, H, W) -> (B, C, H / 2^(n-1), W / 2^(n-1)) for n resolutions."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        channels, last = list(config.channels), len(config.channels) - 1
        self.conv_in = nn.Conv2d(3, channels[0], 3, padding=1)
        self.down = nn.ModuleList()
        for level, width in enumerate(channels):
            before = channels[max(level - 1, 0)]
            self.down.append(Level([before] + [width] * config.num_res_blocks, attention=level == last))
            if level != last:
                self.down[level].downsample = Downsample2x(width)
        self.mid = Middle(channels[-1])
        self.norm_out = group_norm(channels[-1])
        self.conv_out = nn.Conv2d(channels[-1], config.code_dim, 3, padding=1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        h = self.conv_in(pixel_values)
        for level in self.down[:-1]:
            h = level.get_submodule("downsample")(level(h))
        h = self.mid(self.down[-1](h))
        return self.conv_out(F.silu(self.norm_out(h)))


class VarDecoder(nn.Module):
    """VAR's decoder: the encoder mirrored, with one more block per resolution."""

    def __init__(self, config: VQConfig) -> None:
        super().__init__()
        channels, last = list(config.channels), len(config.channels) - 1
        self.conv_in = nn.Conv2d(config.code_dim, channels[-1], 3, padding=1)
        self.mid = Middle(channels[-1])
        self.up = nn.ModuleList()
        for level, width in enumerate(channels):
            before = channels[min(level + 1, last)]
            self.up.append(Level([before] + [width] * (config.num_res_blocks + 1), attention=level == last))
            if level != 0:
                self.up[level].upsample = Upsample2x(width)
        self.norm_out = group_norm(channels[0])
        self.conv_out = nn.Conv2d(channels[0], 3, 3, padding=1)

    def forward(self, latent: Tensor) -> Tensor:
        h = self.mid(self.conv_in(latent))
        for index in reversed(range(1, len(self.up))):
            h = self.up[index].get_submodule("upsample")(self.up[index](h))
        return self.conv_out(F.silu(self.norm_out(self.up[0](h))))


class SmallEncoder(nn.Sequential):
    """4x4 patches, then blocks and 2x downsampling; a small receptive field, so that an object's codes repeat."""

    def __init__(self, config: VQConfig) -> None:
        channels = list(config.channels)
        layers: list[nn.Module] = [nn.Conv2d(3, channels[0], SMALL_STEM_STRIDE, stride=SMALL_STEM_STRIDE)]
        for width, after in zip(channels, channels[1:] + [0], strict=True):
            layers += [ResnetBlock(width, width, ChannelNorm) for _ in range(config.num_res_blocks)]
            layers += [nn.Conv2d(width, after, 2, stride=2)] if after else []
        super().__init__(*layers, ChannelNorm(channels[-1]), nn.SiLU(), nn.Conv2d(channels[-1], config.code_dim, 1))


class SmallDecoder(nn.Sequential):
    """The small encoder mirrored, with pixel shuffle for the output pixels and `config.upsampling` before."""

    def __init__(self, config: VQConfig) -> None:
        channels = list(config.channels)[::-1]
        layers: list[nn.Module] = [nn.Conv2d(config.code_dim, channels[0], 3, padding=1)]
        for width, after in zip(channels, channels[1:] + [0], strict=True):
            layers += [ResnetBlock(width, width, ChannelNorm) for _ in range(config.num_res_blocks + 1)]
            layers += self._upsampling(config, width, after) if after else []
        convolution = SmoothShuffleConv if config.upsampling == "bilinear" else nn.Conv2d
        to_pixels = convolution(channels[-1], 3 * SMALL_STEM_STRIDE**2, 3, padding=1)
        super().__init__(*layers, ChannelNorm(channels[-1]), nn.SiLU(), to_pixels, nn.PixelShuffle(SMALL_STEM_STRIDE))

    @staticmethod
    def _upsampling(config: VQConfig, width: int, after: int) -> list[nn.Module]:
        if config.upsampling == "bilinear":
            return [nn.Conv2d(width, after, 1), nn.Upsample(scale_factor=2, mode="bilinear")]
        return [nn.Conv2d(width, 4 * after, 1), nn.PixelShuffle(2)]


class SmoothShuffleConv(nn.Conv2d):
    """A 3x3 convolution before a pixel shuffle that starts as 1x1 convolution and bilinear upsampling.

    With independent weights for the pixels of a block, the blocks are a lattice at the start, as ICNR (arXiv
    1707.02937) says; its nearest-neighbour start leaves the blocks' borders, which this one has not.
    """

    def reset_parameters(self) -> None:
        """As the base class draws them, the first pixel's central weights shared by all pixels of a block."""
        super().reset_parameters()
        side = SMALL_STEM_STRIDE
        offset = (torch.arange(side) + 0.5) / side - 0.5  # of a pixel from its block's centre, in blocks
        weights = torch.stack([(-offset).clamp(min=0), 1 - offset.abs(), offset.clamp(min=0)], dim=1)
        kernels = torch.einsum("iy,jx->ijyx", weights, weights).reshape(side**2, 3, 3)
        with torch.no_grad():
            first = (
                rearrange(self.weight, "(c s) i y x -> c s i y x", s=side**2)[:, 0, :, 1, 1] * 3
            )  # a 1x1's variance
            init.copy_(self.weight, torch.einsum("ci,syx->csiyx", first, kernels).flatten(0, 1))
            if self.bias is not None:
                init.copy_(self.bias, self.bias.view(-1, side**2)[:, :1].expand(-1, side**2).flatten())


def build_coders(config: VQConfig) -> tuple[nn.Module, nn.Module]:
    """Encoder and decoder of `config.architecture`."""
    if config.architecture == "var":
        return VarEncoder(config), VarDecoder(config)
    return SmallEncoder(config), SmallDecoder(config)


def quant_conv(config: VQConfig) -> nn.Conv2d:
    """VAR's 3x3 convolution before and after the quantizer."""
    return nn.Conv2d(config.code_dim, config.code_dim, 3, padding=1)
