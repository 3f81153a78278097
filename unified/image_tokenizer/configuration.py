"""`VQConfig`: architecture of an image tokenizer."""

from typing import Literal

from transformers import PreTrainedConfig

from unified.image_tokenizer.scales import doubling_patch_nums, normalize_patch_nums

SMALL_STEM_STRIDE = 4


class VQConfig(PreTrainedConfig):
    """Image tokenizer: one of two encoder/decoder families around a multi-scale residual quantizer.

    Attributes:
        architecture: "var" (VAR's convolutional VAE) or "small" (stride-4 stem, pixel-shuffle tail; for CPUs).
        image_size: side of the square images in pixels.
        channels: width of every resolution, fine to coarse; each step halves the sides.
        num_res_blocks: residual blocks per resolution in the encoder; the decoder has one more.
        codebook_size, code_dim: number and dimension of the codebook's vectors.
        patch_nums: sides of the scales; the last is the latent grid, `image_size / downsampling`. Empty: 1, 2, 4, ...
        upsampling: of the small decoder. "bilinear": features are resized, and the first pixels are a smooth surface;
            "shuffle": every latent position makes its own block of pixels, whose borders show until training has
            closed them (after 100 steps of 128-pixel photographs, and 1.2 dB behind).
        phi_count, phi_ratio, cosine, beta: see `MultiScaleQuantizer`.
    """

    model_type = "unified_vq"

    architecture: Literal["var", "small"] = "small"
    image_size: int = 64
    channels: list[int] | tuple[int, ...] = (96, 152)
    num_res_blocks: int = 1
    codebook_size: int = 1024
    code_dim: int = 16
    patch_nums: list | tuple = ()
    upsampling: Literal["shuffle", "bilinear"] = "shuffle"  # what configurations without the key have
    phi_count: int = 4
    phi_ratio: float = 0.5
    cosine: bool = False
    beta: float = 0.25

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        if not isinstance(self.image_size, int):
            raise ValueError(f"image_size {self.image_size}: images are squares; give one side in pixels")
        side = self.image_size // self.downsampling
        if not self.patch_nums:
            if side < 1 or self.image_size % self.downsampling:
                raise ValueError(
                    f"image_size {self.image_size} is no multiple of {self.downsampling}, the pixels of a latent "
                    "position's side; give one that is, or other channels"
                )
            self.patch_nums = doubling_patch_nums(side)
        grid = normalize_patch_nums(self.patch_nums)[-1]
        if self.image_size % self.downsampling or grid != (side, side):
            raise ValueError(
                f"patch_nums {list(self.patch_nums)} end at {grid} but a {self.image_size}-pixel image has a latent "
                f"of {side}x{side} ({self.image_size} / {self.downsampling}); let patch_nums end there"
            )

    @property
    def downsampling(self) -> int:
        """Pixels per latent position and side."""
        halvings = 2 ** (len(self.channels) - 1)
        return halvings * SMALL_STEM_STRIDE if self.architecture == "small" else halvings
