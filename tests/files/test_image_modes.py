"""What a picture shows, by kind: turn, transparency, depth, colour space, frames; sRGB of 8 bits stays to the bit."""

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from unified.files.images import image_to_uint8, read_image, to_rgb

UPRIGHT = Image.new("RGB", (20, 40), (255, 0, 0))
UPRIGHT.paste((0, 0, 255), (0, 20, 20, 40))
UPRIGHT.paste((0, 255, 0), (0, 0, 10, 10))
STORED = {  # how a camera lays it down for every value of EXIF's orientation
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
RAMP = np.linspace(0, 255, 16).round().astype(np.uint8)


def data(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def pixels(source: bytes | Image.Image) -> np.ndarray:
    image = read_image(source, "x") if isinstance(source, bytes) else to_rgb(source)
    assert image.mode == "RGB" and not image.info
    return np.asarray(image, int)


def near(found: np.ndarray, wanted: Any, most: float = 1) -> bool:
    return bool(np.abs(found - np.asarray(wanted, int)).max() <= most)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_turn_is_undone_once(orientation: int, form: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = data(UPRIGHT.transpose(STORED[orientation]), form, exif=exif)
    shown = read_image(stored, "x")
    assert shown.size == UPRIGHT.size and np.abs(np.asarray(shown, int) - np.asarray(UPRIGHT, int)).mean() < 8
    assert to_rgb(shown).size == to_rgb(Image.open(io.BytesIO(stored))).size == UPRIGHT.size


def test_a_turn_in_xmp_counts_and_a_broken_note_turns_nothing() -> None:
    note = PngImagePlugin.PngInfo()
    note.add_itxt("XML:com.adobe.xmp", '<rdf:Description tiff:Orientation="6"/>')
    assert read_image(data(UPRIGHT.transpose(STORED[6]), pnginfo=note), "x").size == UPRIGHT.size
    for broken in (b"Exif\0\0MM", b"Exif\0\0nonsense", b"\0" * 40):
        assert read_image(data(UPRIGHT, "JPEG", exif=broken), "x").size == UPRIGHT.size


def logo(mode: str, beneath: int = 0) -> Image.Image:
    """A black square on nothing, `beneath` which lies a value that no viewer shows."""
    if mode in ("L", "RGB"):  # a key: the value 7 is transparent
        image = Image.new("L", (8, 8), 7)
        image.paste(0, (2, 2, 6, 6))
        return image.convert(mode)
    image = Image.new("RGBA", (8, 8), (beneath, 80, 90, 0))
    image.paste((0, 0, 0, 255), (2, 2, 6, 6))
    return image.convert("LA") if mode in ("LA", "La") else image


def transparent() -> dict[str, bytes | Image.Image]:
    """Kinds of transparency, all of them one picture."""
    palette = logo("L").point(lambda value: 1 if value else 0).convert("P")
    palette.putpalette([0, 0, 0, 0, 255, 0] + [9] * 762)
    deep = Image.fromarray(np.asarray(logo("L"), np.uint16) * 300)
    greyscale = Image.new("1", (8, 8), 1)
    greyscale.paste(0, (2, 2, 6, 6))
    return {
        "RGBA": data(logo("RGBA")),
        "RGBA, red beneath": data(logo("RGBA", 255)),
        "LA": data(logo("LA")),
        "WebP": data(logo("RGBA", 255), "WEBP", lossless=True, exact=True),
        "AVIF": data(logo("RGBA", 255), "AVIF", quality=100),
        "TIFF": data(logo("RGBA", 255), "TIFF"),
        "palette": data(palette, transparency=1),
        "palette, bytes": data(palette, transparency=b"\xff\x00"),
        "GIF": data(palette, "GIF", transparency=1),
        "grey key": data(logo("L"), transparency=7),
        "RGB key": data(logo("RGB"), transparency=(7, 7, 7)),
        "1-bit key": data(greyscale, transparency=1),
        "16-bit key": data(deep, transparency=2100),
        "PA of Python": logo("RGBA", 255).convert("P").convert("PA"),
        "premultiplied": logo("RGBA", 255).convert("RGBa"),
        "premultiplied grey": logo("LA").convert("La"),
    }


@pytest.mark.parametrize("kind", transparent())
def test_what_is_transparent_shows_white(kind: str) -> None:
    wanted = np.full((8, 8, 3), 255)
    wanted[2:6, 2:6] = 0
    assert near(pixels(transparent()[kind]), wanted, 90 if kind == "AVIF" else 2)  # AVIF: at half the colours


def test_half_transparent_pixels_are_mixed() -> None:
    half = Image.new("RGBA", (4, 4), (255, 0, 0, 128))
    for source in (data(half), half, half.convert("RGBa"), data(half, "WEBP", lossless=True)):
        assert near(pixels(source), (255, 127, 127))


@pytest.mark.parametrize(
    "top, mode", [(65535, "I;16"), (65535, "I"), (255, "I"), (1.0, "F"), (255, "F"), (65535, "F")]
)
def test_deep_grey_is_scaled(top: float, mode: str) -> None:
    dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
    ramp = Image.fromarray(np.tile((np.linspace(0, 1, 16) * top).astype(dtype), (16, 1)))
    assert ramp.mode == mode
    for source in (ramp, data(ramp, "TIFF")):
        assert near(pixels(source)[3, :, 1], RAMP)


def test_deep_files_are_scaled() -> None:
    deep = Image.fromarray(np.tile(np.linspace(0, 65535, 16).astype(np.uint16), (16, 1)))
    for source in (data(deep), data(deep.convert("I"), "PPM"), data(deep, "JPEG2000")):
        assert near(pixels(source)[3, :, 1], RAMP)


def test_values_without_a_range_are_refused() -> None:
    for value in (float("nan"), float("inf"), -3.0, 1e20):
        deep = Image.fromarray(np.full((4, 4), value, np.float32))
        with pytest.raises(ValueError, match="^row 3 cannot be read .*(finite|scale)"):
            read_image(data(deep, "TIFF"), "row 3")
        with pytest.raises(ValueError, match="^the image cannot be read .*(finite|scale)"):
            to_rgb(deep)


def profile(primaries: str) -> bytes:
    """The ICC profile of a matrix RGB space, written by hand: D50 columns, one gamma."""
    columns = {
        "sRGB": ((0.4360, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7139)),
        "Adobe": ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)),
    }[primaries]
    fixed = [b"".join(int(v * 65536).to_bytes(4, "big", signed=True) for v in column) for column in columns]
    gamma = b"curv" + bytes(4) + (1).to_bytes(4, "big") + int(2.2 * 256).to_bytes(2, "big") + bytes(2)
    white = b"XYZ " + bytes(4) + b"".join(int(v * 65536).to_bytes(4, "big") for v in (0.9642, 1.0, 0.8249))
    name = b"desc" + bytes(4) + (2).to_bytes(4, "big") + b"x\0" + bytes(78)
    curves = {b"rTRC": gamma, b"gTRC": gamma, b"bTRC": gamma}
    tags = {b"desc": name, b"wtpt": white, **curves}
    tags |= {tag: b"XYZ " + bytes(4) + xyz for tag, xyz in zip((b"rXYZ", b"gXYZ", b"bXYZ"), fixed, strict=True)}
    table, body, start = len(tags).to_bytes(4, "big"), b"", 132 + 12 * len(tags)
    for tag, value in tags.items():
        value += bytes(-len(value) % 4)
        table += tag + (start + len(body)).to_bytes(4, "big") + len(value).to_bytes(4, "big")
        body += value
    head = bytearray(128)
    head[8:12], head[12:24], head[36:40] = b"\x02\x40\0\0", b"mntrRGB XYZ ", b"acsp"
    head[68:80] = white[8:]
    head[0:4] = (start + len(body)).to_bytes(4, "big")
    return bytes(head) + table + body


def test_a_wide_profile_is_followed_in_every_mode() -> None:
    wide, green = profile("Adobe"), Image.new("RGB", (4, 4), (100, 200, 100))
    opaque, palette = green.convert("RGBA"), green.convert("P", palette=Image.Palette.ADAPTIVE)
    shown = pixels(data(green, icc_profile=wide))
    assert shown[0, 0, 0] < 60 and shown[0, 0, 1] > 195  # more saturated than its numbers are as sRGB
    for other in (opaque, palette):
        assert near(pixels(data(other, icc_profile=wide)), shown)
    assert near(pixels(data(green, "TIFF", icc_profile=wide)), shown)
    grey = Image.new("L", (4, 4), 100)
    assert near(pixels(data(grey, icc_profile=wide)), 100, 3)
    clear = Image.new("RGBA", (4, 4), (100, 200, 100, 0))
    assert (pixels(data(clear, icc_profile=wide)) == 255).all()


def test_srgb_whoever_wrote_it_and_what_is_no_profile_stay_to_the_bit() -> None:
    noise = Image.merge("RGB", [Image.effect_noise((32, 32), 90) for _ in range(3)])
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for icc in (own, b"nonsense", own[:200], lab):
        assert (pixels(data(noise, icc_profile=icc)) == np.asarray(noise)).all()
        assert (pixels(data(noise.convert("L"), icc_profile=icc)) == np.asarray(noise.convert("L"))[..., None]).all()


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM"])
def test_square_8_bit_pictures_are_what_they_were_to_the_bit(form: str) -> None:
    noise = Image.merge("RGB", [Image.effect_noise((96, 96), 90) for _ in range(3)])
    stored = data(noise, form)
    before = Image.open(io.BytesIO(stored)).convert("RGB")
    assert (pixels(stored) == np.asarray(before)).all()
    small = before.resize((16, 16), Image.Resampling.LANCZOS)
    assert (image_to_uint8(read_image(stored, "x", side=16), 16).numpy() == np.asarray(small)).all()


def test_cmyk_is_read_with_and_without_a_profile() -> None:
    ink = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for source in (data(ink, "JPEG", quality=100), data(ink, "TIFF"), ink):  # JPEG: stored inverted, as Adobe does
        red, green, blue = pixels(source)[8, 8]
        assert red > 220 and green < 60 and blue < 60
    assert near(pixels(Image.new("CMYK", (4, 4), 0)), 255)


@pytest.mark.parametrize("mode", ["LAB", "YCbCr", "HSV", "RGBX"])
def test_other_colour_spaces_are_read(mode: str) -> None:
    colour = Image.new("RGB", (4, 4), (200, 60, 50))
    if mode == "LAB":
        lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
        stored = ImageCms.applyTransform(colour, lab)
    else:
        stored = colour.convert(mode)
    assert near(pixels(stored), (200, 60, 50), 4)


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF", "MPO", "AVIF"])
def test_the_first_frame_is_read(form: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    assert near(pixels(data(frames[0], form, save_all=True, append_images=frames[1:])), (255, 0, 0), 3)


def png(depth: int, color: int, row: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of 8 x 8 whose rows are all the same, with chunks before its pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = (b"IHDR", struct.pack(">IIBBBBB", 8, 8, depth, color, 0, 0, 0))
    body = (head, *chunks, (b"IDAT", zlib.compress((b"\0" + row) * 8)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*one) for one in body)


def words(*values: int) -> bytes:
    return b"".join(struct.pack(">H", value) for value in values)


def test_16_bits_a_channel_are_scaled_with_their_alpha_and_key() -> None:
    grey, half = 0x8080, 0x8000
    for color, row, shown in (
        (0, words(grey) * 8, (128, 128, 128)),
        (2, words(grey, 0xFFFF, 0) * 8, (128, 255, 0)),
        (4, words(0, half) * 8, (127, 127, 127)),
        (6, words(0, 0, 0, half) * 8, (127, 127, 127)),
    ):
        assert near(pixels(png(16, color, row)), shown)
    assert near(pixels(png(16, 2, words(9, 300, 9) * 8, (b"tRNS", words(9, 300, 9)))), 255)


@pytest.mark.parametrize(("depth", "row"), [(1, b"\xff"), (2, b"\x55\x55"), (4, b"\x55" * 4), (8, b"\x05" * 8)])
def test_a_transparent_grey_of_few_bits_shows_white(depth: int, row: bytes) -> None:
    key = {1: 1, 2: 1, 4: 5, 8: 5}[depth]
    assert near(pixels(png(depth, 0, row, (b"tRNS", words(key)))), 255)
    assert near(pixels(png(depth, 0, row, (b"tRNS", words(0)))), {1: 255, 2: 85, 4: 85, 8: 5}[depth])


def test_a_pngs_gamma_is_followed_where_nothing_better_is_said() -> None:
    def gamma(value: int) -> tuple[bytes, bytes]:
        return b"gAMA", struct.pack(">I", value)

    row = bytes([128, 0, 255]) * 8
    assert near(pixels(png(8, 2, row, gamma(100_000))), (186, 0, 255))  # linear light
    for chunks in ([gamma(45_455)], [gamma(44_000)], [gamma(0)], [gamma(100_000), (b"sRGB", b"\0")]):
        assert near(pixels(png(8, 2, row, *chunks)), (128, 0, 255), 0)


def test_an_image_without_pixels_is_refused() -> None:
    for mode in ("RGB", "RGBA", "F"):
        with pytest.raises(ValueError, match="^the image cannot be read .it is 0 x 5 and has no pixels"):
            to_rgb(Image.new(mode, (0, 5)))


@pytest.mark.parametrize("size", [(1, 1), (1, 999), (999, 1)])
def test_a_line_of_pixels_is_a_picture(size: tuple[int, int]) -> None:
    line = Image.new("RGB", size, (9, 200, 9))
    assert (image_to_uint8(read_image(data(line), "x", side=16), 16).numpy() == (9, 200, 9)).all()
