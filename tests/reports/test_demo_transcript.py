"""The demo transcript: what is asked, what is kept, and that it comes back as it was."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from unified.checkpoints.loading import load
from unified.files.images import pixels_to_image
from unified.reports.demo_transcript import DemoTranscript, Drawing, Query, about_objects, converse, object_named
from unified.reports.page import Turn


def picture(colour: str) -> Image.Image:
    return Image.new("RGB", (4, 4), colour)


def test_a_showing_comes_back_as_it_was(tmp_path: Path) -> None:
    chat = [Turn("user", "What is it?", picture("red")), Turn("assistant", "Ünknown.")]
    shown = DemoTranscript(chat, [Drawing("a cat", 7, [picture("blue"), picture("green")])])
    shown.write(tmp_path / "shown")
    found = DemoTranscript.read(tmp_path / "shown")
    assert [(turn.role, turn.text, turn.image is None) for turn in found.chat] == [
        ("user", "What is it?", False),
        ("assistant", "Ünknown.", True),
    ]
    assert (found.drawn[0].prompt, found.drawn[0].seed) == ("a cat", 7)
    images = [found.chat[0].image, *found.drawn[0].scales]
    assert [image.getpixel((0, 0)) for image in images] == [(255, 0, 0), (0, 0, 255), (0, 128, 0)]


def test_every_query_starts_anew_and_painted_answers_are_shown(toy_checkpoint: Path) -> None:
    model, _ = load(toy_checkpoint, device="cpu")
    said: list[object] = []
    codes = torch.zeros(5, dtype=torch.long)
    answers = iter([[{"type": "text", "text": "Paris. "}], [{"type": "image", "codes": codes}]])

    def ask(text: str) -> list[dict]:
        said.append(text)
        return next(answers)

    chat = SimpleNamespace(reset=lambda: said.append("reset"), show=said.append, ask=ask, model=model)
    red = picture("red")
    turns = converse(chat, [Query("Capital?"), Query("Again?", red, "It was red.")])
    assert said == ["reset", "Capital?", "reset", red, "Again?"]
    assert [(turn.role, turn.text) for turn in turns] == [
        ("user", "Capital?"),
        ("assistant", "Paris."),
        ("user", "Again?"),
        ("assistant", ""),
        ("note", "It was red."),
    ]
    with torch.no_grad():
        painted = pixels_to_image(model.model.vq_model.decode(codes[None])[0])
    assert turns[0].image is None and np.array_equal(turns[3].image, painted)


def test_objects_are_named_in_words() -> None:
    assert object_named("purple umbrella") == ("umbrella", "purple")
    assert object_named("orange") == ("orange", None)
    assert object_named("orange cell phone") == ("cell phone", "orange")
    (query,) = about_objects(["red star"], ["What is it?"])
    assert query.text == "What is it?" and "a photo of a red star" in query.note and query.image.size == (64, 64)
