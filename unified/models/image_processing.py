"""Pictures as chats and callers give them (PIL images, arrays, paths, local URLs, base64), and as pixel values.

Legend: N images, H W pixels, S side of a square image.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from unified.files.image_sources import as_data_uri, image_source
from unified.files.images import Fit, image_to_pixels, read_image, to_rgb, to_square
from unified.models.configuration import UnifiedConfig
from unified.models.messages import Message, shorten

SOURCES = ("image", "path", "url", "base64", "image_url")  # keys of a part that hold its picture
FITS = ("crop", "pad")  # of a processor: what a model is shown is not refused
FORMS = "a PIL image, an array (H, W, 3) or (3, H, W) of 0 to 255, a path, a data: or file: URL, base64, or bytes"


def open_picture(source: Any, name: str = "the image", side: int | None = None) -> Image.Image:
    """RGB image of any of `FORMS`. Raises ValueError that begins with `name` for others, and as `read_image`."""
    if isinstance(source, Image.Image):
        return to_rgb(source)
    if isinstance(source, np.ndarray | torch.Tensor):
        return _of_array(np.asarray(source), name)
    if isinstance(source, bytes):
        return read_image(source, name, side)
    if isinstance(source, os.PathLike):
        return read_image(Path(source), f"{name} {source}", side)
    if not isinstance(source, str):
        raise ValueError(f"{name} is {shorten(source)}; give {FORMS}")
    try:
        found = image_source(source)
    except ValueError as error:
        raise ValueError(f"{name} {shorten(source)} {error}") from None
    if isinstance(found, bytes):
        return read_image(found, name, side)
    if not os.path.exists(found):  # Path's raises for a name that is too long
        raise ValueError(f"{name} {shorten(source)} is not a file; give {FORMS}")
    return read_image(found, f"{name} {found}", side)


def _of_array(values: np.ndarray, name: str) -> Image.Image:
    """An image of an array of 0 to 255 whose channels come first or last."""
    if values.ndim == 3 and values.shape[0] == 3 and values.shape[-1] != 3:
        values = values.transpose(1, 2, 0)
    if values.ndim != 3 or 0 in values.shape or values.shape[-1] != 3 or values.dtype != np.uint8:
        raise ValueError(f"{name} is an array {values.shape} of {values.dtype}; give {FORMS}, as uint8")
    return Image.fromarray(np.ascontiguousarray(values))


def picture_list(images: Any) -> list[Any]:
    """Sources of several pictures: one, a list, an array of several, or HF's list of lists, a list for each text."""
    if isinstance(images, np.ndarray | torch.Tensor) and images.ndim == 4:
        return list(images)
    if not isinstance(images, list | tuple):
        return [images]
    return [one for some in images for one in (some if isinstance(some, list | tuple) else [some])]


def pictures_of_rows(images: Any) -> list[int] | None:
    """Numbers of pictures of each text, where they are given as a list for each; None where they are not."""
    if not isinstance(images, list | tuple) or not any(isinstance(some, list | tuple) for some in images):
        return None
    return [len(some) if isinstance(some, list | tuple) else 1 for some in images]


def take_pictures(chats: Sequence[Sequence[Message]]) -> tuple[list[list[Message]], list[Any]]:
    """Chats whose image parts are `{"type": "image"}` alone, and the sources that these parts had, in order.

    Raises ValueError for two sources in a part, for parts of which only some have one, and for the assistant's.
    """
    found: list[Any] = []
    bare = 0
    plain = []
    for chat in chats:
        plain.append(list(chat))
        for place, message in enumerate(chat):
            content = message.get("content") if isinstance(message, Mapping) else None
            if not isinstance(content, list | tuple):
                continue
            drawn = message.get("role") == "assistant"
            parts = [_plain_part(part, drawn, found) for part in content]
            if not drawn:
                bare += sum(part == {"type": "image"} for part in parts)
            plain[-1][place] = {**message, "content": parts}
    if found and len(found) != bare:
        raise ValueError(
            f"{len(found)} of {bare} image parts hold their picture; give it in each, or all as images=, in order"
        )
    return plain, found


def _plain_part(part: Any, is_output_part: bool, found: list[Any]) -> Any:
    """An image part without its source, which joins `found`; other parts as they are."""
    if not isinstance(part, Mapping) or part.get("type") not in ("image", "image_url"):
        return part
    given = {key: part[key] for key in SOURCES if part.get(key) is not None}
    if part["type"] == "image_url" and not given:
        raise ValueError(
            f'part {shorten(part)} has no picture; write {{"type": "image_url", "image_url": {{"url": …}}}}'
        )
    if len(given) > 1:
        raise ValueError(f"part {shorten(part)} holds {len(given)} pictures; keep one of {', '.join(given)}")
    if given and is_output_part:
        raise ValueError(
            f"part {shorten(part)} of the assistant is an output image, which is written in codes; leave the part as "
            '{"type": "image"} and give its codes as codes=, from model.model.vq_model.encode'
        )
    for key, source in given.items():
        source = source.get("url") if key == "image_url" and isinstance(source, Mapping) else source
        found.append(as_data_uri(source) if key == "base64" and isinstance(source, str) else source)
    return {"type": "image", **{key: value for key, value in part.items() if key not in ("type", *SOURCES)}}


class UnifiedImageProcessor(BaseImageProcessor):
    """Pictures to pixel values (N, 3, S, S) in [-1, 1]: upright, RGB, made square by `fit`, resized to `size`.

    `fit` is how the pictures became square that the model was trained on: "crop" to the centre, or "pad" with white.
    Raises ValueError for a `size` that is not square, and for another `fit`.
    """

    model_input_names = ["pixel_values"]

    def __init__(self, size: Mapping[str, int] | int = 256, fit: Fit = "crop", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        sides = {size} if isinstance(size, int) else set(size.values())
        if len(sides) != 1:
            raise ValueError(f"size {size} is not square; give the image tokenizer's side twice, or as one number")
        if fit not in FITS:
            raise ValueError(f"fit {fit!r} of a processor; choose from {', '.join(FITS)}")
        (self.side,), self.fit = sides, fit
        self.size = {"height": self.side, "width": self.side}

    def preprocess(self, images: Any, return_tensors: Any = "pt", **kwargs: Any) -> BatchFeature:
        """`pixel_values` of one picture or several, in any of `FORMS`. Raises ValueError as `open_picture`."""
        if kwargs:
            raise ValueError(
                f"{', '.join(kwargs)}: pictures are resized to {self.side} and scaled alone; leave it out"
            )
        sources = picture_list(images)
        if not sources:
            raise ValueError(f"no picture is given; give {FORMS}")
        pictures = [open_picture(one, f"image {number}", self.side) for number, one in enumerate(sources, start=1)]
        pixels = torch.stack([image_to_pixels(picture, self.side, self.fit) for picture in pictures])
        return BatchFeature({"pixel_values": pixels.numpy() if return_tensors == "np" else pixels})

    def to_square(self, image: Image.Image) -> Image.Image:
        """The square (S x S) of a PIL image that `preprocess` makes pixel values of."""
        return to_square(image, self.side, self.fit)

    def to_dict(self) -> dict[str, Any]:
        """As HF's, without what follows from `size`."""
        return {key: value for key, value in super().to_dict().items() if key != "side"}


AutoImageProcessor.register(UnifiedConfig, image_processor_classes={"pil": UnifiedImageProcessor})
