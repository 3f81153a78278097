"""Pictures as files, as PIL images, as uint8 arrays and as pixel values: reading, cropping to a square, and back.

Legend: B batch, H W pixels, S side of a square image. Pixel values are floats in [-1, 1].
"""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from unified.files.atomic import whole

# what Pillow raises on a file that is missing, foreign, cut off, damaged, or large enough to fill the memory
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_image(source: str | Path | bytes, name: str) -> Image.Image:
    """RGB picture of a file, or of the bytes of one.

    Raises ValueError that begins with `name` where it cannot be read to its end.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return image.convert("RGB")
    except UNREADABLE as error:
        raise _unreadable(name, error) from None


def write_image(image: Image.Image, path: Path) -> None:
    """Write a picture in the format that the name ends with, whole or not at all; folders are made."""
    with whole(path) as partial:
        image.save(partial, picture_format(path))


def picture_format(path: Path) -> str:
    """Pillow's name of the format that `path` ends with; ValueError for one that Pillow cannot write."""
    name = Image.registered_extensions().get(path.suffix.lower(), "")
    if name not in Image.SAVE:
        raise ValueError(f"{path} has no picture format Pillow writes; end it with .png")
    return name


def _unreadable(name: str, error: Exception) -> ValueError:
    reason = "no format that Pillow knows" if isinstance(error, UnidentifiedImageError) else error
    return ValueError(f"{name} cannot be read ({reason}); give a whole PNG, JPEG or WebP file, or take it out")


def square(image: Image.Image, side: int) -> Image.Image:
    """RGB picture of `side` x `side`: scaled to cover the square and cropped to its centre.

    Raises ValueError naming the file of a picture that Pillow has opened and cannot read to its end.
    """
    try:
        image = image.convert("RGB")
    except UNREADABLE as error:
        file = str(image.filename) if isinstance(image, ImageFile.ImageFile) else ""
        raise _unreadable(file or "the picture", error) from None
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
