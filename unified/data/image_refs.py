"""Pictures of rows before they are read: a path, `{bytes, path}`, or base64, each with its name for messages."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified.files.image_sources import image_source
from unified.files.images import read_file
from unified.models.messages import shorten

LONGEST_NAME = 255  # characters of an image's name in messages


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
    if isinstance(image, str):
        return _of_text(image, folder, where)
    inner, path = (image.get("bytes"), image.get("path")) if isinstance(image, Mapping) else (None, None)
    if isinstance(inner, bytes):
        return ImageRef(_name(path) if isinstance(path, str) and path else where, data=inner)
    if inner is None and isinstance(path, str):
        return _of_text(path, folder, where)
    raise ValueError(f"image {shorten(image)}; give a path (JSONL) or {{bytes, path}} (parquet)")


def _of_text(text: str, folder: Path, where: str) -> ImageRef:
    try:
        found = image_source(text, folder)
    except ValueError as error:
        raise ValueError(f"image {shorten(text)} {error}") from None
    return ImageRef(where, data=found) if isinstance(found, bytes) else ImageRef(_name(text), file=found)


def _name(text: str) -> str:
    return text if len(text) <= LONGEST_NAME else shorten(text)
