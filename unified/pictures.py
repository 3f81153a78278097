"""Pictures as PIL images, as uint8 arrays and as pixel values: cropping to a square, and back and forth.

Legend: B batch, H W pixels, S side of a square image. Pixel values are floats in [-1, 1].
"""

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor


def square(image: Image.Image, side: int) -> Image.Image:
    """RGB picture of `side` x `side`: scaled to cover the square and cropped to its centre."""
    image = image.convert("RGB")
    return image if image.size == (side, side) else ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)


def image_to_uint8(image: Image.Image, side: int) -> Tensor:
    """`square(image, side)` as uint8 (S, S, 3)."""
    return torch.from_numpy(np.array(square(image, side)))


def to_pixel_values(images: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W); the permutation makes it channels_last for free."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_uint8(pixel_values: Tensor) -> Tensor:
    """Inverse of `to_pixel_values`, rounding and clipping: (B, 3, H, W) -> (B, H, W, 3)."""
    return pixel_values.detach().float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def image_to_pixels(image: Image.Image, side: int) -> Tensor:
    """Pixel values (3, S, S) of `square(image, side)`."""
    return to_pixel_values(image_to_uint8(image, side)[None])[0]


def pixels_to_image(pixel_values: Tensor) -> Image.Image:
    """Picture of `pixel_values` (3, H, W), clipped and rounded; the inverse of `image_to_pixels`."""
    return Image.fromarray(to_uint8(pixel_values[None])[0].cpu().numpy())
