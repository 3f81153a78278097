"""What all routes share: the engine, the model's name, checks of requests, and answers awaited in an event loop."""

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fastapi import Request as HttpRequest
from PIL import Image
from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.types import Receive, Scope, Send
from torch import Tensor

from unified.models.image_sampling import ImageSampling
from unified.models.messages import Message
from unified.serving.engine import Busy, Engine
from unified.serving.errors import ApiError, of_busy, of_failure
from unified.serving.jobs import Event, Failed, Finished, Job, TextToken, Ticket, WholeImage
from unified.serving.metrics import Metrics
from unified.serving.pictures import KnownImages
from unified.serving.protocol import MAX_SEED, ImageSettings, Request
from unified.serving.settings import ServerSettings

POLL = 0.25  # seconds between looks at whether a client is still there


@dataclass
class Service:
    """One per app; see the fields' classes."""

    engine: Engine
    settings: ServerSettings
    metrics: Metrics = field(default_factory=Metrics)
    known: KnownImages = field(default_factory=KnownImages)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def size(self) -> str:
        """An image's sides in pixels."""
        side = self.engine.processor.image_size
        return f"{side}x{side}"

    @property
    def scales(self) -> int:
        """Number of an image's scales."""
        return len(self.engine.model.config.patch_nums)

    @property
    def most_answers(self) -> int:
        """Of a request: more would be refused whenever they were asked for."""
        return min(self.settings.max_images, self.engine.limits.most)

    def check_model(self, request: Request) -> None:
        """Raise ApiError where only the served model's name is taken, and another is asked for."""
        if self.settings.strict_model and request.model not in (None, self.settings.model_name):
            message = f"model: {request.model!r} is not served here, but {self.settings.model_name!r}"
            raise ApiError(404, message, "model", "model_not_found")

    def sampling(self, given: ImageSettings) -> ImageSampling:
        """The server's sampling of images with what a request changes."""
        names = ("temperature", "top_k", "top_p", "guidance_scale")
        changed = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
        return replace(self.settings.sampling, **changed)

    def prompt_ids(
        self, messages: Sequence[Message], codes: Sequence[Tensor] = (), tools: list[Any] | None = None
    ) -> list[int]:
        """Ids of a conversation. Raises ApiError for what the model's chat template cannot write."""
        try:
            return self.engine.processor.prompt_ids(messages, codes, tools)
        except ValueError as error:
            raise ApiError(400, f"messages: {error}", "messages", "invalid_messages") from None

    def room(self, ids: list[int], images: int) -> int:
        """Tokens of text that an answer with `images` has room for. Raises ApiError where the context is full."""
        try:
            return self.engine.room(ids, images)
        except ValueError as error:
            raise ApiError(400, f"messages: {error}", "messages", "context_length_exceeded") from None

    def decode(self, tokens: list[int]) -> str:
        """Text of tokens; special ones are none."""
        return "".join(part["text"] for part in self.engine.processor.decode_parts(tokens) if tokens)

    def check_alive(self) -> None:
        """Raise ApiError where the engine takes nothing more."""
        if not self.engine.alive:
            raise ApiError(503, "the engine has stopped", code="stopped")

    def submit(self, jobs: Sequence[Job], param: str) -> "Answers":
        """Let the engine work on `jobs`; ApiError where the queue is full, or a prompt (`param`) too long."""
        self.check_alive()
        answers = Answers(len(jobs), self.metrics)
        try:
            answers.tickets = self.engine.submit(jobs, answers.hear)
        except Busy as busy:
            raise self.refused(busy) from None
        except ValueError as error:
            raise ApiError(400, f"{param}: {error}", param, "context_length_exceeded") from None
        self.metrics.answers.inc(len(jobs))
        return answers

    async def encode(self, images: Sequence[Image.Image]) -> list[Tensor]:
        """Codes (L,) of input images. Raises ApiError where the queue is full."""
        if not images:
            return []
        self.check_alive()
        try:
            encoding = self.engine.encode(images)
        except Busy as busy:
            raise self.refused(busy) from None
        codes: Tensor = await asyncio.wrap_future(encoding)
        return list(codes)

    def refused(self, busy: Busy) -> ApiError:
        """What is said of a full queue, counted."""
        self.metrics.refused.inc()
        return of_busy(busy)


class Answers:
    """Events of several jobs, in an event loop; leaving `async with` cancels what has not ended."""

    def __init__(self, count: int, metrics: Metrics) -> None:
        self.metrics = metrics
        self.loop, self.queue = asyncio.get_running_loop(), asyncio.Queue[tuple[int, Event]]()
        self.tickets: list[Ticket] = []
        self.running, self.unwanted = count, set[int]()

    def hear(self, number: int, event: Event) -> None:
        """Called in the engine's thread; counts what is said, whoever still listens."""
        if isinstance(event, TextToken):
            self.metrics.tokens.inc()
        elif isinstance(event, WholeImage):
            self.metrics.images.inc()
        elif isinstance(event, Finished | Failed):
            self.metrics.cached.inc(event.cached)
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.queue.put_nowait, (number, event))

    async def __aenter__(self) -> "Answers":
        return self

    async def __aexit__(self, *error: object) -> None:
        for ticket in self.tickets:
            ticket.cancel()

    def stop(self, number: int) -> None:
        """Cancel one answer, of which nothing more is wanted: its end is no failure."""
        self.unwanted.add(number)
        self.tickets[number].cancel()

    async def events(self, request: HttpRequest | None = None) -> AsyncGenerator[tuple[int, Event], None]:
        """All events until all answers have ended; ends early, too, where the client of `request` has gone.

        Raises ApiError for an answer that fails.
        """
        look = self.loop.time() + POLL
        while self.running:
            if request is not None and self.loop.time() >= look:  # also where tokens come faster than that
                if await request.is_disconnected():
                    return
                look = self.loop.time() + POLL
            try:
                number, event = await asyncio.wait_for(self.queue.get(), POLL if request else None)
            except TimeoutError:
                continue
            if isinstance(event, Failed) and number not in self.unwanted:
                raise of_failure(event)
            self.running -= isinstance(event, Finished | Failed)
            yield number, event


class AnswerStream(EventSourceResponse):
    """Server-sent events of `answers`, which are cancelled however it ends, be it before the first event."""

    def __init__(self, answers: Answers, events: AsyncIterator[ServerSentEvent]) -> None:
        super().__init__(events, sep="\n")
        self.answers = answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self.answers:
            await super().__call__(scope, receive, send)


def seeds_from(seed: int | None, count: int) -> list[int]:
    """Seeds of `count` answers, from a request's `seed` on; chosen at random where it is None."""
    first = secrets.randbelow(MAX_SEED + 1) if seed is None else seed
    return [(first + number) % (MAX_SEED + 1) for number in range(count)]
