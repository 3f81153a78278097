"""Images as files, PIL images, uint8 arrays and pixel values: the one opener, squares, and back.

Every door opens images here: encoding, training of the tokenizer, chat, harness plug-ins and evaluation. What an image
shows is `image_modes`' matter, whether its file is whole `image_integrity`'s. `OPENER_VERSION` is recorded with codes.

Legend: B batch, H W pixels, S side of a square image. Pixel values are floats in [-1, 1].
"""

import errno
import io
import os
import stat
import struct
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, JpegImagePlugin, UnidentifiedImageError
from torch import Tensor

from unified.files.atomic import atomic_path
from unified.files.image_integrity import CONCLUSIVE, check_whole, inner_pngs
from unified.files.image_modes import BACKGROUND, UNREADABLE, show_as_rgb

Fit = Literal["crop", "pad", "refuse"]
OPENER_VERSION = 3  # 1 was Pillow's convert("RGB"); 2 left out gAMA and passed over what a TIFF says of its grey
MAX_PIXELS = 2**26  # of an image in memory: 256 MiB as RGB, at Pillow's 4 bytes a pixel
MAX_JPEG_PIXELS = 2**29  # of a baseline JPEG, which is decoded at 1/2, 1/4 or 1/8 of its sides
MAX_FILE_BYTES = 2**30  # of a file: 2**26 pixels of 4 channels of 32 bits
DRAFT_PIXELS = 2**21  # JPEGs up to here are decoded whole, larger ones at a fraction that leaves
DRAFT_RATIO = 3  # times the side that is wanted
SIDE_RULE = "one side in pixels, as pictures are square"  # of settings
# what Pillow only names, hands to Ghostscript, or draws on Windows alone
_NOT_READ = frozenset(["EPS", "WMF", "BUFR", "GRIB", "HDF5", "MPEG"])


def image_suffixes() -> frozenset[str]:
    """Suffixes of the files that `read_image` reads, lower case: those of every format that Pillow decodes."""
    Image.init()
    named = Image.registered_extensions().items()
    return frozenset(suffix for suffix, kind in named if kind in {*Image.OPEN, "MPO"} - _NOT_READ)


def read_file(path: str | Path) -> bytes:
    """Bytes of an image file; raises OSError where it cannot be read, is huge, or a pipe, which has no end."""
    found = os.stat(path)
    if stat.S_ISFIFO(found.st_mode) or stat.S_ISCHR(found.st_mode) or stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EINVAL, "not a file but a pipe, a device or a socket", str(path))
    if found.st_size > MAX_FILE_BYTES:
        raise OSError(errno.EFBIG, f"{found.st_size} bytes, more than {MAX_FILE_BYTES}", str(path))
    return Path(path).read_bytes()


def read_named(path: str | Path, name: str) -> bytes:
    """As `read_file`; raises ValueError starting with `name`."""
    try:
        return read_file(path)
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise _unreadable(name, error) from None


def read_image(source: str | Path | bytes, name: str, side: int | None = None, exact: bool = False) -> Image.Image:
    """RGB image of a file, or of its bytes, as viewers show it: its first frame, upright, on white, in sRGB.

    Args:
        side: the square it is for. A JPEG of more than `DRAFT_PIXELS` is then decoded at 1/2, 1/4 or 1/8 of its sides,
            at least `DRAFT_RATIO` x `side` (libjpeg's scaling).
        exact: whether every pixel is decoded, as scores need it; else a JPEG of more than `MAX_PIXELS` is scaled.

    Raises ValueError starting with `name` if it cannot be read completely, or has too many pixels.
    """
    try:
        data = source if isinstance(source, bytes) else read_file(source)
        with _checked(data, name, exact) as image:
            if isinstance(image, JpegImagePlugin.JpegImageFile) and not exact:
                _draft(image, side)
            return show_as_rgb(image)
    except _Refused as error:
        raise ValueError(str(error)) from None
    except UNREADABLE as error:
        raise _unreadable(name, error) from None


def inspect_image(source: str | Path | bytes, name: str, exact: bool = False) -> tuple[int, int]:
    """The size (width, height) of an image that `read_image` reads, which raises as it does.

    PNG and JPEG are not decoded: their checksums and marks say whether they are whole.
    """
    try:
        data = source if isinstance(source, bytes) else read_file(source)
        with _checked(data, name, exact) as image:
            if image.format not in CONCLUSIVE:
                image.load()
            return image.size
    except _Refused as error:
        raise ValueError(str(error)) from None
    except UNREADABLE as error:
        raise _unreadable(name, error) from None


def image_kind(data: bytes, name: str) -> tuple[str, tuple[int, int]]:
    """Pillow's name of an image's format, and its size (width, height), of however many pixels; nothing is decoded.

    Raises ValueError starting with `name` for what is no image, and for an icon whose pictures are too large.
    """
    try:
        image = _identify(data, name, exact=False)
    except _Refused as error:
        raise ValueError(str(error)) from None
    except UNREADABLE as error:
        raise _unreadable(name, error) from None
    return image.format or "", image.size


def _checked(data: bytes, name: str, exact: bool) -> ImageFile.ImageFile:
    """An image whose pixels are not decoded yet."""
    image = _identify(data, name, exact)
    _check_size(image, name, exact)
    check_whole(data, image.format or "")
    return image


class _Refused(Exception):
    """A whole image that is not read."""


def _identify(data: bytes, name: str, exact: bool) -> ImageFile.ImageFile:
    """`Image.open` without formats that are not read, JPEG's further frames, and Pillow's limit on pixels."""
    Image.init()
    for kind in Image.ID:
        opener, accept = Image.OPEN[kind]
        try:
            answer = accept(data[:16]) if accept is not None else True
            if kind in _NOT_READ or not answer or isinstance(answer, str):  # str: a codec that is not installed
                continue
            for inner in inner_pngs(data, kind):  # Pillow decodes an icon when it opens it
                _check_size(inner, name, exact)
            file = io.BytesIO(data)
            return JpegImagePlugin.JpegImageFile(file) if kind == "JPEG" else opener(file, "")
        except (SyntaxError, LookupError, TypeError, struct.error):  # as Image.open: of another format
            continue
    raise UnidentifiedImageError


def _check_size(image: Image.Image, name: str, exact: bool) -> None:
    """Refuse an image that would not fit into memory."""
    width, height = image.size
    scaled = image.format == "JPEG" and not exact and not image.info.get("progressive")
    most = MAX_JPEG_PIXELS if scaled else MAX_PIXELS
    if width * height > most:
        raise _Refused(
            f"{name} is {width} x {height}, more than {most / 1e6:.0f} million pixels; scale it down, or take it out"
        )


def _draft(image: JpegImagePlugin.JpegImageFile, side: int | None) -> None:
    """Have a large JPEG decoded at a fraction of its sides."""
    width, height = image.size
    if side is not None and width * height > DRAFT_PIXELS:
        image.draft(None, (side * DRAFT_RATIO, side * DRAFT_RATIO))
    elif width * height > MAX_PIXELS:
        fraction = next(part for part in (2, 4, 8) if (width // part) * (height // part) <= MAX_PIXELS)
        image.draft(None, (width // fraction, height // fraction))


def to_rgb(image: Image.Image) -> Image.Image:
    """A PIL image as `read_image` gives one of a file: upright, on white, in sRGB.

    Raises ValueError naming the file of an image that Pillow has opened but cannot read completely.
    """
    try:
        return show_as_rgb(image)
    except UNREADABLE as error:
        file = str(image.filename) if isinstance(image, ImageFile.ImageFile) else ""
        raise _unreadable(file or "the image", error) from None


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


def _unreadable(name: str, error: BaseException) -> ValueError:
    reason = "unknown image format" if isinstance(error, UnidentifiedImageError) else error
    if isinstance(error, OSError) and error.strerror:
        reason = error.strerror
    return ValueError(f"{name} cannot be read ({reason}); give a complete PNG, JPEG or WebP file, or remove it")


def to_square(image: Image.Image, side: int, fit: Fit = "crop", name: str = "the image") -> Image.Image:
    """RGB image of `side` x `side`, resized (Lanczos) to cover the square and center-cropped, or to lie within it.

    Args:
        fit: "crop" to its centre, "pad" with white, or "refuse" what is not square.

    Raises ValueError as `to_rgb` does, and for an image that is refused.
    """
    image = to_rgb(image)
    if image.size == (side, side):
        return image
    check_fit(image.size, fit, name)
    if fit == "pad" and image.width != image.height:
        return _padded(image, side)
    return ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)


def check_fit(size: tuple[int, int], fit: Fit, name: str) -> None:
    """Raise ValueError for an image of `size` (width, height) that `fit` refuses."""
    if fit == "refuse" and size[0] != size[1]:
        raise ValueError(f"{name} is {size[0]} x {size[1]}, not square; give --fit crop or pad, or crop it")


def _padded(image: Image.Image, side: int) -> Image.Image:
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    square = Image.new("RGB", (side, side), BACKGROUND)
    resized = image.resize((width, height), Image.Resampling.LANCZOS)
    square.paste(resized, ((side - width) // 2, (side - height) // 2))
    return square


def cropped_share(size: tuple[int, int]) -> float:
    """Share of an image's pixels that its centered square leaves out, in [0, 1)."""
    return 1 - min(size) / max(size)


def image_to_uint8(image: Image.Image, side: int, fit: Fit = "crop", name: str = "the image") -> Tensor:
    """`to_square(image, side, fit, name)` as uint8 (S, S, 3)."""
    return torch.from_numpy(np.array(to_square(image, side, fit, name)))


def to_pixel_values(images: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W); the permutation makes it channels_last for free."""
    return images.permute(0, 3, 1, 2).float().div_(127.5).sub_(1)


def to_uint8(pixel_values: Tensor) -> Tensor:
    """Inverse of `to_pixel_values`, rounding and clipping: (B, 3, H, W) -> (B, H, W, 3)."""
    return pixel_values.detach().float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def image_to_pixels(image: Image.Image, side: int, fit: Fit = "crop") -> Tensor:
    """Pixel values (3, S, S) of `to_square(image, side, fit)`."""
    return to_pixel_values(image_to_uint8(image, side, fit)[None])[0]


def pixels_to_image(pixel_values: Tensor) -> Image.Image:
    """Image of `pixel_values` (3, H, W), clipped and rounded; the inverse of `image_to_pixels`."""
    return Image.fromarray(to_uint8(pixel_values[None])[0].cpu().numpy())
