"""Images in requests and answers: data URIs, public URLs where they are allowed, and files in memory.

Legend: L codes of an image.
"""

import base64
import hashlib
import io
import re
from collections import OrderedDict
from urllib.parse import unquote

from PIL import Image
from torch import Tensor

from unified.files.images import UNREADABLE, read_image
from unified.serving.errors import ApiError, unsupported
from unified.serving.fetching import fetch
from unified.serving.settings import ServerSettings

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
DATA = re.compile(r"\s*data:(?:[\w.+-]+/[\w.+-]+)?(?:;[\w.+-]+=[^;,]*)*;base64,", re.IGNORECASE)
URL_SAFE = str.maketrans("-_", "+/")  # RFC 4648's other alphabet
NO_URL = "neither a data URI in base64 (data:image/png;base64,...) nor an http(s) URL"
REMEMBERED = 1024  # images whose codes are kept


def read_url(url: str, where: str, settings: ServerSettings) -> Image.Image:
    """RGB image of a data URI or, where it is allowed, of a public http(s) URL.

    Raises ApiError that begins with `where` for whatever is no such image.
    """
    head = DATA.match(url)
    if head:
        try:
            data = base64.b64decode("".join(unquote(url[head.end() :]).split()).translate(URL_SAFE), validate=True)
        except ValueError:  # binascii's, and that of other characters than ASCII
            raise ApiError(400, f"{where}: not valid base64", where, "invalid_image_url") from None
    elif url.lstrip()[:5].lower() in ("http:", "https"):
        if not settings.allow_urls:
            raise unsupported(where, "URLs are not fetched here; send a data URI (data:image/png;base64,...)")
        data = fetch(url.strip(), where, settings.max_body_bytes)
    else:
        raise ApiError(400, f"{where}: {NO_URL}", where, "invalid_image_url")
    return read_bytes(data, where, settings.max_image_pixels)


def read_bytes(data: bytes, where: str, max_pixels: int) -> Image.Image:
    """RGB image of a file's bytes; ApiError for what is none, or has more pixels."""
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
        if width * height > max_pixels:
            raise ApiError(
                413, f"{where}: {width}x{height} pixels are more than {max_pixels}", where, "image_too_large"
            )
        return read_image(data, where)
    except UNREADABLE:
        raise ApiError(400, f"{where}: no complete PNG, JPEG, WebP or GIF image", where, "invalid_image") from None


def image_bytes(image: Image.Image, output_format: str, quality: int | None = None) -> bytes:
    """The image as a file: png, jpeg or webp; `quality` 0 to 100 of the latter two."""
    file = io.BytesIO()
    options = {} if quality is None or output_format == "png" else {"quality": max(quality, 1)}
    image.save(file, output_format.upper(), **options)
    return file.getvalue()


def base64_of(image: Image.Image, output_format: str = "png", quality: int | None = None) -> str:
    """The image's file in base64."""
    return base64.b64encode(image_bytes(image, output_format, quality)).decode("ascii")


def data_uri(image: Image.Image, output_format: str = "png", quality: int | None = None) -> str:
    """The image's file as a data URI."""
    return f"data:image/{output_format};base64,{base64_of(image, output_format, quality)}"


class KnownImages:
    """Codes of the images that this server has drawn lately: a client that sends one back means these very codes."""

    def __init__(self) -> None:
        self.codes: OrderedDict[bytes, Tensor] = OrderedDict()

    def add(self, image: Image.Image, codes: Tensor) -> None:
        """Remember an image's codes (L,)."""
        self.codes[digest(image)] = codes
        if len(self.codes) > REMEMBERED:
            self.codes.popitem(last=False)

    def find(self, image: Image.Image) -> Tensor | None:
        """Codes (L,) of an image that was drawn here, with the same pixels."""
        return self.codes.get(digest(image))


def digest(image: Image.Image) -> bytes:
    """SHA-256 of an image's pixels."""
    return hashlib.sha256(b"%dx%d" % image.size + image.convert("RGB").tobytes()).digest()
