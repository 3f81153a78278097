"""The image tokenizer: `encode(pixel_values) -> codes`, `decode(codes) -> pixel_values`.

Legend: B batch, C code dim, L codes of an image, H W pixels.
"""

import hashlib
import json
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel
from transformers.utils import ModelOutput

from unified.files.weights import StrictPreTrainedModel
from unified.image_tokenizer.configuration import VQConfig
from unified.image_tokenizer.layers import build_coders, quant_conv
from unified.image_tokenizer.quantizer import MultiScaleQuantizer
from unified.image_tokenizer.scales import scale_spans


@dataclass
class VQOutput(ModelOutput):
    """`reconstruction` (B, 3, H, W), `codes` (B, L) int64, `commitment_loss` scalar: the VQ loss over all scales."""

    reconstruction: Tensor | None = None
    codes: Tensor | None = None
    commitment_loss: Tensor | None = None


class VQModel(StrictPreTrainedModel):
    """Multi-scale VQ autoencoder (VAR, arXiv 2404.02905); pixel values are in [-1, 1]."""

    config: VQConfig
    config_class = VQConfig
    main_input_name = "pixel_values"
    _supports_sdpa = True  # unused here, but required to set the attention implementation of a model that contains it

    def __init__(self, config: VQConfig) -> None:
        super().__init__(config)
        self.encoder, self.decoder = build_coders(config)
        self.quant_conv, self.post_quant_conv = quant_conv(config), quant_conv(config)
        self.quantizer = MultiScaleQuantizer(
            config.codebook_size,
            config.code_dim,
            config.patch_nums,
            phi_count=config.phi_count,
            phi_ratio=config.phi_ratio,
            cosine=config.cosine,
            beta=config.beta,
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's default initialization, but for the codebook: uniform in 1/V as in VQ-VAE (arXiv 1711.00937)."""
        if isinstance(module, nn.Embedding):
            bound = 1 / module.num_embeddings
            nn.init.uniform_(module.weight, -bound, bound)
        elif isinstance(module, nn.Conv2d | nn.GroupNorm | nn.LayerNorm):
            module.reset_parameters()

    def features(self, pixel_values: Tensor) -> Tensor:
        """Encoder features before quantization: (B, 3, H, W) -> (B, C, h_K, w_K)."""
        if pixel_values.ndim != 4 or pixel_values.shape[1] != 3:
            raise ValueError(f"pixel_values have shape {tuple(pixel_values.shape)}; give (B, 3, H, W) in [-1, 1]")
        return self.quant_conv(self.encoder(pixel_values))

    def f_hat_to_pixels(self, f_hat: Tensor) -> Tensor:
        """Decoder: (B, C, h_K, w_K) -> (B, 3, H, W), not clamped."""
        return self.decoder(self.post_quant_conv(f_hat))

    def forward(self, pixel_values: Tensor, kept_scales: Tensor | None = None) -> VQOutput:
        """Reconstruct with gradients, for training.

        `kept_scales` (B,) in 1..K: image b is decoded from its first `kept_scales[b]` scales only; None is all.
        """
        features = self.features(pixel_values).float()
        with torch.autocast(features.device.type, enabled=False):  # the nearest code must not depend on rounding
            quantized = self.quantizer(features, kept_scales)
        return VQOutput(self.f_hat_to_pixels(quantized.f_hat), quantized.codes, quantized.vq_loss)

    @torch.no_grad()
    def encode(self, pixel_values: Tensor) -> Tensor:
        """Codes (B, L) int64 of `pixel_values` (B, 3, H, W) in [-1, 1], the same under autocast as without."""
        with torch.autocast(pixel_values.device.type, enabled=False):
            return self.quantizer.quantize(self.features(pixel_values))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Pixel values (B, 3, H, W), clamped to [-1, 1], of `codes` (B, L)."""
        return self.f_hat_to_pixels(self.quantizer.codes_to_f_hat(codes)).clamp(-1, 1)

    @torch.no_grad()
    def decode_by_scale(self, codes: Tensor) -> list[Tensor]:
        """Pixel values (B, 3, H, W) of the first 1, 2, ... K scales of `codes` (B, L); the last is `decode`'s."""
        stops = [stop for _, stop in scale_spans(self.quantizer.patch_nums)]
        return [self.f_hat_to_pixels(self.quantizer.partial_f_hat(codes[:, :stop])).clamp(-1, 1) for stop in stops]

    def fingerprint(self) -> str:
        """SHA-256 over scales and weights: equal for tokenizers whose codes decode to the same images."""
        settings = [self.quantizer.patch_nums, self.config.cosine, self.config.phi_ratio]
        digest = hashlib.sha256(json.dumps(settings).encode())
        for name, tensor in sorted(self.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def check_fingerprint(self, expected: str) -> None:
        """Raise ValueError unless this tokenizer has the `expected` fingerprint of a checkpoint."""
        found = self.fingerprint()
        if found != expected:
            raise ValueError(
                f"the image tokenizer's fingerprint is {found[:12]} but the checkpoint was made with {expected[:12]}; "
                "restore the tokenizer's weights, or make a new checkpoint with `unified extend`"
            )


AutoConfig.register(VQConfig.model_type, VQConfig)
AutoModel.register(VQConfig, VQModel)
