"""Grey of more than 8 bits in a TIFF: bits, sign and photometric interpretation say what white is."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from unified.files.images import read_image, to_rgb

RAMP = np.linspace(0, 1, 16)
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


def packed(values: np.ndarray, bits: int, form: int, order: str) -> bytes:
    """The ramp in whole numbers of so many bits, or in floats."""
    if bits == 12:
        return int("".join(f"{value:012b}" for value in values), 2).to_bytes(len(values) * 12 // 8, "big")
    return values.astype(f"{order}{ {UNSIGNED: 'u', SIGNED: 'i', FLOAT: 'f'}[form] }{bits // 8}").tobytes()


def tiff(values: np.ndarray, bits: int, form: int = UNSIGNED, white: int = 1, order: str = "<") -> bytes:
    """One line of pixels; `white` is the photometric interpretation: 0 is WhiteIsZero."""
    row = packed(values, bits, form, order)
    tags = {256: len(values), 257: 1, 258: bits, 259: 1, 262: white, 273: 8, 277: 1, 278: 1, 279: len(row), 339: form}
    entries = b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    start = 8 + len(row)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", start)
    return head + row + struct.pack(f"{order}H", len(tags)) + entries + bytes(4)


# bits, form and white's value, and in which orders of bytes Pillow reads black at 0, and white at 0
KINDS = [
    (8, UNSIGNED, 255, "<>", "<>"),
    (12, UNSIGNED, 4095, "<", ""),
    (16, UNSIGNED, 65535, "<>", "<"),
    (16, SIGNED, 32767, "<>", ""),
    (32, FLOAT, 1.0, "<>", "<>"),
]
CASES = [
    (bits, form, top, order, white)
    for bits, form, top, *orders in KINDS
    for white in (1, 0)
    for order in orders[1 - white]
]


@pytest.mark.parametrize(("bits", "form", "top", "order", "white"), CASES)
def test_white_is_what_its_tags_say(bits: int, form: int, top: float, order: str, white: int) -> None:
    for part in (1, 0.5):  # also where the largest value is not there
        values = RAMP * top * part if form == FLOAT else (RAMP * top * part).round().astype(int)
        file = tiff(values, bits, form, white, order)
        shown = 255 * RAMP * part if white else 255 - 255 * RAMP * part
        for image in (read_image(file, "x"), to_rgb(Image.open(io.BytesIO(file)))):
            assert np.abs(np.asarray(image, float)[0, :, 1] - shown).max() <= 1


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_floats_that_resampling_moved_a_little_stay_and_others_between_two_ranges_are_refused(top: float) -> None:
    for most in (1.004, 1.01):
        (line,) = np.asarray(read_image(tiff(RAMP * top * most - 0.004 * top, 32, FLOAT), "x"), float)
        assert np.abs(line[:, 0] - (255 * (RAMP * most - 0.004)).clip(0, 255)).max() <= 1
    for most in (1.02, 1.9):
        with pytest.raises(ValueError, match="^x cannot be read .its values go from 0 to .*; scale them to 0 to 1"):
            read_image(tiff(RAMP * top * most, 32, FLOAT), "x")
