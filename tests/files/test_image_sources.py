"""A picture in a text means the same in a row, for the processor, and in a request."""

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unified.data.forms import as_row
from unified.data.image_refs import image_ref
from unified.files.image_sources import image_source
from unified.files.images import read_image
from unified.models.image_processing import open_picture, take_pictures
from unified.serving.errors import ApiError
from unified.serving.pictures import read_bytes, read_url
from unified.serving.settings import ServerSettings

SHOWN = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8))


def coded(form: str, **options: object) -> str:
    file = io.BytesIO()
    SHOWN.save(file, form, **options)
    return base64.b64encode(file.getvalue()).decode()


PNG = coded("PNG")
URIS = {  # of one picture
    "plain": f"data:image/png;base64,{PNG}",
    "capitals": f"DATA:image/PNG;Base64,{PNG}",
    "no type": f"data:;base64,{PNG}",
    "a parameter": f"data:image/png;charset=utf-8;base64,{PNG}",
    "lines": f" data:image/png;base64, {PNG[:9]}\r\n {PNG[9:]}\n",
    "percent": f"data:image/png;base64,{PNG.replace('=', '%3D').replace('+', '%2B')}",
    "for URLs": f"data:image/png;base64,{PNG.replace('+', '-').replace('/', '_')}",
}


def row(text: str, folder: Path) -> Image.Image:
    ref = image_ref(text, folder, "rows.jsonl:1")
    return read_image(ref.read(), ref.name)


def request(text: str, folder: Path) -> Image.Image:
    return read_url(text, "messages.0", ServerSettings())


def chat(text: str, folder: Path) -> Image.Image:
    found = image_source(text, folder)
    return open_picture(text if isinstance(found, bytes) else str(found))


def inside(key: str, text: str, folder: Path) -> list[Image.Image]:
    """The picture of a part's `key`, in a row and in a chat."""
    messages = [{"role": "user", "content": [{"type": "image", key: text}]}]
    (picture,), (source,) = as_row({"messages": messages})["images"], take_pictures([messages])[1]
    return [row(picture, folder), open_picture(source)]


@pytest.mark.parametrize("name", URIS)
def test_a_data_uri_is_read_at_every_door(name: str, tmp_path: Path) -> None:
    shown = [door(URIS[name], tmp_path) for door in (row, chat, request)]
    shown += [picture for key in ("image", "url", "base64") for picture in inside(key, URIS[name], tmp_path)]
    assert all((np.asarray(picture) == np.asarray(SHOWN)).all() for picture in shown)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "QOI"])
def test_base64_alone_is_a_picture_where_files_are_read(form: str, tmp_path: Path) -> None:
    text = coded(form, **({"quality": 95} if form in ("JPEG", "WEBP", "AVIF") else {}))
    whole = np.asarray(read_image(base64.b64decode(text), "x"))
    for told in (text, text[:7] + "\n" + text[7:], text.replace("+", "-").replace("/", "_")):
        pictures = [row(told, tmp_path), open_picture(told), *inside("image", told, tmp_path)]
        assert all((np.asarray(picture) == whole).all() for picture in pictures)
    with pytest.raises(ApiError, match="neither a data URI"):
        request(text, tmp_path)


def test_names_of_files_stay_names(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    names = ["cat.png", "cat", "a b/cat.png", "iVBORw0KGgo.png", "abcdefghijklmnopqrstuvwxyz0123456789", "C:\\a.png"]
    for name in [*names, "a:b.png", "100%25.png"]:
        SHOWN.save(tmp_path / name, "PNG")
        urls = [f"FILE://{(tmp_path / name).as_uri()[7:]}", f"file:{(tmp_path / name).as_uri()[7:]}"]
        urls.append((tmp_path / name).as_uri().replace("file://", "file://localhost"))
        for text in (name, str(tmp_path / name), *urls):
            pictures = [row(text, tmp_path), chat(text, tmp_path)]
            assert all((np.asarray(picture) == np.asarray(SHOWN)).all() for picture in pictures)
            with pytest.raises(ApiError, match="neither a data URI"):
                request(text, tmp_path)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "names no file"),
        ("a\0.png", "names no file"),
        ("https://a/b.png", "is on the web"),
        (" GS://a/b.png", "is on the web"),
        ("file://elsewhere/a.png", "is on the machine elsewhere"),
        ("data:image/png,abc", "is no base64 .data:image/png;base64"),
        ("data:image/png;base64,@", "is no base64"),
        (PNG[:-5], "is no base64"),
        ("é" * 5000, "is no base64"),
        (200_000 * ".", "is no base64"),
    ],
)
def test_what_is_none_is_said_in_one_short_line(text: str, says: str, tmp_path: Path) -> None:
    doors: tuple[Callable[[str, Path], object], ...] = (row, lambda text, _: open_picture(text))
    for door in doors:
        with pytest.raises(ValueError, match=rf"^[^\n]*{says}[^\n]*$") as error:
            door(text, tmp_path)
        assert len(str(error.value)) < 250
    if "on the web" not in says:
        with pytest.raises(ApiError):
            request(text, tmp_path)


def test_a_long_name_is_short_in_messages(tmp_path: Path) -> None:
    assert len(image_ref("a" * 300 + ".png", tmp_path, "x").name) < 100
    assert len(image_ref({"bytes": b"x", "path": "a" * 3000}, tmp_path, "x").name) < 100


def test_a_picture_of_more_pixels_than_pillow_opens_is_too_large_for_a_server() -> None:
    file = io.BytesIO()
    Image.new("1", (20_000, 10_000)).save(file, "PNG")
    for picture in (file.getvalue(), file.getvalue()[:3000]):  # Pillow's limit is 179 million
        with pytest.raises(ApiError, match="20000x10000 pixels are more than 16777216") as error:
            read_bytes(picture, "messages.0", ServerSettings().max_image_pixels)
        assert error.value.status == 413
    for other in (b"", b"no picture", base64.b64decode(coded("TIFF"))):
        with pytest.raises(ApiError, match="no complete PNG, JPEG, WebP or GIF"):
            read_bytes(other, "messages.0", 10**9)
