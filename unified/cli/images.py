"""Images that commands write: which ones, and under what names."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import typer

if TYPE_CHECKING:
    from PIL import Image

    from unified.models.image_sampling import ImageSampling

BATCH = 16  # images of a file of prompts that are generated together


class Wanted(NamedTuple):
    """An image to generate: its `prompt`, where that stands (for errors; empty: on the command line), its `path`."""

    prompt: str
    where: str
    path: Path


def wanted_images(prompt: str | None, file: Path | None, out: Path, count: int) -> list[Wanted]:
    """Every image, in the order of their seeds; of a file's prompts they are OUT_0001.png, OUT_0002.png, ...

    Raises ValueError unless one of PROMPT and FILE is given, and as `read_prompts`.
    """
    if (prompt is None) == (file is None):
        if prompt is None:
            raise ValueError("no prompt; give PROMPT, or --prompts FILE")
        raise ValueError("PROMPT and --prompts are both given; keep one of them")
    if file is None:
        named = [Wanted(str(prompt), "", out)]
    else:
        from unified.files.jsonl import read_prompts

        numbered = enumerate(read_prompts(file), start=1)
        named = [
            Wanted(text, f"{file}: prompt {number}: ", suffixed(out, f"{number:04d}")) for number, text in numbered
        ]
    if count == 1:
        return named
    return [one._replace(path=suffixed(one.path, str(index))) for one in named for index in range(count)]


def check_prompts(model: Any, processor: Any, wanted: Sequence[Wanted]) -> None:
    """Raise ValueError, which says where it stands, for a prompt that leaves no room for an image."""
    from unified.inference.chat import remaining_text_tokens

    for one in wanted:
        try:
            ids = processor.prompt_ids([{"role": "user", "content": one.prompt}])
            remaining_text_tokens(model, ids, images=1)
        except ValueError as error:
            raise ValueError(f"{one.where}{error}") from None


def draw_wanted(
    model: Any, processor: Any, batch: Sequence[Wanted], sampling: "ImageSampling", seed: int, by_scale: bool
) -> list[list["Image.Image"]]:
    """The images of a batch, from `seed` on; with `by_scale` after every scale, else each alone in its list."""
    from unified.inference.text_to_image import draw, draw_by_scale

    prompts = [one.prompt for one in batch]
    if by_scale:
        return draw_by_scale(model, processor, prompts, sampling, seed)
    return [[image] for image in draw(model, processor, prompts, sampling, seed)]


def save_wanted(batch: Sequence[Wanted], images: Sequence[Sequence["Image.Image"]], by_scale: bool) -> None:
    """Write `draw_wanted`'s images, and beside them strips of their scales where they were made `by_scale`."""
    from unified.inference.text_to_image import contact_sheet

    for one, steps in zip(batch, images, strict=True):
        if by_scale:
            names = [f"scale {scale + 1}" for scale in range(len(steps))]
            save(contact_sheet(steps, names, columns=len(steps)), suffixed(one.path, "scales"))
        save(steps[-1], one.path)


def save_numbered(image: Any, out_dir: Path) -> Path:
    """Write a generated image (PIL) under the folder's next free number; returns its path."""
    taken = [int(path.stem) for path in out_dir.glob("*.png") if path.stem.isdecimal()]
    path = out_dir / f"{max(taken, default=-1) + 1:03d}.png"
    save(image, path, announce=False)
    return path


def suffixed(path: Path, word: str) -> Path:
    """`x.png` as `x_word.png`."""
    return path.with_stem(f"{path.stem}_{word}")


def save(image: "Image.Image", path: Path, announce: bool = True) -> None:
    """Write `image`, and print its path unless `announce` is False."""
    from unified.files.images import write_image

    write_image(image, path)
    if announce:
        typer.echo(str(path))
