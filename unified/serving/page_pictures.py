"""Pictures as HTML: with what they show in words, at every scale as they sharpen, and as files to keep.

Everything of a request is escaped; pictures are data URIs, so that nothing of them is written to disk.
"""

import base64
import html
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from unified.serving.pictures import data_uri, read_bytes
from unified.serving.settings import ServerSettings

PREVIEW = 768  # most pixels of a side


class Html(str):
    """Text that is HTML, unlike what people and models write."""


@dataclass(frozen=True)
class Frame:
    """A picture as far as it is: after `scale` (from 0) of `scales`; whole after the last."""

    image: Image.Image
    scale: int
    scales: int

    @property
    def whole(self) -> bool:
        """Whether nothing is to come."""
        return self.scale == self.scales - 1

    @cached_property
    def uri(self) -> str:
        """The picture's file, made once: a conversation is shown again with every word."""
        return data_uri(self.image) if self.whole else data_uri(self.image, "webp", 80)


def read_file(path: str, settings: ServerSettings) -> Image.Image:
    """RGB image of an uploaded file; ApiError for what the API refuses as well."""
    return read_bytes(Path(path).read_bytes(), Path(path).name, settings.max_image_pixels)


def img(uri: str, alt: str, whole: bool = True) -> Html:
    """An image element."""
    state = "" if whole else ' class="unfinished" aria-busy="true"'
    return Html(f'<img src="{uri}" alt="{html.escape(alt)}"{state}>')


def preview_of(picture: Image.Image, name: str) -> Html:
    """A picture that was shown to the model, no larger than the page needs it."""
    small = picture.copy()
    small.thumbnail((PREVIEW, PREVIEW))
    return img(data_uri(small), name)


def frame_html(frame: Frame, alt: str) -> Html:
    """A picture in a conversation; unfinished ones say at which scale they are."""
    if frame.whole:
        return img(frame.uri, alt)
    return img(frame.uri, f"{alt}, still being drawn: scale {frame.scale + 1}", False)


def png_with_settings(image: Image.Image, settings: Mapping[str, object]) -> bytes:
    """The image as PNG whose text chunks say how it was made, so that it can be drawn again."""
    info, file = PngInfo(), io.BytesIO()
    for name, value in settings.items():
        info.add_text(name, str(value))
    image.save(file, "PNG", pnginfo=info)
    return file.getvalue()


def file_name(prompt: str, seed: int) -> str:
    """The prompt's words and the seed, as a file's name."""
    words = re.findall(r"\w+", prompt.lower())[:8]
    return f"{'-'.join(words) or 'picture'}-{seed}.png"


def figure(frame: Frame | None, prompt: str, seed: int, settings: Mapping[str, object]) -> str:
    """A picture of the gallery; whole ones can be kept, and drawn again by their seed."""
    if frame is None:
        waiting = '<div class="waiting" role="img" aria-label="not begun yet"></div>'
        return f"<figure>{waiting}<figcaption><span>seed {seed}</span></figcaption></figure>"
    if not frame.whole:
        caption = f"seed {seed}, scale {frame.scale + 1} of {frame.scales}"
        return f"<figure>{frame_html(frame, prompt)}<figcaption><span>{caption}</span></figcaption></figure>"
    data = base64.b64encode(png_with_settings(frame.image, {"prompt": prompt, "seed": seed, **settings})).decode()
    uri, name = f"data:image/png;base64,{data}", html.escape(file_name(prompt, seed))
    return (
        f"<figure>{img(uri, f'{prompt}, seed {seed}')}<figcaption><span>seed {seed}</span>"
        f'<a href="{uri}" download="{name}" aria-label="Download, seed {seed}">Download</a>'
        f'<button type="button" data-seed="{seed}" aria-label="Use this seed again: {seed}">'
        "Use this seed again</button>"
        "</figcaption></figure>"
    )
