"""Pictures of rows before they are read: a path, `{bytes, path}`, or base64, each with its name for messages."""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

from unified.files.images import read_file
from unified.models.messages import shorten

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://")


@dataclass(frozen=True)
class ImageRef:
    """An image that is not read yet: its name for error messages, and its bytes or file."""

    name: str
    data: bytes | None = None
    file: Path | None = None

    def read(self) -> bytes:
        """Bytes of the image file; raises OSError when it cannot be read."""
        return self.data if self.data is not None else read_file(Path(self.file or self.name))


def image_ref(image: Any, folder: Path, where: str) -> ImageRef:
    """A picture of the record `where`, whose paths start in `folder`; raises ValueError for what is none."""
    if isinstance(image, bytes):
        return ImageRef(where, data=image)
    if isinstance(image, str) and image.startswith("data:"):
        return ImageRef(where, data=_decoded(image))
    if isinstance(image, str):
        return ImageRef(image, file=_file(image, folder))
    inner, path = (image.get("bytes"), image.get("path")) if isinstance(image, Mapping) else (None, None)
    if isinstance(inner, bytes):
        return ImageRef(path if isinstance(path, str) and path else where, data=inner)
    if inner is None and isinstance(path, str):
        return ImageRef(path, file=_file(path, folder))
    raise ValueError(f"image {shorten(image)}; give a path (JSONL) or {{bytes, path}} (parquet)")


def _decoded(url: str) -> bytes:
    head, _, body = url.partition(",")
    if not head.endswith(";base64"):
        raise ValueError(f"image {shorten(url)} is no base64; give the picture's path")
    try:
        return base64.b64decode("".join(body.split()), validate=True)  # lines, as MIME has them
    except (binascii.Error, ValueError) as error:
        raise ValueError(f"image {shorten(url)} is no base64 ({error}); write it whole") from None


def _file(name: str, folder: Path) -> Path:
    scheme = _SCHEME.match(name)
    if scheme and scheme[1].lower() != "file":
        raise ValueError(f"image {shorten(name)} is on the web; download it and give its path")
    path = unquote(urlparse(name).path) if scheme else name
    if not path.strip() or "\0" in path:
        raise ValueError(f"image {shorten(name)} names no file; give the picture's path")
    return folder / path
