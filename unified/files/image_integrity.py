"""Whether an image file is whole: what Pillow decodes without a word although bytes are missing.

A file whose copying broke off has its length, and zeros where its end should be. PNG has checksums, JPEG an end mark;
of WebP, AVIF, GIF and JPEG 2000, which are compressed, the end holds no `ZEROS` zeros in a row, of WebP that of its
pixels; QOI ends with a mark, and icons (ICO, ICNS) hold PNGs. What lies uncompressed (BMP, TIFF, PPM, TGA) may end in
black.
"""

import io
import re

from PIL import PngImagePlugin

CONCLUSIVE = ("PNG", "JPEG", "MPO")  # formats of which `check_whole` finds what is missing
ZEROS = 512  # bytes: a disk's sector
_COMPRESSED = ("WEBP", "AVIF", "GIF", "JPEG2000")
_PIXELS = (b"VP8 ", b"VP8L", b"ALPH", b"ANMF")  # chunks of WebP
_ICONS = ("ICO", "ICNS")
_PNG, _QOI_END = b"\x89PNG\r\n\x1a\n", bytes(7) + b"\1"
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # within a scan: no stuffed byte, no fill, no restart
_ALONE = frozenset([0x01, *range(0xD0, 0xD9)])  # JPEG markers without a length
_END = 0xD9


def check_whole(data: bytes, kind: str) -> None:
    """Check the bytes of an image file of Pillow's format `kind`.

    Raises ValueError with the reason, and SyntaxError or OSError as Pillow does for PNG.
    """
    if kind == "PNG":
        PngImagePlugin.PngImageFile(io.BytesIO(data)).verify()
    elif kind in ("JPEG", "MPO"):
        _check_jpeg(data)
    elif kind in _ICONS:
        for inner in inner_pngs(data, kind):
            inner.verify()
    elif kind == "QOI" and _QOI_END not in data[-ZEROS:]:
        raise ValueError("its end is missing")
    elif kind in _COMPRESSED and len(data) > ZEROS and not any(data[-ZEROS:]):
        zeros = len(data) - len(data.rstrip(bytes(1)))
        if kind != "WEBP" or len(data) - zeros < _end_of_webp(data):
            raise ValueError(f"its last {zeros} bytes are zeros")


def _end_of_webp(data: bytes) -> int:
    """Where the last chunk of pixels ends: behind it are notes, such as EXIF that Windows pads with zeros."""
    position, end = 12, 0
    while any(kind := data[position : position + 4]):
        size = int.from_bytes(data[position + 4 : position + 8], "little")
        if kind in _PIXELS:
            end = position + 8 + size
        position += 8 + size + size % 2  # chunks begin at even places
    return end or len(data)


def inner_pngs(data: bytes, kind: str) -> list[PngImagePlugin.PngImageFile]:
    """The PNGs in an icon, not decoded; none in other formats."""
    places = re.finditer(re.escape(_PNG), data) if kind in _ICONS else ()
    return [PngImagePlugin.PngImageFile(io.BytesIO(data[place.start() :])) for place in places]


def _check_jpeg(data: bytes) -> None:
    """Walk the segments to the end mark; what cameras append after it is theirs."""
    position = 2
    while (found := _MARKER.search(data, position)) is not None:
        marker, position = data[found.start() + 1], found.end()
        if marker == _END:
            return
        if marker not in _ALONE:
            position += int.from_bytes(data[position : position + 2], "big")
    raise ValueError("its end is missing")
