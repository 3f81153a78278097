"""Images as files, PIL images, uint8 arrays and pixel values: reading, cropping to a square, and back.

Legend: B batch, H W pixels, S side of a square image. Pixel values are floats in [-1, 1].
"""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from unified.files.atomic import atomic_path

# raised by Pillow for files that are missing, of unknown format, truncated, damaged, or a decompression bomb
UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def read_image(source: str | Path | bytes, name: str) -> Image.Image:
    """RGB image of a file, or of its bytes.

    Raises ValueError starting with `name` if it cannot be read completely.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            return image.convert("RGB")
    except UNREADABLE as error:
        raise _unreadable(name, error) from None


def write_image(image: Image.Image, path: Path) -> None:
    """Write an image atomically in the format of the path's suffix; parent folders are created."""
    with atomic_path(path) as partial:
        image.save(partial, image_format(path))


def image_format(path: Path) -> str:
    """Pillow's name of the format of the path's suffix; ValueError for one that Pillow cannot write."""
    name = Image.registered_extensions().get(path.suffix.lower(), "")
    if name not in Image.SAVE:
        raise ValueError(f"{path} has no image format that Pillow writes; use the suffix .png")
    return name


def _unreadable(name: str, error: Exception) -> ValueError:
    reason = "unknown image format" if isinstance(error, UnidentifiedImageError) else error
    return ValueError(f"{name} cannot be read ({reason}); give a complete PNG, JPEG or WebP file, or remove it")


def center_crop(image: Image.Image, side: int) -> Image.Image:
    """RGB image of `side` x `side`: resized to cover the square and center-cropped.

    Raises ValueError naming the file of an image that Pillow has opened but cannot read completely.
    """
    try:
        image = image.convert("RGB")
    except UNREADABLE as error:
        file = str(image.filename) if isinstance(image, ImageFile.ImageFile) else ""
        raise _unreadable(file or "the image", error) from None
    return image if image.size == (side, side) else ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)


def image_to_uint8(image: Image.Image, side: int) -> Tensor:
    """`center_crop(image, side)` as uint8 (S, S, 3)."""
    return torch.from_numpy(np.array(center_crop(image, side)))


def to_pixel_values(images: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W); the permutation makes it channels_last for free."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_uint8(pixel_values: Tensor) -> Tensor:
    """Inverse of `to_pixel_values`, rounding and clipping: (B, 3, H, W) -> (B, H, W, 3)."""
    return pixel_values.detach().float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def image_to_pixels(image: Image.Image, side: int) -> Tensor:
    """Pixel values (3, S, S) of `center_crop(image, side)`."""
    return to_pixel_values(image_to_uint8(image, side)[None])[0]


def pixels_to_image(pixel_values: Tensor) -> Image.Image:
    """Image of `pixel_values` (3, H, W), clipped and rounded; the inverse of `image_to_pixels`."""
    return Image.fromarray(to_uint8(pixel_values[None])[0].cpu().numpy())
