"""Kinds of picture files that show one picture, and the doors that open files: what each door saw.

    PYTHONPATH=.:tests python tests/picture_doors.py sheet.png

writes the sheet: a row a kind, a column a door, every cell what the image tokenizer or the scorer was given.
"""

import io
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from conftest import load_script
from PIL import Image, ImageCms, ImageDraw
from toys import make_tokenizer, make_vq, save_llm

from unified import VQModel
from unified.checkpoints.extension import extend
from unified.checkpoints.loading import load
from unified.data.encoding import EncodeArguments, encode_rows
from unified.data.rows import ROW_SCHEMA
from unified.files.images import image_to_uint8, read_image, to_rgb, to_uint8
from unified.image_tokenizer.image_dataset import PixelDataset, open_images
from unified.inference.chat import Chat
from unified.models.processing import UnifiedProcessor

SIDE = 16  # of the toy's tokenizer
ROW = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": [{"type": "image"}]}]}


def picture(grey: bool = False) -> Image.Image:
    """32 x 32: four fields, the last of them white."""
    image = Image.new("RGB", (32, 32), (255, 255, 255))
    fields = {(0, 0): (200, 40, 40), (16, 0): (60, 160, 60), (0, 16): (40, 60, 180)}
    for (x, y), colour in fields.items():
        image.paste((colour[0],) * 3 if grey else colour, (x, y, x + 16, y + 16))
    return image


def stored(image: Image.Image, form: str, **options: Any) -> bytes:
    """The bytes of a file."""
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def adobe_rgb() -> bytes:
    """The ICC profile of a wide RGB space, written by hand: columns for D50, gamma 2.2."""
    columns = ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446), (0.9642, 1.0, 0.8249))
    xyz = [
        b"XYZ " + bytes(4) + b"".join(int(v * 65536).to_bytes(4, "big", signed=True) for v in column)
        for column in columns
    ]
    gamma = b"curv" + bytes(4) + (1).to_bytes(4, "big") + int(2.2 * 256).to_bytes(2, "big") + bytes(2)
    tags = {b"desc": b"desc" + bytes(4) + (2).to_bytes(4, "big") + b"x\0" + bytes(78), b"wtpt": xyz[3]}
    tags |= dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), gamma) | dict(
        zip((b"rXYZ", b"gXYZ", b"bXYZ"), xyz, strict=False)
    )
    table, body, start = len(tags).to_bytes(4, "big"), b"", 132 + 12 * len(tags)
    for tag, value in tags.items():
        table += tag + (start + len(body)).to_bytes(4, "big") + len(value).to_bytes(4, "big")
        body += value + bytes(-len(value) % 4)
    head = bytearray(128)
    head[0:4], head[8:12] = (start + len(body)).to_bytes(4, "big"), b"\x02\x40\0\0"
    head[12:24], head[36:40], head[68:80] = b"mntrRGB XYZ ", b"acsp", xyz[3][8:]
    return bytes(head) + table + body


def kinds() -> dict[str, tuple[bytes, Image.Image]]:
    """Files by kind, and what they show."""
    colour, grey = picture(), picture(grey=True)
    turn = Image.Exif()
    turn[0x0112] = 6
    sideways = colour.transpose(Image.Transpose.ROTATE_90)
    alpha = colour.convert("RGBA")
    alpha.paste((255, 0, 255, 0), (16, 16, 32, 32))  # magenta that no viewer shows
    grey_alpha = Image.merge("LA", (grey.convert("L"), alpha.getchannel("A")))
    palette = colour.quantize(4)
    white = palette.getpixel((20, 20))
    colours = palette.getpalette()[:12]
    colours[3 * white : 3 * white + 3] = [255, 0, 255]
    palette.putpalette(colours)
    deep = Image.fromarray((np.asarray(grey.convert("L"), np.uint16) * 257).astype(np.uint16))
    wide = ImageCms.ImageCmsProfile(io.BytesIO(adobe_rgb()))
    in_wide = ImageCms.profileToProfile(colour, ImageCms.createProfile("sRGB"), wide)
    later = Image.new("RGB", (32, 32), (0, 0, 0))
    frames = {"save_all": True, "append_images": [later]}
    files = {
        "PNG": stored(colour, "PNG"),
        "JPEG, turned": stored(sideways, "JPEG", exif=turn, quality=95, subsampling=0),
        "TIFF, turned": stored(sideways, "TIFF", exif=turn),
        "RGBA": stored(alpha, "PNG"),
        "WebP with alpha": stored(alpha, "WEBP", lossless=True, exact=True),
        "palette with a key": stored(palette, "PNG", transparency=white),
        "GIF with a key": stored(palette, "GIF", transparency=white),
        "Adobe RGB": stored(in_wide, "PNG", icc_profile=adobe_rgb()),
        "CMYK JPEG": stored(colour.convert("CMYK"), "JPEG", quality=95, subsampling=0),
        "CMYK TIFF": stored(colour.convert("CMYK"), "TIFF"),
        "MPO, frames": stored(colour, "MPO", quality=95, subsampling=0, **frames),
        "WebP, frames": stored(colour, "WEBP", lossless=True, **frames),
        "BMP": stored(colour, "BMP"),
        "AVIF": stored(colour, "AVIF", quality=95, subsampling="4:4:4"),
    }
    greys = {
        "16-bit PNG": stored(deep, "PNG"),
        "16-bit PGM": stored(deep.convert("I"), "PPM"),
        "float TIFF": stored(Image.fromarray(np.asarray(grey.convert("L"), np.float32) / 255), "TIFF"),
        "LA": stored(grey_alpha, "PNG"),
    }
    return {name: (data, colour) for name, data in files.items()} | {name: (d, grey) for name, d in greys.items()}


def given_to_the_tokenizer(run: Callable[[], Any]) -> np.ndarray:
    """The first pixel values that `VQModel.encode` was given while `run` ran, uint8 (S, S, 3)."""
    seen: list[torch.Tensor] = []
    real = VQModel.encode

    def encode(self: VQModel, pixel_values: torch.Tensor) -> torch.Tensor:
        seen.append(pixel_values)
        return real(self, pixel_values)

    with patch.object(VQModel, "encode", encode):
        run()
    return to_uint8(seen[0])[0].numpy()


def as_pil(path: Path) -> Image.Image:
    """What people hand over from Python: opened, not decoded yet."""
    return Image.open(io.BytesIO(path.read_bytes()))


class Doors:
    """The doors, over a folder for what they need; each takes the path of a file and says what it saw."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_vq().save_pretrained(folder / "vq")
        tokenizer = make_tokenizer()
        extend(save_llm(folder / "llm", tokenizer), folder / "vq", folder / "model")
        self.model, self.processor = load(folder / "model", device="cpu")
        self.fid = load_script("eval/fid.py")
        self.number = 0
        self.all: dict[str, Callable[[Path], np.ndarray]] = {
            "encode, JSONL": self.encode,
            "encode, parquet": lambda path: self.encode(path, parquet=True),
            "encode, workers": lambda path: self.encode(path, num_workers=2),
            "train_vq": lambda path: self.dataset(path, cache_gb=1.0),
            "train_vq, no cache": lambda path: self.dataset(path, cache_gb=0.0),
            "chat, file": lambda path: self.chat(read_image(path, path.name)),
            "chat, PIL": lambda path: self.chat(as_pil(path)),
            "processor": self.process,
            "FID": self.score,
            "GenEval": lambda path: image_to_uint8(read_image(path, path.name, exact=True), SIDE).numpy(),
            "detectors, PIL": lambda path: image_to_uint8(to_rgb(as_pil(path)), SIDE).numpy(),
        }

    def new(self) -> Path:
        """A folder that nobody has used."""
        self.number += 1
        folder = self.folder / f"work{self.number}"
        folder.mkdir()
        return folder

    def encode(self, path: Path, parquet: bool = False, num_workers: int = 0) -> np.ndarray:
        """What data_prep/encode_images.py gives the tokenizer."""
        folder = self.new()
        rows = folder / ("rows.parquet" if parquet else "rows.jsonl")
        if parquet:
            parts = [{"role": m["role"], "content": [{"type": "image"}]} for m in ROW["messages"][1:]]
            row = {"messages": parts, "images": [{"bytes": path.read_bytes(), "path": path.name}]}
            pq.write_table(pa.Table.from_pylist([row], schema=ROW_SCHEMA), rows)
        else:
            rows.write_text(json.dumps(ROW | {"images": [str(path)]}) + "\n", encoding="utf-8")
        arguments = EncodeArguments(str(self.folder / "vq"), str(folder / "out"), [str(rows)], num_workers=num_workers)
        return given_to_the_tokenizer(lambda: encode_rows(arguments))

    def dataset(self, path: Path, cache_gb: float) -> np.ndarray:
        """What recipes/train_vq.py trains on."""
        folder = self.new()
        (folder / path.name).write_bytes(path.read_bytes())
        return PixelDataset(open_images(str(folder)), SIDE, cache_gb)[0].numpy()

    def chat(self, image: Image.Image) -> np.ndarray:
        """What a model is shown in a chat."""
        return given_to_the_tokenizer(lambda: Chat(self.model, self.processor).show(image))

    def process(self, path: Path) -> np.ndarray:
        """What HF's processor call makes of a PIL image."""
        processor = UnifiedProcessor.from_config(self.processor.tokenizer, self.model.config)
        return to_uint8(processor(images=as_pil(path))["pixel_values"])[0].numpy()

    def score(self, path: Path) -> np.ndarray:
        """What eval/fid.py gives the network."""
        folder = self.new()
        (folder / path.name).write_bytes(path.read_bytes())
        pictures = self.fid.Pictures(str(folder), self.fid.FidArguments(str(folder), str(folder), image_size=SIDE))
        pictures.check()
        return pictures.read(0).numpy()


def sheet(out: Path) -> None:
    """The contact sheet of what each door saw of each kind."""
    with tempfile.TemporaryDirectory() as name:
        doors, size, label = Doors(Path(name)), 64, 150
        cells = Image.new("RGB", (label + size * (len(doors.all) + 1), 30 + size * len(kinds())), "white")
        draw = ImageDraw.Draw(cells)
        for column, door in enumerate(["as viewers", *doors.all]):
            draw.text((label + column * size + 2, 2), door.replace(", ", ",\n"), fill="black")
        for row, (kind, (data, shown)) in enumerate(kinds().items()):
            draw.text((4, 30 + row * size + 24), kind, fill="black")
            path = Path(name, f"picture{row}.{suffix(kind)}")
            path.write_bytes(data)
            seen = [image_to_uint8(shown, SIDE).numpy(), *(door(path) for door in doors.all.values())]
            for column, pixels in enumerate(seen):
                cell = Image.fromarray(pixels).resize((size - 4, size - 4), Image.Resampling.NEAREST)
                cells.paste(cell, (label + column * size, 30 + row * size))
        cells.save(out)


def suffix(kind: str) -> str:
    """The file suffix of a kind."""
    known = {"JPEG": "jpg", "WebP": "webp", "GIF": "gif", "TIFF": "tif", "MPO": "mpo", "BMP": "bmp", "AVIF": "avif"}
    return next((end for word, end in {**known, "PGM": "pgm"}.items() if word in kind), "png")


if __name__ == "__main__":
    sheet(Path(sys.argv[1]))
