"""Conversations: messages with a role and a content of text and image parts. Pure functions of messages."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

SYSTEM_PROMPT = "You are a helpful assistant."
ROLES = ("system", "user", "assistant", "tool")

Message = Mapping[str, Any]


def supports_system_prompt(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template of `tokenizer` accepts a system message."""
    if not tokenizer.chat_template:
        return False  # the constructor raises the error
    chat = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": "Hello."}]
    try:
        return bool(tokenizer.apply_chat_template(chat, tokenize=False))
    except TemplateError:
        return False


def with_system_prompt(messages: Sequence[Message], prompt: str | None) -> list[Message]:
    """Prepend `prompt` as system message unless there is one, so that no chat template adds its default."""
    if not messages:
        raise ValueError("the conversation has no messages; give at least one")
    has_system = messages[0]["role"] == "system"
    return [*messages] if has_system or not prompt else [{"role": "system", "content": prompt}, *messages]


def continue_conversation(messages: Sequence[Message], following: Sequence[Message]) -> list[Message]:
    """`messages` followed by the messages of another conversation, without its system message."""
    return [*messages, *(message for message in following if message["role"] != "system")]


def content_parts(message: Message) -> list[dict[str, Any]]:
    """Content parts of a message; a plain string is one text part.

    Raises ValueError for unknown keys, roles (templates would render them between special tokens) or parts.
    """
    if set(message) != {"role", "content"}:
        raise ValueError(f"a message has keys {sorted(message)}; it takes 'role' and 'content' only")
    if message["role"] not in ROLES:
        raise ValueError(f"a message has role {message['role']!r}; choose from {', '.join(ROLES)}")
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else list(content)
    for part in parts:
        if part["type"] not in ("text", "image"):
            raise ValueError(f"a content part has type {part['type']!r}; parts are of type 'text' or 'image'")
        if part["type"] == "text" and not isinstance(part["text"], str):
            raise ValueError(f"a text part holds {part['text']!r}; give it a string")
    return parts


def is_output(message: Message) -> bool:
    """Whether the message's images are output images (the assistant's) rather than input images."""
    return message["role"] == "assistant"


def count_images(messages: Iterable[Message]) -> int:
    """Number of image parts of a conversation."""
    return sum(part["type"] == "image" for message in messages for part in content_parts(message))


def is_text_to_image(messages: Sequence[Message]) -> bool:
    """Whether a conversation ends with a text-only user message that is answered by exactly one image."""
    if len(messages) < 2 or messages[-2]["role"] != "user" or not is_output(messages[-1]):
        return False
    return not count_images(messages[-2:-1]) and [part["type"] for part in content_parts(messages[-1])] == ["image"]
