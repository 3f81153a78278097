"""Images in requests and answers: data URIs, public URLs where they are allowed, and files in memory.

Legend: L codes of an image.
"""

import base64
import hashlib
import io
from collections import OrderedDict

from PIL import Image
from torch import Tensor

from unified.files.image_sources import decode_data_uri, scheme_of
from unified.files.images import image_kind, read_image
from unified.serving.errors import ApiError, unsupported
from unified.serving.fetching import fetch
from unified.serving.settings import ServerSettings

FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
NO_URL = "neither a data URI in base64 (data:image/png;base64,...) nor an http(s) URL"
REMEMBERED = 1024  # images whose codes are kept


def read_url(url: str, where: str, settings: ServerSettings) -> Image.Image:
    """RGB image of a data URI or, where it is allowed, of a public http(s) URL.

    Raises ApiError that begins with `where` for whatever is no such image.
    """
    scheme = scheme_of(url)
    if scheme == "data":
        try:
            data = decode_data_uri(url)
        except ValueError:
            raise ApiError(400, f"{where}: not valid base64", where, "invalid_image_url") from None
    elif scheme in ("http", "https"):
        if not settings.allow_urls:
            raise unsupported(where, "URLs are not fetched here; send a data URI (data:image/png;base64,...)")
        data = fetch(url.strip(), where, settings.max_body_bytes)
    else:
        raise ApiError(400, f"{where}: {NO_URL}", where, "invalid_image_url")
    return read_bytes(data, where, settings.max_image_pixels)


def read_bytes(data: bytes, where: str, max_pixels: int) -> Image.Image:
    """RGB image of a file's bytes; ApiError for what is none, or has more pixels."""
    try:
        kind, (width, height) = image_kind(data, where)
        if kind in FORMATS and width * height > max_pixels:
            raise ApiError(
                413, f"{where}: {width}x{height} pixels are more than {max_pixels}", where, "image_too_large"
            )
        if kind in FORMATS:
            return read_image(data, where)
    except ValueError:
        pass
    raise ApiError(400, f"{where}: no complete PNG, JPEG, WebP or GIF image", where, "invalid_image")


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
