"""What a model says and draws when people look at it: asked once, kept on disk, put on a page later."""

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from unified.files.atomic import write_text
from unified.files.images import read_image, write_image
from unified.inference.chat import Chat
from unified.inference.text_to_image import codes_to_images
from unified.reports.page import Turn
from unified.scenes.glyphs import CLASSES, COLOURS, NEW_OBJECTS
from unified.scenes.new_objects import object_scene
from unified.scenes.rendering import Colouring, Scene, check_names, draw_scene

RECORD = "transcript.json"


@dataclass(frozen=True)
class Query:
    """What is asked, about an image or none; `note` is for those who read the answer, not for the model."""

    text: str
    image: Image.Image | None = None
    note: str = ""


@dataclass(frozen=True)
class Drawing:
    """An image after each scale, coarse to fine, and what it was drawn from."""

    prompt: str
    seed: int
    scales: Sequence[Image.Image]


@dataclass(frozen=True)
class DemoTranscript:
    """A chat and drawings of one model."""

    chat: Sequence[Turn]
    drawn: Sequence[Drawing]

    def write(self, folder: Path) -> None:
        """Keep it in `folder`: images, and `transcript.json`, which comes last."""
        names = (f"{number:03d}.png" for number in itertools.count())
        chat = [{**vars(turn), "image": _keep(turn.image, folder, names)} for turn in self.chat]
        drawn = [{**vars(one), "scales": [_keep(image, folder, names) for image in one.scales]} for one in self.drawn]
        write_text(folder / RECORD, json.dumps({"chat": chat, "drawn": drawn}, indent=1) + "\n")

    @classmethod
    def read(cls, folder: Path) -> "DemoTranscript":
        """What `write` has left in `folder`."""
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        chat = [Turn(**turn | {"image": turn["image"] and _open(turn["image"], folder)}) for turn in record["chat"]]
        drawn = [one | {"scales": [_open(name, folder) for name in one["scales"]]} for one in record["drawn"]]
        return cls(chat, [Drawing(**one) for one in drawn])


def _keep(image: Image.Image | None, folder: Path, names: Iterator[str]) -> str | None:
    if image is None:
        return None
    path = folder / next(names)
    write_image(image, path)
    return path.name


def _open(name: str, folder: Path) -> Image.Image:
    return read_image(folder / name, f"{folder / name}")


def object_named(words: str) -> Colouring:
    """ "purple umbrella" -> ("umbrella", "purple"), "star" -> ("star", None). Raises ValueError for others."""
    colour, _, name = words.partition(" ")
    item = (name, colour) if name and colour in COLOURS else (words, None)
    check_names("object", [item[0]], CLASSES | NEW_OBJECTS)
    return item


def about_scene(scene: Scene, question: str) -> Query:
    """A question about the scene's image."""
    return Query(question, draw_scene(scene), f"The picture was rendered from: {scene.metadata['prompt']}.")


def about_objects(names: Sequence[str], questions: Sequence[str]) -> list[Query]:
    """A question about the image of each object. Raises ValueError as `object_named`, and for too few or many."""
    if len(names) != len(questions):
        raise ValueError(f"{len(names)} pictures and {len(questions)} picture_questions; give a question for each")
    return [about_scene(object_scene([object_named(name)]), text) for name, text in zip(names, questions, strict=True)]


def converse(chat: Chat, queries: Sequence[Query]) -> list[Turn]:
    """Each query in a conversation of its own, and its answer: words, and the image if there is one."""
    turns = []
    for query in queries:
        chat.reset()
        if query.image is not None:
            chat.show(query.image)
        parts = chat.ask(query.text)
        words = " ".join(part["text"] for part in parts if part["type"] == "text").strip()
        images = [codes_to_images(chat.model, part["codes"][None])[0] for part in parts if part["type"] == "image"]
        turns += [Turn("user", query.text, query.image), Turn("assistant", words, images[0] if images else None)]
        turns += [Turn("note", query.note)] if query.note else []
    return turns
