"""`/v1/responses`, as far as clients use it: input in words and pictures, answers with the image_generation tool."""

import json
import uuid
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import Field
from sse_starlette import EventSourceResponse, ServerSentEvent

from unified.serving.answering import Answer, Answering
from unified.serving.chat_protocol import ChatMessage, ChatRequest, Text, Tokens
from unified.serving.drawing import ERRORS, STREAM, sse
from unified.serving.errors import ApiError, unsupported
from unified.serving.protocol import ImageSettings, Seed, Share, Unified, without_nulls
from unified.serving.protocol import Request as ApiRequest
from unified.serving.service import Answers, Service

DRAWING = "image_generation"


class ResponseRequest(ApiRequest):
    """`POST /v1/responses`. Pictures need the tool image_generation; its partial_images are for a stream."""

    input: Annotated[Text, Field(min_length=1)] | Annotated[list[ChatMessage], Field(min_length=1)]
    instructions: Text | None = None
    tools: list[dict[str, Any]] | None = None
    stream: bool | None = None
    max_output_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] | None = None
    top_p: Share | None = None
    seed: Seed | None = None
    image_sampling: ImageSettings | None = None
    previous_response_id: str | None = None

    def drawing(self) -> dict[str, Any] | None:
        """The image_generation tool."""
        return next((tool for tool in self.tools or [] if tool.get("type") == DRAWING), None)

    def as_chat(self) -> ChatRequest:
        """The same as a request for a chat. Raises ApiError for what is not kept here."""
        if self.previous_response_id:
            raise unsupported("previous_response_id", "responses are not stored here; send the whole conversation")
        messages = [ChatMessage(role="user", content=self.input)] if isinstance(self.input, str) else list(self.input)
        text = (self.model_extra or {}).get("text")
        if isinstance(text, dict) and text.get("format") not in (None, {"type": "text"}):
            raise unsupported("text.format", "answers are plain text here")
        if self.instructions:
            messages.insert(0, ChatMessage(role="system", content=self.instructions))
        drawing = self.drawing()
        partial = (drawing or {}).get("partial_images")
        if not (partial is None or (type(partial) is int and 0 <= partial <= 64)):
            raise ApiError(422, "tools: partial_images is a number from 0 to 64", "tools", "invalid_value")
        return ChatRequest(
            messages=messages, model=self.model, stream=self.stream, max_tokens=self.max_output_tokens,
            temperature=self.temperature, top_p=self.top_p, seed=self.seed, image_sampling=self.image_sampling,
            modalities=["text"] if drawing is None else ["text", "image"], partial_images=partial,
        )  # fmt: skip


class Responding:
    """One request for a response."""

    def __init__(self, answering: Answering, request: ResponseRequest) -> None:
        self.answering, self.request = answering, request
        self.id, self.item = f"resp_{uuid.uuid4().hex}", f"msg_{uuid.uuid4().hex}"

    @property
    def answer(self) -> Answer:
        """The only one."""
        return self.answering.answers[0]

    def items(self) -> list[dict[str, Any]]:
        """Pictures and words as output items."""
        found: list[dict[str, Any]] = [self.picture(image) for image in self.answer.images]
        if self.answer.text or not found:
            text = {"type": "output_text", "text": self.answer.text, "annotations": []}
            found.append(
                {"type": "message", "id": self.item, "role": "assistant", "status": "completed", "content": [text]}
            )
        return found

    def picture(self, image: dict[str, Any]) -> dict[str, Any]:
        """A picture as the tool's call."""
        result = image["image_url"]["url"].split(",", 1)[1]
        call = {"type": f"{DRAWING}_call", "id": f"ig_{self.id}_{image['index']}", "status": "completed"}
        return {**call, "result": result, "output_format": "png", "unified": image["unified"]}

    def body(self, status: str) -> dict[str, Any]:
        """The response so far."""
        usage, done = self.answering.usage(), status != "in_progress"
        incomplete = {"reason": "max_output_tokens"} if done and self.answer.reason == "length" else None
        counts = {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
        counts |= {"total_tokens": usage.total_tokens}
        return {
            "id": self.id, "object": "response", "created_at": self.answering.created, "error": None,
            "status": "incomplete" if incomplete else status, "incomplete_details": incomplete,
            "model": self.request.model or self.answering.service.settings.model_name,
            "instructions": self.request.instructions, "metadata": {}, "parallel_tool_calls": False,
            "temperature": self.request.temperature, "top_p": self.request.top_p, "tool_choice": "auto",
            "tools": self.request.tools or [], "output": self.items() if done else [],
            "usage": {
                **counts, "input_tokens_details": usage.prompt_tokens_details,
                "output_tokens_details": {"reasoning_tokens": 0},
            } if done else None,
            "unified": without_nulls(self.note()),
        }  # fmt: skip

    def note(self) -> Unified:
        """What had no effect: unknown fields, and tools that are not called."""
        note, given = self.answering.note(), set(self.request.model_extra or {})
        given |= {"tools"} if any(tool.get("type") != DRAWING for tool in self.request.tools or []) else set()
        note.ignored = sorted(given) or None
        return note

    async def whole(self, http: Request) -> Response:
        """At once."""
        async with self.answering.submit() as answers:
            async for _ in self.answering.follow(answers, http):
                pass
            if answers.running:
                raise ApiError(499, "the client has gone", code="cancelled")
        return Response(json.dumps(self.body("completed")), media_type="application/json")

    async def stream(self, answers: Answers) -> AsyncIterator[ServerSentEvent]:
        """As OpenAI's events, numbered."""
        number = 0
        async with answers:
            try:
                async for event in self.events(answers):
                    yield sse({**event, "sequence_number": number})
                    number += 1
            except ApiError as error:
                body = error.body
                yield sse({"type": "error", "code": body.code, "message": body.message, "param": body.param,
                           "sequence_number": number})  # fmt: skip

    async def events(self, answers: Answers) -> AsyncIterator[dict[str, Any]]:
        """What happens, in order."""
        yield {"type": "response.created", "response": self.body("in_progress")}
        place = {"item_id": self.item, "output_index": 0, "content_index": 0}
        async for _, change in self.answering.follow(answers, None):
            if "content" in change:
                yield {"type": "response.output_text.delta", **place, "delta": change["content"], "logprobs": []}
            for image in change.get("images", ()):
                item = self.picture(image)
                index = {"output_index": image["index"]}
                yield {"type": f"response.{DRAWING}_call.completed", **index, "item_id": item["id"]}
                yield {"type": "response.output_item.done", **index, "item": item}
            if shown := change.get("unified", {}).get("partial_image"):
                yield {
                    "type": f"response.{DRAWING}_call.partial_image", "output_index": shown["index"],
                    "item_id": f"ig_{self.id}_{shown['index']}", "partial_image_index": shown["scale"],
                    "partial_image_b64": shown["url"].split(",", 1)[1],
                }  # fmt: skip
        if self.answer.text:
            yield {"type": "response.output_text.done", **place, "text": self.answer.text, "logprobs": []}
        body = self.body("completed")
        yield {"type": f"response.{body['status']}", "response": body}


def response_routes(service: Service) -> APIRouter:
    """The route /v1/responses."""
    router = APIRouter(prefix="/v1", tags=["responses"], responses=ERRORS)

    @router.post("/responses", responses=STREAM)
    async def responses(body: ResponseRequest, http: Request) -> Response:
        """Answer an input in words and, with the image_generation tool, pictures."""
        responding = Responding(await Answering.begin(service, body.as_chat()), body)
        if not body.stream:
            return await responding.whole(http)
        return EventSourceResponse(responding.stream(responding.answering.submit()), sep="\n")

    return router
