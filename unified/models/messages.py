"""Conversations: messages with a role and a content of text and image parts. Pure functions of messages."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

SYSTEM_PROMPT = "You are a helpful assistant."
ROLES = ("system", "user", "assistant", "tool")
MORE_KEYS = ("weight", "name", "tool_calls", "tool_call_id")  # of a message, beside role and content

Message = Mapping[str, Any]
_PLAIN = {"role", "content"}
_OBJECT = (dict, Mapping)  # dict first: of a million parts, Mapping's own check takes most of the time


def with_system_prompt(messages: Sequence[Message], prompt: str | None) -> list[Message]:
    """Prepend `prompt` as system message unless there is one, so that no chat template adds its default."""
    if not messages:
        raise ValueError("the conversation has no messages; give at least one")
    has_system = messages[0]["role"] == "system"
    return [*messages] if has_system or not prompt else [{"role": "system", "content": prompt}, *messages]


def continue_conversation(messages: Sequence[Message], following: Sequence[Message]) -> list[Message]:
    """`messages` followed by the messages of another conversation, without its system message."""
    return [*messages, *(message for message in following if message["role"] != "system")]


def content_parts(message: Any, where: str = "", beside: str = "") -> list[dict[str, Any]]:
    """Content parts of a message; a plain string is one text part. Null values count as missing.

    Args:
        where: `file:line` of the message, which errors begin with.
        beside: for messages on disk: says where their images lie. Parts may then have no keys but `type` and `text`,
            and are returned with both.

    Raises ValueError for unknown keys, roles (templates would render them between special tokens) or parts.
    """
    start = f"{where}: " if where else ""
    keys = {key for key, value in message.items() if value is not None} if isinstance(message, _OBJECT) else set()
    calls = "tool_calls" in keys
    if not {"role", "content"} <= keys and not (calls and "role" in keys):
        takes = "it takes 'role' and 'content'"
        raise ValueError(f"{start}message {shorten(message)} lacks `role` or `content`; {takes}")
    role, content = message["role"], message["content"] if "content" in keys else []
    if role not in ROLES:
        raise ValueError(f"{start}role {shorten(role)}; choose from {', '.join(ROLES)}")
    if keys != _PLAIN:
        _check_keys(message, keys, start)
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, list | Sequence):
        raise ValueError(f"{start}content {shorten(content)} of role {role}; give a string or a list of parts")
    for part in content:
        if not _is_part(part, only_text=bool(beside)):
            text, image = '{"type": "text", "text": "..."}', '{"type": "image"}'
            raise ValueError(f"{start}part {shorten(part)}; write {text} or {image}{beside and f' ({beside})'}")
        if part["type"] == "text":
            check_text(part["text"], start)
    return [{"type": part["type"], "text": part.get("text")} for part in content] if beside else list(content)


def _check_keys(message: Message, keys: set[str], start: str) -> None:
    """Raise ValueError for keys beside role and content that nothing honours, and for values that they do not take."""
    unknown = sorted(map(str, keys - {"role", "content", *MORE_KEYS}))
    if unknown:
        known = {"reasoning_content", "thinking", "reasoning"} & set(unknown)
        remedy = "thoughts are not trained here: take them out" if known else "take it out, or put it into `metadata`"
        raise ValueError(
            f"{start}message {shorten(message)} has the key {unknown[0]!r}, which nothing honours; it takes 'role', "
            f"'content', {', '.join(map(repr, MORE_KEYS))}: {remedy}"
        )
    role = message["role"]
    if "weight" in keys and (message["weight"] not in (0, 1) or (message["weight"] == 1 and role != "assistant")):
        raise ValueError(
            f"{start}weight {shorten(message['weight'])} of a turn of {role}; an answer that is not to be trained has "
            "weight 0, others 1 or none"
        )
    for key, owner in (("tool_calls", "assistant"), ("tool_call_id", "tool")):
        if key in keys and role != owner:
            raise ValueError(f"{start}{key} in a turn of {role}; it belongs into one of {owner}")
    for key in ("name", "tool_call_id"):
        if key in keys and not isinstance(message[key], str):
            raise ValueError(f"{start}{key} {shorten(message[key])}; give a string")


def check_text(text: str, start: str = "") -> None:
    """Raise ValueError for half a surrogate pair, which no tokenizer and no file takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        near = text[max(error.start - 20, 0) : error.start + 20]
        raise ValueError(
            f"{start}character {error.start + 1} is half a surrogate pair ({near!r}); write the whole character, or "
            "take it out"
        ) from None


def _is_part(part: Any, only_text: bool) -> bool:
    keys = {key for key, value in part.items() if value is not None} if isinstance(part, _OBJECT) else set()
    if "type" not in keys or part["type"] not in ("text", "image"):
        return False
    expected = {"type", "text"} if part["type"] == "text" else {"type"}
    if part["type"] == "text" and not isinstance(part.get("text"), str):
        return False
    return keys == expected or not only_text


def is_trained(message: Message) -> bool:
    """Whether an answer is trained: one with `weight` 0 is not."""
    return message.get("weight") != 0


def shorten(value: Any, width: int = 80) -> str:
    """`repr` of a value for an error message, cut off after `width` characters."""
    text = repr(value)
    return text if len(text) <= width else f"{text[: width - 3]}..."


def is_output(message: Message) -> bool:
    """Whether the message's images are output images (the assistant's) rather than input images."""
    return message["role"] == "assistant"


def count_images(messages: Iterable[Message]) -> int:
    """Number of image parts of a conversation."""
    return sum(part["type"] == "image" for message in messages for part in content_parts(message))


def is_text_to_image(messages: Sequence[Message]) -> bool:
    """Whether a conversation ends with a text-only user message that is answered by exactly one image."""
    return draws_once(messages) and [part["type"] for part in content_parts(messages[-1])] == ["image"]


def draws_once(messages: Sequence[Message]) -> bool:
    """As `is_text_to_image`, where the answer may have words beside its one image."""
    if len(messages) < 2 or messages[-2]["role"] != "user" or not is_output(messages[-1]):
        return False
    return not count_images(messages[-2:-1]) and count_images(messages[-1:]) == 1
