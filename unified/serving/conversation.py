"""Messages of OpenAI's API as the model's: roles, words and pictures, and the codes of these.

Legend: L codes of an image.
"""

import asyncio
from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from unified.models.messages import Message
from unified.serving.chat_protocol import ChatMessage, ImagePart, TextPart
from unified.serving.errors import ApiError
from unified.serving.pictures import read_url
from unified.serving.service import Service

ROLES = {"developer": "system", "function": "tool"}
OF_TOOLS = ("tool_calls", "tool_call_id")


def check_sizes(messages: Sequence[ChatMessage], service: Service) -> None:
    """Raise ApiError for conversations that are larger than the server takes."""
    limits = service.settings
    if len(messages) > limits.max_messages:
        message = f"messages: {len(messages)} are more than {limits.max_messages}"
        raise ApiError(422, message, "messages", "too_many_messages")
    characters = sum(
        len(part.text) for message in messages for part in parts_of(message) if isinstance(part, TextPart)
    )
    if characters > limits.max_prompt_characters:
        message = f"messages: {characters} characters are more than {limits.max_prompt_characters}"
        raise ApiError(422, message, "messages", "string_too_long")
    images = sum(isinstance(part, ImagePart) for message in messages for part in parts_of(message))
    if images > limits.max_input_images:
        message = f"messages: {images} images are more than {limits.max_input_images}"
        raise ApiError(422, message, "messages", "too_many_images")


def parts_of(message: ChatMessage) -> list[TextPart | ImagePart]:
    """A message's parts in order; null content is none.

    The images of an answer stand where its `unified.parts` say, or behind its words where these are of other words.
    """
    content = message.content
    if content is None or isinstance(content, str):
        parts: list[TextPart | ImagePart] = [TextPart(type="text", text=content)] if content else []
    else:
        parts = list(content)
    images = message.images or []
    return parts_said(message, parts, images) or [*parts, *images]


def parts_said(message: ChatMessage, words: Sequence[Any], images: Sequence[ImagePart]) -> list[Any] | None:
    """An answer's `words` and `images` in the order that this server gave with it; None where they are others."""
    given = (message.model_extra or {}).get("unified")
    said = given.get("parts") if isinstance(given, dict) and message.role == "assistant" else None
    parts: list[TextPart | ImagePart] = []
    shown: list[int] = []
    for part in said if isinstance(said, list) else ():
        match part:
            case {"type": "text", "text": str(text)}:
                parts.append(TextPart(type="text", text=text))
            case {"type": "image", "index": int(index)} if 0 <= index < len(images):
                parts.append(images[index])
                shown.append(index)
            case _:
                return None
    texts = ["".join(part.text for part in some if isinstance(part, TextPart)) for some in (words, parts)]
    is_same = texts[0] == texts[1] and shown == [*range(len(images))]
    return parts if is_same and all(isinstance(part, TextPart) for part in words) else None


async def read_messages(messages: Sequence[ChatMessage], service: Service) -> tuple[list[Message], list[Tensor]]:
    """Messages as the processor takes them, and the codes (L,) of their pictures in order.

    A picture of an answer that was drawn here has the codes that it was drawn from; others are encoded.
    """
    check_sizes(messages, service)
    found: list[Message] = []
    pictures: list[tuple[Image.Image, bool]] = []
    for number, message in enumerate(messages):
        content: list[dict[str, Any]] = []
        for place, part in enumerate(parts_of(message)):
            if isinstance(part, TextPart):
                content.append({"type": "text", "text": part.text})
                continue
            url = part.image_url if isinstance(part.image_url, str) else part.image_url.url
            where = f"messages.{number}.content.{place}"
            image = await asyncio.to_thread(read_square, url, where, service)
            pictures.append((image, message.role == "assistant"))
            content.append({"type": "image"})
        told = {key: held for key, held in (message.model_extra or {}).items() if key in OF_TOOLS and held is not None}
        found.append({"role": ROLES.get(message.role, message.role), "content": content, **told})
    return merge_system(found), await codes_of(pictures, service)


def ids_with_tools(
    messages: Sequence[Message], codes: Sequence[Tensor], tools: list[Any] | None, service: Service
) -> tuple[list[int], bool]:
    """Ids of a conversation, and whether they hold its tools and calls, as a chat template may not write them."""
    plain = [{"role": message["role"], "content": message["content"]} for message in messages]
    if tools or plain != messages:
        try:
            return service.prompt_ids(messages, codes, tools), True
        except ApiError:  # what else is wrong is said of the plain conversation
            pass
    return service.prompt_ids(plain, codes), False


def read_square(url: str, where: str, service: Service) -> Image.Image:
    """An image as the model reads it, small at once: many of a conversation's large ones would fill the memory."""
    return service.engine.processor.image_processor.to_square(read_url(url, where, service.settings))


def merge_system(messages: list[Message]) -> list[Message]:
    """Several system messages at the beginning as one, as chat templates take only one."""
    count = next((n for n, message in enumerate(messages) if message["role"] != "system"), len(messages))
    if count < 2:
        return messages
    texts = [part for message in messages[:count] for part in [*message["content"], {"type": "text", "text": "\n\n"}]]
    return [{"role": "system", "content": texts[:-1]}, *messages[count:]]


async def codes_of(pictures: Sequence[tuple[Image.Image, bool]], service: Service) -> list[Tensor]:
    """Codes (L,) of pictures, each with whether it is an answer's."""
    known = [service.known.find(image) if drawn else None for image, drawn in pictures]
    missing = [image for (image, _), codes in zip(pictures, known, strict=True) if codes is None]
    encoded = iter(await service.encode(missing))
    return [next(encoded) if codes is None else codes for codes in known]
