"""Requests and answers of `/v1/chat/completions`."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from unified.serving.protocol import ImageSettings, Request, Seed, Share, Unified

Text = Annotated[str, Field(max_length=2_000_000)]
Tokens = Annotated[int, Field(ge=1, le=2**31)]


class ImageUrl(BaseModel):
    """Where an image is: a data URI, or an http(s) URL where the server allows them."""

    model_config = ConfigDict(extra="allow", strict=True)
    url: str


class TextPart(BaseModel):
    """Words."""

    model_config = ConfigDict(extra="allow", strict=True)
    type: Literal["text", "input_text", "output_text"]
    text: Text


class ImagePart(BaseModel):
    """A picture."""

    model_config = ConfigDict(extra="allow", strict=True)
    type: Literal["image_url", "input_image"]
    image_url: ImageUrl | str


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(BaseModel):
    """A message; `images` are those of an answer, as this server gave them."""

    model_config = ConfigDict(extra="allow", strict=True)
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Text | list[Part] | None = None
    images: list[ImagePart] | None = None


def unread(messages: Sequence[ChatMessage]) -> set[str]:
    """Names of what messages hold and the model is not shown: who speaks, and how closely to look at a picture."""
    found = {"messages.name" for message in messages if (message.model_extra or {}).get("name")}
    parts = [part for message in messages if isinstance(message.content, list) for part in message.content]
    for part in (part for part in parts if isinstance(part, ImagePart)):
        beside = (part.model_extra or {}) | (
            part.image_url.model_extra or {} if isinstance(part.image_url, ImageUrl) else {}
        )
        if beside.get("detail") not in (None, "auto"):
            found.add("messages.image_url.detail")
    return found


def unread_sampling(settings: ImageSettings | None) -> set[str]:
    """Names of what a request's `image_sampling` holds and no picture is drawn by."""
    return {f"image_sampling.{name}" for name in (settings.model_extra or {})} if settings else set()


class StreamOptions(BaseModel):
    """Whether the last chunk of a stream counts tokens."""

    model_config = ConfigDict(extra="allow", strict=True)
    include_usage: bool | None = None


class ChatRequest(Request):
    """`POST /v1/chat/completions`.

    temperature, top_p, top_k: of text; greedy unless given. image_sampling: of pictures. n answers have the seeds
    seed, seed + 1, ... max_images: of an answer; 0 or modalities ["text"]: none; modalities ["image"]: one, and no
    words. partial_images: in a stream, the number of scales at which an unfinished picture is shown.
    """

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    temperature: Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)] | None = None
    top_p: Share | None = None
    top_k: Annotated[int, Field(ge=0, le=2**31)] | None = None
    n: Annotated[int, Field(ge=1, le=64)] | None = None
    stop: str | list[str] | None = None
    seed: Seed | None = None
    modalities: list[str] | None = None
    max_images: Annotated[int, Field(ge=0, le=64)] | None = None
    partial_images: Annotated[int, Field(ge=0, le=64)] | None = None
    image_sampling: ImageSettings | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    response_format: dict[str, Any] | None = None
    logprobs: bool | None = None

    def without_effect(self) -> set[str]:
        """Fields that change nothing here: unknown ones, and those of a stream without one."""
        of_stream = {"partial_images": self.partial_images, "stream_options": self.stream_options}
        idle = set() if self.stream else {name for name, value in of_stream.items() if value}
        return {*(self.model_extra or {}), *idle, *unread_sampling(self.image_sampling), *unread(self.messages)}

    @property
    def is_picture_alone(self) -> bool:
        """Whether the answer is one picture, whatever the model would say."""
        return bool(self.modalities) and set(self.modalities or ()) == {"image"}


class Usage(BaseModel):
    """Tokens of a request; a picture's codes count as one each."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: dict[str, int]
    completion_tokens_details: dict[str, int]


class Parts(BaseModel):
    """An answer's words and pictures in order, and its seed; a picture is an index into `message.images`."""

    parts: list[dict[str, Any]]
    seed: int


class AnswerMessage(BaseModel):
    """What the model said, all its words, and its pictures in order."""

    role: Literal["assistant"] = "assistant"
    content: str
    images: list[dict[str, Any]] | None = None
    refusal: None = None
    unified: Parts


class Choice(BaseModel):
    """One of n answers."""

    index: int
    message: AnswerMessage
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class ChatResponse(BaseModel):
    """The answer of `POST /v1/chat/completions`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: Usage
    unified: Unified
