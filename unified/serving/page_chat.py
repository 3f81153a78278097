"""The page's conversations: words stream and pictures sharpen as the engine says them.

Legend: L codes of an image, M input images.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unified.models.image_sampling import ImageSampling
from unified.models.messages import Message
from unified.serving.errors import ApiError
from unified.serving.jobs import Event, Job, PartialImage, TextToken, Ticket, WholeImage
from unified.serving.page_pictures import Frame, frame_html, preview_of, read_file
from unified.serving.service import Service

Shown = list[dict[str, Any]]  # messages as gradio's Chatbot has them
STOPPED = "*Stopped. This question and its answer are not part of the conversation.*"
EMPTY = "*The model has nothing to say.*"
DRAWN = "a picture drawn by the model"


@dataclass
class Talk:
    """A conversation of the page: what the model has of it, and what is shown.

    owner: of what is cached of it, for no other conversation; given with a question, as gradio copies empty ones.
    """

    messages: list[Message] = field(default_factory=list)
    codes: list[Tensor] = field(default_factory=list)
    input_codes: list[Tensor] = field(default_factory=list)
    shown: Shown = field(default_factory=list)
    running: list[Ticket] = field(default_factory=list)
    owner: str = ""

    closed: bool = False  # what is still said is not shown

    def stop(self) -> None:
        """Let the answer that is being given end here."""
        for ticket in self.running:
            ticket.cancel()


@dataclass(frozen=True)
class Turn:
    """A question: its words, its pictures' files, and how pictures are drawn in the answer.

    previews: whether the conversation shows the question's pictures.
    """

    text: str
    files: Sequence[str] = ()
    seed: int = 0
    sampling: ImageSampling = field(default_factory=ImageSampling)
    max_images: int = 1
    previews: bool = True


class Reply:
    """An answer as it grows: text and pictures in their order."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.parts: list[list[int] | Frame] = []  # ids of text, or a picture
        self.codes: list[Tensor] = []

    def hear(self, event: Event) -> None:
        """Take in what the engine says."""
        if isinstance(event, TextToken):
            if not self.parts or isinstance(self.parts[-1], Frame):
                self.parts.append([])
            ids = self.parts[-1]
            assert isinstance(ids, list)
            ids.append(event.token)
        elif isinstance(event, PartialImage | WholeImage):
            last = self.service.scales - 1
            frame = Frame(event.image, event.scale if isinstance(event, PartialImage) else last, last + 1)
            if self.parts and isinstance(self.parts[-1], Frame) and not self.parts[-1].whole:
                self.parts.pop()
            self.parts.append(frame)
            if isinstance(event, WholeImage):
                self.codes.append(event.codes)
                self.service.known.add(event.image, event.codes)

    def text(self, ids: list[int]) -> str:
        """Text of ids, without the half of a character at its end."""
        return self.service.decode(ids).rstrip("\ufffd")

    def content(self) -> list[dict[str, Any]]:
        """As parts of a message."""
        parts: list[dict[str, Any]] = [
            {"type": "image"} if isinstance(part, Frame) else {"type": "text", "text": self.text(part)}
            for part in self.parts
        ]
        return parts or [{"type": "text", "text": ""}]

    def shown(self) -> list[str]:
        """As parts of the Chatbot's message."""
        shown = [frame_html(part, DRAWN) if isinstance(part, Frame) else self.text(part) for part in self.parts]
        return [part for part in shown if part.strip()]


async def answer(service: Service, talk: Talk, turn: Turn) -> AsyncIterator[Shown]:
    """Ask, and give what is to be shown as the answer grows; `talk` has it when it is complete.

    Raises ApiError for a file that is no picture, and for what the engine refuses.
    """
    names = [Path(file).name for file in turn.files]
    check_turn(service, talk, turn)
    squares, previews = [], []
    for file, name in zip(turn.files, names, strict=True):
        picture = await asyncio.to_thread(read_file, file, service.settings)
        previews += [preview_of(picture, name)] if turn.previews else []
        squares.append(await asyncio.to_thread(service.engine.processor.image_processor.to_square, picture))
    codes = await service.encode(squares)
    question = [*({"type": "image"} for _ in codes), {"type": "text", "text": turn.text}]
    asked: list[Message] = [*talk.messages, {"role": "user", "content": question}]
    all_codes, input_codes = [*talk.codes, *codes], [*talk.input_codes, *codes]
    reply = Reply(service)
    talk.owner = talk.owner or f"page {secrets.token_hex(16)}"
    job = replace(job_of(service, asked, all_codes, input_codes, turn), owner=talk.owner)
    answers = service.submit([job], "messages")
    place: dict[str, Any] = {"role": "assistant", "content": ["…"]}
    talk.shown += [{"role": "user", "content": [*previews, *([turn.text] if turn.text else [])]}, place]
    talk.running = answers.tickets
    try:
        async with answers:
            yield talk.shown
            async with aclosing(answers.events()) as events:
                async for _, event in events:
                    reply.hear(event)
                    place["content"] = reply.shown() or ["…"]
                    if not talk.closed:
                        yield talk.shown
        place["content"] = reply.shown() or [EMPTY]
        talk.messages = [*asked, {"role": "assistant", "content": reply.content()}]
        talk.codes, talk.input_codes = [*all_codes, *reply.codes], input_codes
    except ApiError as error:
        if error.body.code != "cancelled":
            raise
    finally:
        if len(talk.messages) <= len(asked):
            place["content"] = [*reply.shown(), STOPPED]
    if not talk.closed:
        yield talk.shown


def check_turn(service: Service, talk: Talk, turn: Turn) -> None:
    """Raise ApiError for more than the API takes."""
    limits, images = service.settings, len(talk.input_codes) + len(turn.files)
    check_characters(service, turn.text)
    if images > limits.max_input_images:
        raise ApiError(422, f"{images} pictures are more than {limits.max_input_images}; begin a new conversation")


def check_characters(service: Service, text: str) -> None:
    """Raise ApiError for a text that is longer than the API takes."""
    most = service.settings.max_prompt_characters
    if len(text) > most:
        raise ApiError(422, f"{len(text)} characters are more than {most}; shorten the text")


def job_of(
    service: Service, messages: list[Message], codes: list[Tensor], input_codes: list[Tensor], turn: Turn
) -> Job:
    """The engine's job of a turn: the answer to `messages`."""
    ids = service.prompt_ids(messages, codes)
    return Job(
        ids,
        torch.stack(input_codes) if input_codes else service.engine.no_codes,
        service.engine.end_ids,
        turn.seed,
        turn.sampling,
        max_images=turn.max_images,
        max_new_tokens=min(service.settings.default_new_tokens, service.room(ids, turn.max_images)),
        partial_scales=frozenset(range(service.scales - 1)),
        seconds=service.settings.seconds,
    )
