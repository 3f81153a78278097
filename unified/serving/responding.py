"""`/v1/responses`, as far as clients use it: input in words and pictures, answers with the image_generation tool."""

import json
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field
from sse_starlette import ServerSentEvent

from unified.serving.answering import NO_TOOLS, Answer, Answering
from unified.serving.chat_protocol import ChatMessage, ChatRequest, ImagePart, Text, Tokens, unread, unread_sampling
from unified.serving.conversation import parts_of
from unified.serving.drawing import ERRORS, JSON, STREAM, sse
from unified.serving.errors import ApiError, unsupported
from unified.serving.protocol import ImageSettings, Seed, Share, without_nulls
from unified.serving.protocol import Request as ApiRequest
from unified.serving.service import Answers, AnswerStream, Service

DRAWING = "image_generation"
NOT_STORED = "responses are not stored here; send the whole conversation"


class DrawnItem(BaseModel):
    """A picture of an answer, as this server gave it."""

    model_config = ConfigDict(extra="allow", strict=True)
    type: Literal["image_generation_call"]
    result: str


class ResponseRequest(ApiRequest):
    """`POST /v1/responses`. Pictures need the tool image_generation; its partial_images are for a stream.

    input: words, or messages and an answer's output items as they came.
    """

    input: Annotated[Text, Field(min_length=1)] | Annotated[list[ChatMessage | DrawnItem], Field(min_length=1)]
    instructions: Text | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    stream: bool | None = None
    max_output_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] | None = None
    top_p: Share | None = None
    seed: Seed | None = None
    image_sampling: ImageSettings | None = None
    previous_response_id: str | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None

    def drawing(self) -> dict[str, Any] | None:
        """The image_generation tool."""
        return next((tool for tool in self.tools or [] if tool.get("type") == DRAWING), None)

    def modalities(self) -> list[str]:
        """What is answered with, as a chat has it; a choice of the tool asks for a picture alone."""
        choice = self.tool_choice.get("type") if isinstance(self.tool_choice, dict) else self.tool_choice
        if choice in (None, "auto"):
            return ["text"] if self.drawing() is None else ["text", "image"]
        if choice == "none":
            return ["text"]
        if choice not in ("required", DRAWING) or self.drawing() is None:
            raise unsupported("tool_choice", NO_TOOLS)
        return ["image"]

    def as_chat(self) -> ChatRequest:
        """The same as a request for a chat. Raises ApiError for what is not kept here."""
        for name in ("previous_response_id", "conversation", "prompt"):
            if getattr(self, name):
                raise unsupported(name, NOT_STORED)
        items = [ChatMessage(role="user", content=self.input)] if isinstance(self.input, str) else self.input
        messages = joined(items)
        text = (self.model_extra or {}).get("text")
        if isinstance(text, dict) and text.get("format") not in (None, {"type": "text"}):
            raise unsupported("text.format", "answers are plain text here")
        if self.instructions:
            messages.insert(0, ChatMessage(role="system", content=self.instructions))
        partial = (self.drawing() or {}).get("partial_images")
        if not (partial is None or (type(partial) is int and 0 <= partial <= 64)):
            raise ApiError(422, "tools: partial_images is a number from 0 to 64", "tools", "invalid_value")
        return ChatRequest(
            messages=messages, model=self.model, stream=self.stream, max_tokens=self.max_output_tokens,
            temperature=self.temperature, top_p=self.top_p, seed=self.seed, image_sampling=self.image_sampling,
            modalities=self.modalities(), partial_images=partial,
        )  # fmt: skip

    def without_effect(self) -> set[str]:
        """Fields that change nothing here: unknown ones, tools that are not called, and settings of that which is."""
        others = {"tools"} if any(tool.get("type") != DRAWING for tool in self.tools or []) else set()
        honoured = {"type", "partial_images"} if self.stream else {"type"}
        settings = {f"tools.{name}" for name in self.drawing() or {} if name not in honoured}
        said = [item for item in self.input if isinstance(item, ChatMessage)]
        inside = {*unread_sampling(self.image_sampling), *unread(said)}
        return {*(self.model_extra or {}), *others, *settings, *inside}


def joined(items: Sequence[ChatMessage | DrawnItem]) -> list[ChatMessage]:
    """Messages, in which output items that follow each other are one answer."""
    messages: list[ChatMessage] = []
    for item in items:
        if isinstance(item, DrawnItem):
            part = ImagePart(type="input_image", image_url=f"data:image/png;base64,{item.result}")
            item = ChatMessage(role="assistant", content=[part])
        if item.role == "assistant" and messages and messages[-1].role == "assistant":
            both = [*parts_of(messages.pop()), *parts_of(item)]
            item = ChatMessage(role="assistant", content=both)
        messages.append(item)
    return messages


class Output:
    """The output items of a response as they grow, and the events that say so."""

    def __init__(self, response_id: str) -> None:
        self.id = response_id
        self.items: list[dict[str, Any]] = []
        self.message: int | None = None  # the place of the one that words go to
        self.pictures: dict[int, int] = {}  # places, by the picture's number

    def hear(self, change: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Events of a change of the answer, as `Answering.follow` gives it."""
        events = self.say(change["content"]) if "content" in change else []
        for image in change.get("images", ()):
            events += self.show(image)
        if shown := change.get("unified", {}).get("partial_image"):
            events += self.begin_picture(shown["index"])
            picture = {"partial_image_index": shown["scale"], "partial_image_b64": shown["url"].split(",", 1)[1]}
            events.append(self.event(f"{DRAWING}_call.partial_image", self.pictures[shown["index"]], **picture))
        return events

    def event(self, kind: str, place: int, **more: Any) -> dict[str, Any]:
        """An event of the item at `place`."""
        return {"type": f"response.{kind}", "item_id": self.items[place]["id"], "output_index": place, **more}

    def begin(self, item: dict[str, Any], prefix: str) -> dict[str, Any]:
        """Another item, with its event."""
        place = len(self.items)
        self.items.append({"id": f"{prefix}_{self.id}_{place}", "status": "in_progress", **item})
        return {"type": "response.output_item.added", "output_index": place, "item": dict(self.items[place])}

    def end(self, place: int, **more: Any) -> dict[str, Any]:
        """The event of an item that is complete."""
        self.items[place] |= {"status": "completed", **more}
        return {"type": "response.output_item.done", "output_index": place, "item": dict(self.items[place])}

    def say(self, text: str) -> list[dict[str, Any]]:
        """Words, of a message that is begun where there is none."""
        events: list[dict[str, Any]] = []
        if self.message is None:
            events.append(self.begin({"type": "message", "role": "assistant", "content": []}, "msg"))
            self.message = len(self.items) - 1
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            self.items[self.message]["content"] = [part]
            events.append(self.event("content_part.added", self.message, content_index=0, part=dict(part)))
        self.items[self.message]["content"][0]["text"] += text
        if text:
            delta = self.event("output_text.delta", self.message, content_index=0, delta=text, logprobs=[])
            events.append(delta)
        return events

    def end_message(self, status: str = "completed") -> list[dict[str, Any]]:
        """No more words before the next picture, or at all."""
        if self.message is None:
            return []
        place, self.message = self.message, None
        (part,) = self.items[place]["content"]
        return [
            self.event("output_text.done", place, content_index=0, text=part["text"], logprobs=[]),
            self.event("content_part.done", place, content_index=0, part=part),
            self.end(place, status=status),
        ]

    def begin_picture(self, number: int) -> list[dict[str, Any]]:
        """A picture, unless it has begun."""
        if number in self.pictures:
            return []
        added = self.begin({"type": f"{DRAWING}_call", "result": None}, "ig")
        place = self.pictures[number] = len(self.items) - 1
        return [added, *(self.event(f"{DRAWING}_call.{state}", place) for state in ("in_progress", "generating"))]

    def show(self, image: Mapping[str, Any]) -> list[dict[str, Any]]:
        """A whole picture, behind the words that were said."""
        events = [*self.end_message(), *self.begin_picture(image["index"])]
        place, result = self.pictures[image["index"]], image["image_url"]["url"].split(",", 1)[1]
        done = self.end(place, result=result, output_format="png", unified=image["unified"])
        return [*events, self.event(f"{DRAWING}_call.completed", place), done]

    def finish(self, status: str) -> list[dict[str, Any]]:
        """Nothing more is to come; an answer of nothing is an empty message, of `status`."""
        events = [] if self.items else self.say("")
        return [*events, *self.end_message(status)]


class Responding:
    """One request for a response."""

    def __init__(self, answering: Answering, request: ResponseRequest) -> None:
        self.answering, self.request = answering, request
        self.id = f"resp_{uuid.uuid4().hex}"
        self.output = Output(self.id)

    @property
    def answer(self) -> Answer:
        """The only one."""
        return self.answering.answers[0]

    @property
    def status(self) -> str:
        """Of the answer once it has ended."""
        return "incomplete" if self.answer.reason == "length" else "completed"

    def body(self, status: str) -> dict[str, Any]:
        """The response so far."""
        usage, done = self.answering.usage(), status != "in_progress"
        counts = {"input_tokens": usage.prompt_tokens, "output_tokens": usage.completion_tokens}
        counts |= {"total_tokens": usage.total_tokens}
        note = self.answering.note()
        note.ignored = sorted(self.request.without_effect()) or None
        return {
            "id": self.id, "object": "response", "created_at": self.answering.created, "error": None,
            "status": status, "model": self.request.model or self.answering.service.settings.model_name,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": self.request.instructions, "metadata": {}, "parallel_tool_calls": False,
            "temperature": self.request.temperature, "top_p": self.request.top_p,
            "tool_choice": self.request.tool_choice or "auto",
            "tools": self.request.tools or [], "output": self.output.items if done else [],
            "usage": {
                **counts, "input_tokens_details": usage.prompt_tokens_details,
                "output_tokens_details": {"reasoning_tokens": 0},
            } if done else None,
            "unified": without_nulls(note),
        }  # fmt: skip

    async def whole(self, http: Request) -> Response:
        """At once."""
        async with self.answering.submit() as answers:
            async for _, change in self.answering.follow(answers, http):
                self.output.hear(change)
            if answers.running:
                raise ApiError(499, "the client has gone", code="cancelled")
        self.output.finish(self.status)
        return Response(json.dumps(self.body(self.status)), media_type="application/json")

    async def stream(self, answers: Answers) -> AsyncIterator[ServerSentEvent]:
        """As OpenAI's events, numbered."""
        number = 0
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
        for state in ("created", "in_progress"):
            yield {"type": f"response.{state}", "response": self.body("in_progress")}
        async for _, change in self.answering.follow(answers, None):
            for event in self.output.hear(change):
                yield event
        for event in self.output.finish(self.status):
            yield event
        yield {"type": f"response.{self.status}", "response": self.body(self.status)}


def response_routes(service: Service) -> APIRouter:
    """The route /v1/responses."""
    router = APIRouter(prefix="/v1", tags=["responses"], responses=ERRORS)

    @router.post("/responses", responses=STREAM, dependencies=JSON)
    async def responses(body: ResponseRequest, http: Request) -> Response:
        """Answer an input in words and, with the image_generation tool, pictures."""
        responding = Responding(await Answering.begin(service, body.as_chat(), http.state.owner), body)
        if not body.stream:
            return await responding.whole(http)
        answers = responding.answering.submit()
        return AnswerStream(answers, responding.stream(answers))

    return router
