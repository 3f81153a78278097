"""Damage that Pillow decodes without a word, and pictures too large for the memory."""

import io
import os
import resource
import struct
import subprocess
import sys
import zlib
from typing import Any

import pytest
from PIL import Image

from unified.files.images import MAX_PIXELS, image_suffixes, inspect_image, read_image

FORMS: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 90},
    "WEBP": {"quality": 90},
    "AVIF": {},
    "GIF": {},
    "JPEG2000": {},
    "MPO": {},
    "QOI": {},
    "ICO": {"sizes": [(96, 96)]},
}


def data(form: str, **options: Any) -> bytes:
    noise = Image.merge("RGB", [Image.effect_noise((96, 96), 90) for _ in range(3)])
    file = io.BytesIO()
    noise.save(file, form, **options)
    return file.getvalue()


@pytest.mark.parametrize("form", FORMS)
def test_whole_files_are_read_and_cut_or_zeroed_ones_refused(form: str) -> None:
    whole = data(form, **FORMS[form])
    assert read_image(whole, "x").size == (96, 96)
    for keep in (0.5, 0.8):
        cut = whole[: int(len(whole) * keep)]
        for broken in (cut, cut.ljust(len(whole), b"\0")):
            with pytest.raises(ValueError, match="^row 3 cannot be read .*give a complete"):
                read_image(broken, "row 3")


@pytest.mark.parametrize(
    "options", [{}, {"progressive": True}, {"restart_marker_blocks": 1}, {"exif": b"\xff\xd9" * 99}]
)
def test_the_end_mark_of_a_jpeg_is_its_own(options: dict[str, Any]) -> None:
    whole = data("JPEG", **options)
    assert read_image(whole + b"what a camera appends \xff\xd8", "x").size == (96, 96)
    with pytest.raises(ValueError, match="^x cannot be read .its end is missing"):
        read_image(whole[:-2], "x")
    with pytest.raises(ValueError, match="^x cannot be read .its end is missing"):
        read_image(whole[:-300] + bytes(300), "x")


def test_empty_missing_and_foreign_files_are_named(tmp_path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "folder.png").mkdir()
    for name in ("empty.png", "folder.png", "missing.png"):
        with pytest.raises(ValueError, match=f"^{name} cannot be read"):
            read_image(tmp_path / name, name)
    (tmp_path / "a.eps").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    with pytest.raises(ValueError, match="^a.eps cannot be read .unknown image format"):
        read_image(tmp_path / "a.eps", "a.eps")  # another program would have to run
    assert {".gif", ".bmp", ".tif", ".avif", ".jfif", ".jp2"} <= image_suffixes() and ".eps" not in image_suffixes()


def one_bit(side: int) -> bytes:
    """A PNG of `side` x `side` black pixels, a few kB."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    rows = zlib.compress((b"\0" + bytes((side + 7) // 8)) * side)
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9000, 12_000, 20_000])
def test_too_many_pixels_are_refused_before_they_are_decoded(side: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=f"^row 3 is {side} x {side}, more than 67 million pixels; scale it down"):
        read_image(one_bit(side), "row 3")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50 * 1024


def test_what_is_just_small_enough_takes_less_than_400_mb() -> None:
    script = (
        "import resource, sys; from unified.files.images import image_to_pixels, read_image\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "image_to_pixels(read_image(sys.stdin.buffer.read(), 'x', 64), 64)\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    side = int(MAX_PIXELS**0.5)
    done = subprocess.run([sys.executable, "-c", script], input=one_bit(side), capture_output=True, check=True)
    assert int(done.stdout) < 400


def test_a_phones_200_megapixels_are_read_in_little_and_refused_where_all_count() -> None:
    file = io.BytesIO()
    Image.new("L", (16_320, 12_240)).save(file, "JPEG", quality=10)
    photo = file.getvalue()
    assert read_image(photo, "photo.jpg").size == (8160, 6120)
    assert read_image(photo, "photo.jpg", side=256).size == (2040, 1530)
    with pytest.raises(ValueError, match="^photo.jpg is 16320 x 12240, .*scale it down"):
        read_image(photo, "photo.jpg", exact=True)


def test_large_jpegs_are_decoded_at_a_fraction_that_shows_in_no_square() -> None:
    gradient = Image.merge(
        "RGB", [Image.linear_gradient("L").resize((2400, 1800)).rotate(turn) for turn in (0, 90, 180)]
    )
    file = io.BytesIO()
    gradient.save(file, "JPEG", quality=95)
    whole, little = read_image(file.getvalue(), "x", exact=True), read_image(file.getvalue(), "x", side=64)
    assert whole.size == read_image(file.getvalue(), "x").size == (2400, 1800) and little.size == (300, 225)
    pairs = zip(
        *(image.resize((64, 64), Image.Resampling.LANCZOS).tobytes() for image in (whole, little)), strict=True
    )
    assert max(abs(a - b) for a, b in pairs) <= 3


def test_what_is_no_file_is_refused_at_once(tmp_path, monkeypatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    os.symlink(tmp_path / "loop.png", tmp_path / "loop.png")
    (tmp_path / "huge.png").touch()
    os.truncate(tmp_path / "huge.png", 2**31)  # takes no space
    names = {"pipe.png": "a pipe", "loop.png": "symbolic links", "huge.png": "more than 1073741824", "a\0.png": "null"}
    for name, says in names.items():
        for read in (read_image, inspect_image):
            with pytest.raises(ValueError, match=f"^x cannot be read .*{says}"):
                read(tmp_path / name, "x")
    with pytest.raises(ValueError, match="a device"):
        read_image("/dev/zero", "x")


def test_a_large_picture_in_an_icon_is_refused_before_it_is_decoded() -> None:
    inner = one_bit(9000)
    entry = struct.pack("<BBBBHHII", 0, 0, 0, 0, 1, 32, len(inner), 22)
    with pytest.raises(ValueError, match="^x is 9000 x 9000, more than 67 million"):
        read_image(struct.pack("<HHH", 0, 1, 1) + entry + inner, "x")


@pytest.mark.parametrize("form", FORMS)
def test_damage_at_every_tenth_is_seen_by_both_readers(form: str) -> None:
    whole = data(form, **FORMS[form])
    for tenth in range(10):
        cut = whole[: len(whole) * tenth // 10]
        for broken in (cut, cut.ljust(len(whole), b"\0")):
            for read in (read_image, inspect_image):
                with pytest.raises(ValueError, match="^x cannot be read"):
                    read(broken, "x")


@pytest.mark.parametrize("options", [{}, {"lossless": True}, {"save_all": True}])
def test_zeros_in_a_webps_notes_are_no_damage(options: dict[str, Any]) -> None:
    noise = Image.effect_noise((96, 96), 90).convert("RGB")
    if "save_all" in options:
        options = options | {"append_images": [Image.new("RGB", (96, 96))]}
    file = io.BytesIO()
    noise.save(file, "WEBP", exif=b"Exif\0\0II*\0\x08\0\0\0" + bytes(2060), **options)
    whole = file.getvalue()
    assert not any(whole[-2000:]) and read_image(whole, "x").size == inspect_image(whole, "x") == (96, 96)
    for kept in (len(whole) - 2100 - size for size in (600, 1200)):  # zeros from within the pixels on
        if "save_all" not in options:
            with pytest.raises(ValueError, match="^x cannot be read"):
                read_image(whole[:kept].ljust(len(whole), b"\0"), "x")
