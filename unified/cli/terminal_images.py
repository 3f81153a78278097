"""Images in a terminal: kitty's and iTerm2's protocols, sixel, and blocks of colour.

Sources: https://sw.kovidgoyal.net/kitty/graphics-protocol, https://iterm2.com/documentation-images.html, and DEC's
VT330/VT340 Programmer Reference Manual, chapter 14, for sixel.

Legend: H W pixels.
"""

import base64
import io
import itertools
import os
import shutil

import numpy as np
from PIL import Image

from unified.hardware.console import ImageProtocol, cell_size, has_true_colour

ROWS = 16  # lines of text that an image takes
CHUNK = 4096  # kitty's most, of base64, in one escape sequence
LEVELS = 5  # of the 6 x 6 x 6 colours of terminals without 24-bit colour
UPPER_HALF = "\N{UPPER HALF BLOCK}"


def render(image: Image.Image, protocol: ImageProtocol) -> str:
    """What makes the terminal show `image` (RGB), `ROWS` lines high or as high as it can."""
    size = shutil.get_terminal_size()
    rows = max(1, min(ROWS, size.lines - 2))
    if protocol == "kitty":
        return kitty(image, rows)
    if protocol == "iterm2":
        return iterm2(image, rows)
    width, height = cell_size()
    if protocol == "sixel":
        return sixel(fitted(image, (size.columns - 1) * width, rows * height))
    assert protocol == "blocks", f"protocol {protocol}"
    return blocks(fitted(image, size.columns - 1, 2 * rows), has_true_colour(os.environ))


def fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    """`image` as large as fits into `width` x `height`; enlarged pixels stay squares."""
    scale = min(width / image.width, height / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BOX)


def as_png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def kitty(image: Image.Image, rows: int) -> str:
    """Transmit and display (a=T) a PNG (f=100) in `rows` lines, without an answer (q=2)."""
    data = base64.b64encode(as_png(image)).decode()
    chunks = [data[start : start + CHUNK] for start in range(0, len(data), CHUNK)]
    heads = [f"a=T,f=100,r={rows},q=2,"] + [""] * (len(chunks) - 1)
    more = [1] * (len(chunks) - 1) + [0]
    return "".join(
        f"\x1b_G{head}m={rest};{chunk}\x1b\\" for head, rest, chunk in zip(heads, more, chunks, strict=True)
    )


def iterm2(image: Image.Image, rows: int) -> str:
    data = as_png(image)
    settings = f"inline=1;size={len(data)};height={rows};preserveAspectRatio=1"
    return f"\x1b]1337;File={settings}:{base64.b64encode(data).decode()}\x07"


def sixel(image: Image.Image) -> str:
    """Bands of six lines; in each, one run of sixels for every colour of the band."""
    palette = image.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    pixels = np.array(palette)
    colours = np.array(palette.getpalette()).reshape(-1, 3)[: int(pixels.max()) + 1] * 100 // 255
    registers = "".join(f"#{number};2;{r};{g};{b}" for number, (r, g, b) in enumerate(colours.tolist()))
    bands = [_sixel_band(pixels[top : top + 6]) for top in range(0, len(pixels), 6)]
    return f'\x1bP0;1;0q"1;1;{image.width};{image.height}{registers}{"-".join(bands)}\x1b\\'


def _sixel_band(lines: np.ndarray) -> str:
    """Up to six lines of palette indices."""
    bits = 1 << np.arange(len(lines))[:, None]
    runs = []
    for colour in np.unique(lines).tolist():
        sixels = ((lines == colour) * bits).sum(axis=0).tolist()
        repeated = [(value, len(list(group))) for value, group in itertools.groupby(sixels)]
        runs.append(f"#{colour}" + "".join(f"!{count}{chr(63 + value)}" for value, count in repeated))
    return "$".join(runs)


def blocks(image: Image.Image, true_colour: bool) -> str:
    """Two pixels a character: the upper one is its colour, the lower one its background's."""
    pixels = np.array(image.convert("RGB"))
    if len(pixels) % 2:
        pixels = np.concatenate([pixels, pixels[-1:]])
    lines = []
    for above, below in zip(pixels[::2].tolist(), pixels[1::2].tolist(), strict=True):
        cells = [
            f"\x1b[38;{_colour(top, true_colour)};48;{_colour(low, true_colour)}m{UPPER_HALF}"
            for top, low in zip(above, below, strict=True)
        ]
        lines.append("".join(cells) + "\x1b[0m")
    return "\n".join(lines)


def _colour(rgb: list[int], true_colour: bool) -> str:
    if true_colour:
        return f"2;{rgb[0]};{rgb[1]};{rgb[2]}"
    red, green, blue = (round(value / 255 * LEVELS) for value in rgb)
    return f"5;{16 + 36 * red + 6 * green + blue}"
