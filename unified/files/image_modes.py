"""What a picture shows, as 8-bit sRGB: its turn, transparency, depth and colour space, as viewers take them.

* EXIF's orientation (or XMP's) is applied; a note that cannot be read turns nothing.
* Transparency is laid on white, half-transparent pixels mixed: palettes, keys (tRNS), alpha and premultiplied alpha.
* A PNG's gamma (gAMA) is followed where it has neither a profile nor says that it is sRGB, as browsers do.
* More than 8 bits are scaled: 16-bit grey from 0 to 65535, and a TIFF's fewer or signed bits to their largest value;
  32-bit integers and floats, which state no range, from 0 to the first of 1 (floats alone), 255, 65535 and 2^31 - 1
  that holds the largest value, of floats within `OVERSHOOT`. A TIFF whose 0 is white is inverted.
* An ICC profile is followed to sRGB (relative colorimetric, black point compensated, as Adobe's programs do). One that
  is broken or of another colour space than the picture's is passed over, as browsers do, and so is one that moves
  no colour by more than `SAME_COLOR`: such pictures are sRGB, and stay to the bit.
"""

import functools
import io
import struct
import zlib
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, TiffImagePlugin

BACKGROUND = (255, 255, 255)  # what transparent pixels and padding show
SAME_COLOR = 2  # of 255: sRGB profiles of different makers differ by 1
OVERSHOOT = 0.01  # of the range: what resampling leaves below and above it
SRGB_GAMMA = 0.45455  # that PNG's files of sRGB state
SAME_GAMMA = 0.05  # libpng's threshold

# raised by Pillow for files that are of unknown format, truncated or damaged
UNREADABLE = (
    *(OSError, EOFError, SyntaxError, ValueError, TypeError, AttributeError, ArithmeticError, LookupError),
    *(RuntimeError, Warning, struct.error, zlib.error, Image.DecompressionBombError),
)
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_DEEP = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")
_UNSIGNED, _SIGNED = 1, 2  # TIFF's sample formats
_KEYED = ("1", "L", "RGB", "P")  # modes in which Pillow gives one value or entry as transparent
_BAND_ROWS = 256  # rows scaled at once, so that 64 million floats do not stand in memory three times


def show_as_rgb(image: Image.Image) -> Image.Image:
    """RGB image of what a viewer shows, without notes (`info`) that would be followed twice.

    Raises ValueError for values that have no range, and whatever Pillow raises for pixels it cannot decode.
    """
    if 0 in image.size:
        raise ValueError(f"it is {image.width} x {image.height} and has no pixels")
    steps, (stated, inverted) = _steps_of_grey(image), _tiff_range(image)
    image.load()  # TIFF's own turn is applied while loading
    if steps and "transparency" in image.info:
        image.info["transparency"] *= steps
    image = _upright(image)
    profile, gamma = image.info.get("icc_profile"), _gamma(image)
    if image.mode in _DEEP:
        image = _to_8_bit(image, stated, inverted)
    colors, alpha = _split_alpha(image)
    rgb = _to_srgb(colors, profile)
    if gamma is not None:
        rgb = rgb.point([round(255 * (value / 255) ** (SRGB_GAMMA / gamma)) for value in range(256)] * 3)
    if alpha is not None:
        shown = Image.new("RGB", rgb.size, BACKGROUND)
        shown.paste(rgb, mask=alpha)
    else:
        shown = rgb.copy() if rgb is image else rgb
    shown.info = {}
    return shown


def _steps_of_grey(image: Image.Image) -> int:
    """What a PNG's grey of 2 or 4 bits is multiplied with, as its transparent value is not; 0 for others."""
    tile = image.tile[0] if isinstance(image, PngImagePlugin.PngImageFile) and image.tile else None
    return {"L;2": 85, "L;4": 17}.get(str(tile[3]), 0) if tile else 0


def _tiff_range(image: Image.Image) -> tuple[int | None, bool]:
    """The value of white that a TIFF of at most 16 bits states, None for others; and whether its 0 is white."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None, False
    tags = image.tag_v2
    (bits, *_), (form, *_) = (
        tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,)),
        tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,)),
    )
    top = 2 ** (bits - (form == _SIGNED)) - 1 if bits <= 16 and form in (_UNSIGNED, _SIGNED) else None
    return top, tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0


def _gamma(image: Image.Image) -> float | None:
    """The gamma that a PNG's pixels have; None for sRGB's, within `SAME_GAMMA`, and where something else says it."""
    gamma = image.info.get("gamma")
    if not isinstance(gamma, float) or gamma <= 0 or "srgb" in image.info or image.info.get("icc_profile"):
        return None
    return gamma if abs(gamma / SRGB_GAMMA - 1) > SAME_GAMMA else None


def _upright(image: Image.Image) -> Image.Image:
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except UNREADABLE:
        return image
    turn = _TURNS.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _to_8_bit(image: Image.Image, stated: int | None, inverted: bool) -> Image.Image:
    """L of a deep grey image, whose white has the value that is `stated`; LA where it has a transparent value."""
    values = np.asarray(image)
    top, scaled = _full_scale(values, image.mode, stated), np.empty(values.shape, np.uint8)
    for start in range(0, len(values), _BAND_ROWS):
        band = values[start : start + _BAND_ROWS].astype(np.float64)
        scaled[start : start + _BAND_ROWS] = np.rint(band.clip(0, top) * (255 / top))
    scaled = 255 - scaled if inverted else scaled
    grey, key = Image.fromarray(scaled), image.info.get("transparency")
    if key is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))))


def _full_scale(values: np.ndarray, mode: str, stated: int | None) -> float:
    """The value that white has, or black where 0 is white."""
    if mode.startswith("I;16"):
        return stated or 65535
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError("it holds values that are no finite numbers")
    more = 1 + OVERSHOOT if mode == "F" else 1
    known = (stated,) if stated else (1, 255, 65535, 2**31 - 1)[mode != "F" :]
    tops = [top for top in known if high <= more * top]
    between = mode == "F" and any(more * top < high <= 2 * top for top in (1, 255))  # else nearly black of the next
    if not tops or between or low < -OVERSHOOT * tops[0]:
        raise ValueError(f"its values go from {low:g} to {high:g}; scale them to 0 to {1 if mode == 'F' else 65535}")
    return tops[0]


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Colours (L, RGB, or the mode as it is) and opacity (L; None: all is opaque)."""
    if image.mode in ("La", "RGBa"):
        image = image.convert(image.mode.upper())
    elif image.mode == "PA" or (image.mode in _KEYED and image.has_transparency_data):
        image = _with_8_bit_key(image).convert("LA" if image.mode in ("1", "L") else "RGBA")
    if image.mode not in ("LA", "RGBA"):
        return (image.convert("RGB") if image.mode == "P" else image), None
    return image.convert(image.mode[:-1]), image.getchannel("A")


def _with_8_bit_key(image: Image.Image) -> Image.Image:
    """Of 16 bits a channel Pillow keeps the upper 8 of the pixels, but all of the transparent colour."""
    key = image.info.get("transparency")
    if image.mode == "RGB" and isinstance(key, tuple) and max(key) > 255:
        image = image.copy()
        image.info["transparency"] = tuple(value >> 8 for value in key)
    return image


def _to_srgb(image: Image.Image, profile: Any) -> Image.Image:
    """RGB of an image without alpha."""
    plain = image if image.mode == "RGB" else None
    if isinstance(profile, bytes) and profile:
        if image.mode not in ("L", "RGB", "CMYK"):
            image = plain = image.convert("RGB")
        mode, transform = _transform(profile, image.mode)
        if transform is not None:
            source = image if image.mode == mode else image.convert(mode)
            return ImageCms.applyTransform(source, transform)  # type: ignore[return-value]
    return plain or image.convert("RGB")


@functools.lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> tuple[str, ImageCms.ImageCmsTransform | None]:
    """What brings pixels to sRGB, and their mode before it; None where nothing is to be done."""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = source.profile.xcolor_space.strip()
        mode = "RGB" if mode == "L" and space == "RGB" else mode
        transform = ImageCms.buildTransform(
            source,
            ImageCms.createProfile("sRGB"),
            mode,
            "RGB",
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (OSError, ImageCms.PyCMSError):
        return mode, None
    return mode, None if mode != "CMYK" and _is_srgb(transform, mode) else transform


def _is_srgb(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform leaves 17 x 17 x 17 colours, or all greys, where they are."""
    steps = np.linspace(0, 255, 17).round().astype(np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(17, -1, 3)
    colors = Image.fromarray(grid if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
    moved = np.asarray(ImageCms.applyTransform(colors, transform), int)
    return bool(np.abs(moved - np.asarray(colors.convert("RGB"), int)).max() <= SAME_COLOR)
