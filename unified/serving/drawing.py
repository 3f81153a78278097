"""`/v1/images/generations`: n pictures of a prompt, at once or scale by scale as they sharpen."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response
from sse_starlette import ServerSentEvent

from unified.serving.errors import ApiError, ErrorObject, unsupported
from unified.serving.gate import check_json
from unified.serving.jobs import Job, PartialImage, WholeImage
from unified.serving.pictures import base64_of
from unified.serving.protocol import (
    ImageData,
    ImageRequest,
    ImageResponse,
    ImageUsage,
    TokenDetails,
    Unified,
    without_nulls,
)
from unified.serving.service import Answers, AnswerStream, Service, seeds_from

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorObject} for status in (400, 401, 404, 408, 413, 415, 422, 429, 499, 500, 503, 504)
}
EVENT = {  # of a stream, as OpenAPI 3.2 has it; `data` is JSON, or [DONE]
    "type": "object",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
STREAM: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {"itemSchema": EVENT}}}}
JSON = [Depends(check_json)]
UNUSED = ("quality", "style", "moderation")  # fields without effect here
EDITS = "this model draws from words alone; ask POST /v1/images/generations"


def partial_scales(count: int, scales: int) -> frozenset[int]:
    """After which of an image's scales it is shown, `count` times before the last, evenly spread to the end."""
    before_last = scales - 1
    count = min(count, before_last)
    return frozenset(before_last - 1 - number * before_last // count for number in range(count))


class Drawing:
    """One request for images: checked, as jobs, and answered."""

    def __init__(self, service: Service, request: ImageRequest, owner: str = "") -> None:
        service.check_model(request)
        self.service, self.request, self.owner = service, request, owner
        self.format, self.count = request.output_format or "png", request.n or 1
        idle = {
            "partial_images": request.partial_images and not request.stream,
            "output_compression": request.output_compression is not None and self.format == "png",
            "response_format": request.response_format == "url" and request.stream,
        }
        idle |= {name: getattr(request, name) not in (None, "auto") for name in UNUSED}
        self.ignored = sorted({*(request.model_extra or {}), *(name for name, without in idle.items() if without)})
        if request.size not in (None, "", "auto", service.size):
            self.ignored.append("size")
        self.check()
        self.seeds = seeds_from(request.seed, self.count)
        self.prompt = [
            *service.prompt_ids([{"role": "user", "content": request.prompt}]),
            service.engine.model.config.boi_token_id,
        ]

    def check(self) -> None:
        """Raise ApiError for more than the server gives, and for what it would draw otherwise."""
        limits, request = self.service.settings, self.request
        if len(request.prompt) > limits.max_prompt_characters:
            message = f"prompt: {len(request.prompt)} characters are more than {limits.max_prompt_characters}"
            raise ApiError(422, message, "prompt", "string_too_long")
        most = self.service.most_answers
        if self.count > most:
            raise ApiError(422, f"n: {self.count} images are more than {most}", "n", "too_many_images")
        if request.background == "transparent":
            raise unsupported("background", "pictures of this model are opaque; leave it out")

    def jobs(self, partial_images: int) -> list[Job]:
        """One for each image."""
        config, service = self.service.engine.model.config, self.service
        codes = service.engine.no_codes
        sampling, shown = service.sampling(self.request), partial_scales(partial_images, len(config.patch_nums))
        return [
            Job(
                self.prompt, codes, frozenset(), seed, sampling, partial_scales=shown,
                seconds=service.settings.seconds, owner=self.owner,
            )
            for seed in self.seeds
        ]  # fmt: skip

    def submit(self, partial_images: int = 0) -> Answers:
        """Let the engine draw."""
        return self.service.submit(self.jobs(partial_images), "prompt")

    def usage(self, images: int) -> ImageUsage:
        """Tokens of `images` of this request's."""
        read, written = len(self.prompt), images * self.service.engine.model.config.image_length
        return ImageUsage(
            input_tokens=read,
            output_tokens=written,
            total_tokens=read + written,
            input_tokens_details=TokenDetails(text_tokens=read, image_tokens=0),
            output_tokens_details=TokenDetails(text_tokens=0, image_tokens=written),
        )

    def note(self, number: int | None = None) -> Unified:
        """What OpenAI's fields do not say, of one image or of all."""
        seed = None if number is None else self.seeds[number]
        ignored = self.ignored if number is None and self.ignored else None
        name = self.service.settings.model_name if number is None else None
        return Unified(model=name, seed=seed, index=number, size=self.service.size, ignored=ignored)

    async def base64(self, event: PartialImage | WholeImage) -> str:
        """The image's file; encoded beside the event loop."""
        return await asyncio.to_thread(base64_of, event.image, self.format, self.request.output_compression)

    async def remember(self, event: WholeImage) -> None:
        """Keep a drawn image's codes."""
        self.service.known.add(event.image, event.codes)

    async def whole(self, http: Request) -> Response:
        """All images in one answer."""
        data: dict[int, ImageData] = {}
        async with self.submit() as answers:
            async for number, event in answers.events(http):
                if isinstance(event, WholeImage):
                    await self.remember(event)
                    text = await self.base64(event)
                    url = f"data:image/{self.format};base64,{text}" if self.request.response_format == "url" else None
                    data[number] = ImageData(
                        b64_json=text if url is None else None, url=url, seed=event.seed, unified=self.note(number)
                    )
        if len(data) < self.count:
            raise ApiError(499, "the client has gone", code="cancelled")
        body = ImageResponse(
            created=int(time.time()),
            data=[data[number] for number in range(self.count)],
            output_format=self.format,
            size=self.service.size,
            usage=self.usage(self.count),
            unified=self.note(),
        )
        return Response(json.dumps(without_nulls(body)), media_type="application/json")

    async def stream(self, answers: Answers) -> AsyncIterator[ServerSentEvent]:
        """Partial images, then whole ones, as server-sent events; an error is the last."""
        try:
            async for number, event in answers.events():
                if isinstance(event, PartialImage | WholeImage):
                    yield sse(await self.image_event(number, event))
        except ApiError as error:
            yield sse({"type": "error", **error.content()})

    async def image_event(self, number: int, event: PartialImage | WholeImage) -> dict[str, Any]:
        """An image as OpenAI's event."""
        body = {"b64_json": await self.base64(event), "created_at": int(time.time()), "size": self.service.size}
        body |= {"background": "opaque", "output_format": self.format, "quality": "auto"}
        note = without_nulls(self.note(number))
        if isinstance(event, PartialImage):
            body |= {"type": "image_generation.partial_image", "partial_image_index": self.shown(event.scale)}
            return body | {"unified": note | {"scale": event.scale, "scales": self.service.scales}}
        await self.remember(event)
        return body | {
            "type": "image_generation.completed",
            "usage": self.usage(1).model_dump(),
            "unified": note | without_nulls(self.note()),
        }

    def shown(self, scale: int) -> int:
        """The index of a partial image among those that are shown."""
        return sorted(partial_scales(self.request.partial_images or 0, self.service.scales)).index(scale)


def sse(body: dict[str, Any]) -> ServerSentEvent:
    """An event as its type and JSON."""
    return ServerSentEvent(json.dumps(body), event=body["type"], sep="\n")


def image_routes(service: Service) -> APIRouter:
    """Routes under /v1/images."""
    router = APIRouter(prefix="/v1/images", tags=["images"], responses=ERRORS)

    @router.post("/generations", response_model=ImageResponse, responses=STREAM, dependencies=JSON)
    async def generations(body: ImageRequest, http: Request) -> Response:
        """Draw n pictures of a prompt; with `stream`, server-sent events that show them scale by scale."""
        drawing = Drawing(service, body, http.state.owner)
        if not body.stream:
            return await drawing.whole(http)
        answers = drawing.submit(body.partial_images or 0)
        return AnswerStream(answers, drawing.stream(answers))

    @router.post("/edits", response_model=ErrorObject, status_code=400)
    async def edits() -> None:
        """Refused: pictures are not edited here."""
        raise unsupported("image", EDITS)

    @router.post("/variations", response_model=ErrorObject, status_code=400)
    async def variations() -> None:
        """Refused: pictures are not varied here."""
        raise unsupported("image", EDITS)

    return router
