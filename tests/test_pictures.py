"""Pictures and pixel values: a square of the middle, and inverses."""

import pytest
import torch
from PIL import Image

from unified.pictures import image_to_pixels, pixels_to_image, to_pixel_values, to_uint8


def test_uint8_and_pixel_values_are_inverses():
    images = torch.arange(256, dtype=torch.uint8).repeat(3).reshape(1, 16, 16, 3)
    assert torch.equal(to_uint8(to_pixel_values(images)), images)
    assert to_pixel_values(images).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("size", [(16, 16), (64, 32), (10, 40)])
def test_pixels_are_a_centred_square(size: tuple[int, int]) -> None:
    picture = Image.new("RGB", size, (10, 200, 30))
    pixel_values = image_to_pixels(picture, 16)
    assert pixel_values.shape == (3, 16, 16) and pixel_values.abs().max() <= 1
    assert pixels_to_image(pixel_values).getpixel((8, 8)) == (10, 200, 30)
