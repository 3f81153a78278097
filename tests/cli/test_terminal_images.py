"""Images in a terminal: what is written is read back by decoders of each protocol."""

import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from unified.cli.terminal_images import blocks, fitted, iterm2, kitty, render, sixel
from unified.hardware.console import ImageProtocol

RED_BLUE = Image.fromarray(np.array([[[255, 0, 0]] * 5] * 4 + [[[0, 0, 255]] * 5] * 3, dtype=np.uint8))


def noise(width: int = 90, height: int = 70) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def opened(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


@pytest.mark.parametrize("image", [RED_BLUE, noise()], ids=["one chunk", "several"])
def test_kitty_gets_a_png_in_chunks_of_which_the_last_says_so(image: Image.Image) -> None:
    chunks = re.findall("\x1b_G([^;]*);([^\x1b]*)\x1b\\\\", kitty(image, 16))
    assert chunks[0][0].startswith("a=T,f=100,r=16,q=2,m=")
    assert [head[-3:] for head, _ in chunks] == ["m=1"] * (len(chunks) - 1) + ["m=0"]
    assert all(len(data) <= 4096 for _, data in chunks) and (len(chunks) > 1) == (image is not RED_BLUE)
    assert opened("".join(data for _, data in chunks)).tobytes() == image.tobytes()


def test_iterm2_gets_a_png_and_its_size() -> None:
    found = re.fullmatch(
        "\x1b]1337;File=inline=1;size=(\\d+);height=9;preserveAspectRatio=1:(.*)\x07", iterm2(noise(), 9)
    )
    assert found and len(base64.b64decode(found[2])) == int(found[1])
    assert opened(found[2]).tobytes() == noise().tobytes()


def read_sixel(text: str) -> np.ndarray:
    """Pixels (H, W, 3) of a sixel sequence, 0 to 100 a channel; -1 where nothing was drawn."""
    found = re.fullmatch('\x1bP0;1;0q"1;1;(\\d+);(\\d+)(.*)\x1b\\\\', text)
    assert found
    pixels, colours = np.full((int(found[2]), int(found[1]), 3), -1), {}
    top = left = colour = 0
    for word in re.findall(r"#\d+(?:;2;\d+;\d+;\d+)?|(?:!\d+)?[?-~]|\$|-", found[3]):
        if word == "$":
            left = 0
        elif word == "-":
            top, left = top + 6, 0
        elif word[0] == "#" and ";" in word:
            colours[int(word[1:].split(";")[0])] = [int(level) for level in word.split(";")[2:]]
        elif word[0] == "#":
            colour = int(word[1:])
        else:
            count = int(word[1:-1] or 1) if word[0] == "!" else 1
            for bit in range(6):
                if (ord(word[-1]) - 63) >> bit & 1:
                    pixels[top + bit, left : left + count] = colours[colour]
            left += count
    return pixels


def test_sixels_draw_every_pixel_in_its_colour() -> None:
    exact = np.array(RED_BLUE).astype(int) * 100 // 255
    assert (read_sixel(sixel(RED_BLUE)) == exact).all()
    drawn, wanted = read_sixel(sixel(noise())), np.array(noise()) / 2.55
    assert drawn.min() >= 0 and np.abs(drawn - wanted).mean() < 10  # 6,300 colours in 256


def read_blocks(text: str) -> list[list[list[int]]]:
    cells = r"\x1b\[38;([\d;]+);48;([\d;]+)m\u2580"
    lines = []
    for line in text.split("\n"):
        assert re.fullmatch(f"(?:{cells})+\x1b\\[0m", line)
        pairs = re.findall(cells, line)
        lines += [[[int(n) for n in pair[half].split(";")] for pair in pairs] for half in (0, 1)]
    return lines


def test_blocks_hold_two_pixels_a_character() -> None:
    drawn = read_blocks(blocks(RED_BLUE, true_colour=True))
    assert len(drawn) == 8  # the last line of seven is doubled
    assert [[cell[1:] for cell in line] for line in drawn[:7]] == np.array(RED_BLUE).tolist()
    coarse = read_blocks(blocks(RED_BLUE, true_colour=False))
    assert coarse[0][0] == [5, 196] and coarse[6][0] == [5, 21]  # of xterm's 256: pure red, pure blue


@pytest.mark.parametrize("protocol", ["kitty", "iterm2", "sixel", "blocks"])
def test_every_image_fits_the_terminal(protocol: ImageProtocol, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("LINES", "12")
    monkeypatch.setenv("COLORTERM", "truecolor")
    for image in (RED_BLUE, noise(), noise(300, 20), noise(20, 300), noise(1, 1)):
        shown = render(image, protocol)
        if protocol == "blocks":
            drawn = read_blocks(shown)
            assert len(drawn) <= 20 and len(drawn[0]) <= 39
        elif protocol == "sixel":
            height, width, _ = read_sixel(shown).shape
            assert height <= 10 * 20 and width <= 39 * 10
        else:
            assert ("r=10," if protocol == "kitty" else "height=10;") in shown
    assert fitted(noise(), 900, 900).size == (900, 700) and fitted(noise(), 9, 900).size == (9, 7)
