"""`/v1/chat/completions`: conversations with words and pictures, at once or as they come."""

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from typing import Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from sse_starlette import ServerSentEvent
from torch import Tensor

from unified.serving.chat_protocol import AnswerMessage, ChatRequest, ChatResponse, Choice, Parts, Usage
from unified.serving.conversation import ids_with_tools, read_messages
from unified.serving.drawing import ERRORS, JSON, STREAM, partial_scales
from unified.serving.errors import ApiError, unsupported
from unified.serving.jobs import Event, Failed, Finished, Job, PartialImage, TextSampling, TextToken, WholeImage
from unified.serving.pictures import data_uri
from unified.serving.protocol import ImageSettings, Unified, without_nulls
from unified.serving.service import Answers, AnswerStream, Service, seeds_from
from unified.serving.text_stream import InterleavedStream

MAX_STOPS = 16
# fields of OpenAI's that change nothing here when they are given, and are named in the answer
UNUSED = {"tools", "tool_choice", "functions", "function_call"}
NO_TOOLS = 'this model calls no tools; leave it out, or send "auto" or "none"'


class Answer:
    """One of n answers as it grows: text, pictures, and parts of both in order."""

    def __init__(self, service: Service, stops: list[str]) -> None:
        self.service = service
        self.parts: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []
        self.tokens, self.cached = 0, 0
        self.reason: Literal["stop", "length"] = "stop"
        self.stream = InterleavedStream[WholeImage](service.decode, stops)

    @property
    def text(self) -> str:
        """All words."""
        return "".join(part["text"] for part in self.parts if part["type"] == "text")

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self.stream.stopped

    def say(self, text: str) -> str:
        """Add words."""
        if text and self.parts and self.parts[-1]["type"] == "text":
            self.parts[-1]["text"] += text
        elif text:
            self.parts.append({"type": "text", "text": text})
        return text

    def hear(self, event: Event) -> list[str | WholeImage]:
        """What an event adds, in order: words for `say`, pictures for `show`."""
        if isinstance(event, TextToken):
            self.tokens += 1
            return self.stream.add(event.token)
        if isinstance(event, WholeImage):
            return self.stream.show(event)
        if isinstance(event, Finished | Failed):
            self.cached = event.cached
        if not isinstance(event, Finished):
            return []
        pieces = self.stream.end()
        self.reason = "length" if event.reason == "length" and not self.stopped else "stop"
        return pieces

    def told(self, seed: int) -> Parts:
        """What OpenAI's messages have no field for."""
        return Parts(parts=self.parts, seed=seed)

    async def show(self, event: WholeImage) -> dict[str, Any]:
        """Add a picture, as a part of `message.images`."""
        self.service.known.add(event.image, event.codes)
        url = await asyncio.to_thread(data_uri, event.image)
        image = {"type": "image_url", "image_url": {"url": url}, "index": event.number}
        image["unified"] = {"seed": event.seed, "size": self.service.size}
        self.images.append(image)
        self.parts.append({"type": "image", "index": event.number})
        return image


class Answering:
    """One request for n answers: checked, as jobs, and answered. Made by `begin`."""

    def __init__(
        self, service: Service, request: ChatRequest, ids: list[int], codes: list[Tensor], owner: str, has_tools: bool
    ) -> None:
        self.has_tools = has_tools
        self.service, self.request, self.owner = service, request, owner
        self.ids = [*ids, service.engine.model.config.boi_token_id] if request.is_picture_alone else ids
        self.codes = torch_stack(codes, service)
        self.id, self.created = f"chatcmpl-{uuid.uuid4().hex}", int(time.time())
        self.seeds = seeds_from(request.seed, request.n or 1)
        stops = request.stop
        self.stops = [stops] if isinstance(stops, str) else list(stops or [])
        self.answers = [Answer(service, self.stops) for _ in self.seeds]

    @classmethod
    async def begin(cls, service: Service, request: ChatRequest, owner: str) -> "Answering":
        """Check a request and read its messages."""
        service.check_model(request)
        check(service, request)
        messages, codes = await read_messages(request.messages, service)
        tools = None if request.tool_choice == "none" else request.tools
        ids, has_tools = ids_with_tools(messages, codes, tools, service)
        inputs = [code for code, drawn in zip(codes, drawn_parts(messages), strict=True) if not drawn]
        return cls(service, request, ids, inputs, owner, has_tools)

    @property
    def max_images(self) -> int:
        """Of an answer."""
        asked = self.request.modalities
        if asked is not None and "image" not in asked:
            return 0
        return 1 if self.request.is_picture_alone or self.request.max_images is None else self.request.max_images

    def jobs(self) -> list[Job]:
        """One for each answer."""
        request, service = self.request, self.service
        limits, engine = service.settings, service.engine
        asked = request.max_completion_tokens or request.max_tokens or limits.default_new_tokens
        sampling = TextSampling(
            0.0 if request.temperature is None else request.temperature,
            request.top_k or 0,
            1.0 if request.top_p is None else request.top_p,
        )
        tokens = max(1, min(asked, limits.max_new_tokens, service.room(self.ids, self.max_images)))
        shown = (request.partial_images or 0) if request.stream else 0
        drawing = service.sampling(request.image_sampling or ImageSettings())
        return [
            Job(
                self.ids, self.codes, engine.end_ids, seed, drawing,
                sampling, self.max_images, 0 if request.is_picture_alone else tokens,
                partial_scales(shown, service.scales), limits.seconds, self.owner,
            )
            for seed in self.seeds
        ]  # fmt: skip

    def usage(self) -> Usage:
        """Tokens so far."""
        config = self.service.engine.model.config
        images = sum(len(answer.images) for answer in self.answers) * config.image_length
        text = sum(answer.tokens for answer in self.answers)
        read = len(self.ids)
        return Usage(
            prompt_tokens=read,
            completion_tokens=text + images,
            total_tokens=read + text + images,
            prompt_tokens_details={"cached_tokens": max(answer.cached for answer in self.answers)},
            completion_tokens_details={"reasoning_tokens": 0, "text_tokens": text, "image_tokens": images},
        )

    def note(self) -> Unified:
        """What of the request had no effect, and the seed."""
        given = {name for name in UNUSED if getattr(self.request, name)}
        if any((message.model_extra or {}).get("tool_calls") for message in self.request.messages):
            given.add("messages.tool_calls")
        given -= {"tools", "tool_choice", "messages.tool_calls"} if self.has_tools else set()
        ignored = sorted(given | self.request.without_effect()) or None
        return Unified(
            model=self.service.settings.model_name, seed=self.seeds[0], size=self.service.size, ignored=ignored
        )

    def submit(self) -> Answers:
        """Let the engine answer."""
        return self.service.submit(self.jobs(), "messages")

    async def follow(self, answers: Answers, http: Request | None) -> AsyncIterator[tuple[int, dict[str, Any]]]:
        """What the answers say, as deltas of their messages; an answer that meets a stop string ends there."""
        async for number, event in answers.events(http):
            answer = self.answers[number]
            was_stopped = answer.stopped
            if was_stopped and not isinstance(event, Finished | Failed):
                continue
            for piece in answer.hear(event):
                if isinstance(piece, str):
                    yield number, {"content": answer.say(piece)}
                else:
                    yield number, {"images": [await answer.show(piece)]}
            if isinstance(event, PartialImage):
                url = await asyncio.to_thread(data_uri, event.image)
                shown = {"index": event.number, "scale": event.scale, "scales": self.service.scales, "url": url}
                yield number, {"unified": {"partial_image": shown}}
            if answer.stopped and not was_stopped and not isinstance(event, Finished):
                answers.stop(number)

    async def whole(self, http: Request) -> Response:
        """All answers at once."""
        async with self.submit() as answers:
            async for _ in self.follow(answers, http):
                pass
            if answers.running:
                raise ApiError(499, "the client has gone", code="cancelled")
        choices = [
            Choice(
                index=number,
                message=AnswerMessage(
                    content=answer.text,
                    images=answer.images or None,
                    unified=answer.told(self.seeds[number]),
                ),
                finish_reason=answer.reason,
            )
            for number, answer in enumerate(self.answers)
        ]
        body = ChatResponse(
            id=self.id, created=self.created, model=self.request.model or self.service.settings.model_name,
            choices=choices, usage=self.usage(), unified=self.note(),
        )  # fmt: skip
        content = body.model_dump()
        content["unified"] = without_nulls(body.unified)
        for choice in content["choices"]:
            choice["message"] = {k: v for k, v in choice["message"].items() if v is not None or k != "images"}
        return Response(json.dumps(content), media_type="application/json")

    @property
    def counts_usage(self) -> bool:
        """Whether a stream ends with the tokens."""
        options = self.request.stream_options
        return options is not None and bool(options.include_usage)

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> ServerSentEvent:
        """A part of a stream."""
        body = {"id": self.id, "object": "chat.completion.chunk", "created": self.created}
        body["model"] = self.request.model or self.service.settings.model_name
        counted = {"usage": None} if self.counts_usage else {}  # of all chunks but the last
        return ServerSentEvent(json.dumps({**body, "choices": choices, **counted, **more}), sep="\n")

    async def stream(self, answers: Answers) -> AsyncIterator[ServerSentEvent]:
        """Chunks as OpenAI's, ended by [DONE]; an error is the last before it."""
        try:
            for number in range(len(self.answers)):
                yield self.chunk([delta(number, {"role": "assistant", "content": ""})])
            async for number, change in self.follow(answers, None):
                yield self.chunk([delta(number, change)])
            for number, answer in enumerate(self.answers):
                told = {"unified": answer.told(self.seeds[number]).model_dump()}
                yield self.chunk([delta(number, told, answer.reason)], unified=without_nulls(self.note()))
            if self.counts_usage:
                yield self.chunk([], usage=self.usage().model_dump())
        except ApiError as error:
            yield ServerSentEvent(json.dumps(error.content()), sep="\n")
        yield ServerSentEvent("[DONE]", sep="\n")


def delta(number: int, change: Mapping[str, Any], reason: str | None = None) -> dict[str, Any]:
    """A chunk's choice."""
    return {"index": number, "delta": dict(change), "finish_reason": reason, "logprobs": None}


def check(service: Service, request: ChatRequest) -> None:
    """Raise ApiError for what this model cannot do, and for more than the server gives."""
    tool = request.tool_choice
    if request.tools and tool not in (None, "auto", "none"):
        raise unsupported("tool_choice", NO_TOOLS)
    if request.functions and request.function_call not in (None, "auto", "none"):
        raise unsupported("function_call", NO_TOOLS)
    if request.tools and len(json.dumps(request.tools)) > (most := service.settings.max_prompt_characters):
        message = f"tools: more than {most} characters"
        raise ApiError(422, message, "tools", "string_too_long")
    if request.logprobs:
        raise unsupported("logprobs", "probabilities are not given here")
    if request.response_format and request.response_format.get("type", "text") != "text":
        raise unsupported("response_format", "answers are plain text here")
    if request.modalities is not None and (not request.modalities or set(request.modalities) - {"text", "image"}):
        raise unsupported("modalities", 'answers are of "text" and "image"')
    if request.is_picture_alone and request.max_images == 0:
        raise unsupported("max_images", 'modalities ["image"] asks for one; leave one of them out')
    for name, count, most in (
        ("n", request.n, service.most_answers),
        ("max_images", request.max_images, service.settings.max_images),
    ):
        if count is not None and count > most:
            raise ApiError(422, f"{name}: {count} are more than {most}", name, "too_many")
    stops = [request.stop] if isinstance(request.stop, str) else request.stop or []
    if len(stops) > MAX_STOPS or any(len(stop) > 256 for stop in stops):
        raise ApiError(422, f"stop: at most {MAX_STOPS} of at most 256 characters", "stop", "too_many")


def drawn_parts(messages: list[Any]) -> list[bool]:
    """Of every picture in a conversation, whether it is an answer's."""
    return [
        message["role"] == "assistant"
        for message in messages
        for part in message["content"]
        if part["type"] == "image"
    ]


def torch_stack(codes: list[Tensor], service: Service) -> Tensor:
    """Codes (M, L) of input images."""
    return codes[0].new_tensor([code.tolist() for code in codes]) if codes else service.engine.no_codes


def chat_routes(service: Service) -> APIRouter:
    """Routes under /v1/chat."""
    router = APIRouter(prefix="/v1/chat", tags=["chat"], responses=ERRORS)

    @router.post("/completions", response_model=ChatResponse, responses=STREAM, dependencies=JSON)
    async def completions(body: ChatRequest, http: Request) -> Response:
        """Go on with a conversation of words and pictures, in words and pictures."""
        answering = await Answering.begin(service, body, http.state.owner)
        if not body.stream:
            return await answering.whole(http)
        answers = answering.submit()
        return AnswerStream(answers, answering.stream(answers))

    return router
