"""Images and pixel values: center crop, inverses, and unreadable files."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from unified.files.images import image_to_pixels, pixels_to_image, read_image, to_pixel_values, to_square, to_uint8


def test_uint8_and_pixel_values_are_inverses():
    images = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert torch.equal(to_uint8(to_pixel_values(images)), images)
    assert to_pixel_values(images).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(16, 16), (64, 32), (10, 40)])
def test_pixels_are_a_centred_square(size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (10, 200, 30))
    pixel_values = image_to_pixels(image, 16)
    assert pixel_values.shape == (3, 16, 16) and pixel_values.abs().max() <= 1
    assert pixels_to_image(pixel_values).getpixel((8, 8)) == (10, 200, 30)


def cut_off(data: bytes) -> bytes:
    return data[:-40]


def with_a_broken_chunk(data: bytes) -> bytes:
    return data.replace(b"IDAT", b"\xff\xfe\x00\x01")  # Pillow raises SyntaxError


def with_a_short_header(data: bytes) -> bytes:
    return data[:8] + b"\x00\x00\x00\x01" + data[12:]  # Pillow raises ValueError


def foreign(data: bytes) -> bytes:
    return b"not an image"


@pytest.mark.parametrize("harm", [cut_off, with_a_broken_chunk, with_a_short_header, foreign])
def test_a_broken_image_is_named_with_rule_and_remedy(tmp_path: Path, harm) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((32, 32), 60).save(path)
    assert read_image(path, "a.png").mode == read_image(path.read_bytes(), "a").mode == "RGB"
    path.write_bytes(harm(path.read_bytes()))
    for source in (path, path.read_bytes()):
        with pytest.raises(ValueError, match="^row 3 cannot be read .*; give a complete PNG, JPEG or WebP") as error:
            read_image(source, "row 3")
        assert "BytesIO" not in str(error.value)


def test_an_image_that_breaks_when_it_is_used_is_named_too(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((32, 32), 60).save(path)
    path.write_bytes(cut_off(path.read_bytes()))
    with pytest.raises(ValueError, match=f"^{path} cannot be read"), Image.open(path) as image:
        to_square(image, 16)
    with pytest.raises(ValueError, match="^the image cannot be read"), path.open("rb") as file:
        to_square(Image.open(file), 16)
