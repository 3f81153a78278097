"""Forms in which people publish rows, as `{messages, images, tools, metadata, source}`. Pure functions of records.

Read are Hugging Face's `messages` with `images`, a picture inside its part, ShareGPT's `conversations`, LLaVA's
`<image>` strings, and captions (`image` with `text` or `caption`). A key that nothing honours is refused.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from unified.files.image_sources import as_data_uri
from unified.models.messages import ROLES, Message, content_parts, shorten
from unified.models.tools import as_json, read_tool_calls, read_tools

BESIDE = "its file goes into `images`, or into the part as `image`"
CAPTIONS = ("text", "caption")
CHAT = "give a list of {role, content} as Hugging Face chats have"
IMAGE_MARK = "<image>"
NOTES = ("id", "idx", "prompt_id", "dataset", "split", "category", "model", "language", "license")  # into `metadata`
PICTURE_KEYS = ("image", "path", "url", "base64", "image_url")  # of an image part
SPEAKERS = dict.fromkeys(("human", "user"), "user")
SPEAKERS |= dict.fromkeys(("gpt", "assistant", "chatgpt", "bard", "bing", "model"), "assistant")
SPEAKERS |= dict.fromkeys(("tool", "observation", "function"), "tool") | {"system": "system"}
_ROW = ("messages", "images", "tools", "metadata", "source")
_MARK = re.compile(rf"\n?{IMAGE_MARK}\n?")


def as_row(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record as `{messages, images, tools, metadata, source}`; messages are parts, images stand in their order.

    `tools`, and `tool_calls` of messages, are JSON, as files hold them. Raises ValueError for what nothing honours.
    """
    given = {key: value for key, value in record.items() if value is not None}
    if "chosen" in given or "rejected" in given:
        raise ValueError("a preference pair (`chosen`, `rejected`), no chat; it trains with recipes/dpo.py")
    marked = False
    if "messages" in given:
        messages = given.pop("messages")
        if repeats(given.get("prompt"), messages):
            del given["prompt"]  # as some have it beside the conversation
    elif "conversations" in given:
        messages, marked = given.pop("conversations"), True
        messages = [_spoken(turn) for turn in messages] if isinstance(messages, list) else messages
    else:
        messages = _caption_chat(given)
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{_instead_of_messages(record, messages)}; {CHAT}")
    if "system" in given:
        messages = with_system(messages, given.pop("system"))
    pictures = pop_pictures(given)
    messages, pictures = place(messages, pictures, marked)
    notes = {key: given.pop(key) for key in NOTES if key in given}
    check_unknown(given, _ROW, "`messages`")
    return {
        "messages": messages,
        "images": pictures,
        "tools": as_json(read_tools(given.get("tools"))),
        "metadata": metadata_of(given.get("metadata"), notes),
        "source": given.get("source"),
    }


def _instead_of_messages(record: Mapping[str, Any], found: Any) -> str:
    """What a row without a conversation has in its place."""
    if "completion" in record and "label" in record:
        return "no `messages` but a rated answer (`completion`, `label`), which is no chat"
    if "completion" in record:
        return "no `messages` but `prompt` and `completion`"
    if found is not None and found != []:
        return f"no `messages` but {shorten(found)} in their place"
    return f"no `messages` among the keys {', '.join(map(str, record)) or '(none)'}"


def check_unknown(given: Mapping[str, Any], known: Sequence[str], beside: str) -> None:
    """Raise ValueError for a key of a row that is not known."""
    unknown = [key for key in given if key not in known]
    if unknown:
        raise ValueError(
            f"the key {unknown[0]!r} ({shorten(given[unknown[0]], 40)}) beside {beside}, which nothing honours; "
            "take it out, or put it into `metadata`"
        )


def repeats(prompt: Any, messages: Any) -> bool:
    """Whether a column `prompt` says what the first question of a conversation does."""
    turns = messages if isinstance(messages, list) else []
    asked = (turn.get("content") for turn in turns if isinstance(turn, Mapping) and turn.get("role") == "user")
    first = next(asked, None)
    return isinstance(prompt, str) and isinstance(first, str) and prompt.strip() == first.strip()


def metadata_of(value: Any, notes: Mapping[str, Any]) -> str:
    """A row's metadata as JSON, with what is noted beside it; text that is no object is kept when there is nothing."""
    if isinstance(value, str) and not notes:
        return value
    try:
        held = json.loads(value) if isinstance(value, str) else {} if value is None else value
    except json.JSONDecodeError:
        held = value  # words
    held = held if isinstance(held, Mapping) else {"metadata": held}
    for key in (key for key in notes if key in held and held[key] != notes[key]):
        raise ValueError(
            f"{key!r} {shorten(notes[key], 40)} beside {shorten(held[key], 40)} in `metadata`; keep one of them"
        )
    return json.dumps({**notes, **held}, default=str)


def pop_pictures(given: dict[str, Any]) -> list[Any]:
    """The pictures of `images` or `image`, which are taken out of the record."""
    if "images" in given and "image" in given:
        raise ValueError("both `images` and `image`; give one of them")
    found = given.pop("images", given.pop("image", []))
    found = [found] if isinstance(found, str | bytes | Mapping) else found
    if not isinstance(found, list):
        raise ValueError(f"`images` {shorten(found)}; give a list of paths, or of {{bytes, path}} (parquet)")
    return [*found]


def with_system(messages: list[Any], prompt: Any) -> list[Any]:
    """Messages behind a system message of a column of its own; empty is none."""
    first = messages[0]
    if isinstance(first, Mapping) and first.get("role") == "system":
        raise ValueError("both a key `system` and a system message; keep one of them")
    return [{"role": "system", "content": prompt}, *messages] if prompt else messages


def _spoken(turn: Any) -> Any:
    """A turn `{from, value}` as `{role, content}`; others as they are."""
    if not isinstance(turn, Mapping) or "from" not in turn:
        return turn
    for ours, theirs in (("from", "role"), ("value", "content")):
        if turn.get(ours) is not None and turn.get(theirs) is not None:
            raise ValueError(f"a turn with both {ours!r} and {theirs!r}; keep one of them")
    rest = {key: value for key, value in turn.items() if key not in ("from", "value", "role")}
    content = turn.get("value") if turn.get("value") is not None else rest.get("content")
    speaker = turn["from"]
    if not isinstance(speaker, str) or speaker not in SPEAKERS:
        raise ValueError(f"a turn from {shorten(speaker)}; choose from {', '.join(SPEAKERS)}")
    return {"role": SPEAKERS[speaker], **rest, "content": content}


def _caption_chat(given: dict[str, Any]) -> Any:
    """The chat of a picture with its caption, which are taken out of the record: the caption asks for the picture."""
    columns = [name for name in CAPTIONS if name in given]
    pictures = given.get("images", given.get("image"))
    if len(columns) != 1 or pictures is None or (isinstance(pictures, list) and len(pictures) != 1):
        return None
    caption = given.pop(columns[0])
    caption = caption[0] if isinstance(caption, list) and len(caption) == 1 else caption
    if not isinstance(caption, str) or not caption.strip():
        raise ValueError(
            f"{columns[0]} {shorten(caption)} is no caption; write some words. Of several captions a picture makes "
            "several rows: repeat it, or use data_prep/convert_captions.py"
        )
    return [{"role": "user", "content": caption.strip()}, {"role": "assistant", "content": [{"type": "image"}]}]


# --- pictures at their places


def place(
    messages: list[Any], pictures: list[Any], marked: bool = False, strings: bool | None = None
) -> tuple[list[dict[str, Any]], list[Any]]:
    """Messages with parts of `type` and `text` alone, and a picture for every image part, in their order.

    Pictures stand inside their parts, or in `pictures` for the parts without one: by their `index`, else in order.
    Where no part is an image, texts may mark their places with `<image>`, as LLaVA's do (`marked`: always do), and
    pictures of chats all in `strings` without marks are shown before the first question, as TRL reads them.
    Raises ValueError for places without a picture, and pictures without a place.
    """
    turns = [with_parts(message) for message in messages]
    if not any(_is_image(part) for turn in turns for part in turn["content"]):
        if marked or pictures:
            turns = [turn | {"content": _at_marks(turn["content"])} for turn in turns]
        if strings is None:
            strings = all(isinstance(message.get("content") or "", str) for message in messages)
        if pictures and strings and not marked and not any(_is_image(p) for turn in turns for p in turn["content"]):
            turns = _before_question(turns, len(pictures))
    elif any(IMAGE_MARK in str(part.get("text")) for turn in turns for part in turn["content"] if type(part) is dict):
        raise ValueError(f"a text says {IMAGE_MARK} beside image parts; take it out, or leave the parts out")
    found: list[Any] = []
    taken: set[int] = set()
    for part in (part for turn in turns for part in turn["content"] if _is_image(part)):
        inside = {key: part.pop(key) for key in PICTURE_KEYS if part.get(key) is not None}
        index = part.pop("index", None)
        if inside:
            if index is not None:
                raise ValueError(f"an image part with both {next(iter(inside))!r} and 'index'; keep one of them")
            found.append(_inside(inside))
            continue
        index = len(taken) if index is None else index
        if isinstance(index, int) and 0 <= index < len(pictures):
            found.append(pictures[index])
            taken.add(index)
    checked = [on_disk(turn) for turn in turns]
    count = sum(part["type"] == "image" for turn in checked for part in turn["content"])
    if len(found) != count or len(taken) != len(pictures):
        inner = f", {len(found) - len(taken)} pictures inside of parts" if len(found) > len(taken) else ""
        raise ValueError(f"{count} image parts in `messages` but {len(pictures)} `images`{inner}; give one each")
    return checked, found


def with_parts(message: Any) -> dict[str, Any]:
    """A message whose content is a list, with image parts of every form as `{"type": "image", …}`."""
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        content_parts(message)  # says what is wrong
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": [{"type": "text", "text": content}]}
    if content is None:
        return {**message, "content": []} if message.get("tool_calls") else _named(message)
    if not isinstance(content, list):
        return _named(message)
    parts = [
        {**part, "type": "image"} if isinstance(part, Mapping) and part.get("type") == "image_url" else part
        for part in content
    ]
    return {**message, "content": [{**part} if isinstance(part, Mapping) else part for part in parts]}


def _named(message: Message) -> dict[str, Any]:
    return {**message, "content": content_parts(message)}  # raises ValueError


def _is_image(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "image"  # `with_parts` makes dicts of all objects


def _at_marks(parts: list[Any]) -> list[Any]:
    """Parts whose texts are cut at every `<image>`; a line break beside it goes with it."""
    result: list[Any] = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) else None
        if not isinstance(text, str) or IMAGE_MARK not in text:
            result.append(part)
            continue
        for number, piece in enumerate(_MARK.split(text)):
            result += [{"type": "image"}] * (number > 0) + [{"type": "text", "text": piece}] * bool(piece)
    return result


def _before_question(turns: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    first = next((number for number, turn in enumerate(turns) if turn["role"] == "user"), None)
    if first is None:
        return turns
    images = [{"type": "image"} for _ in range(count)]
    shown = turns[first] | {"content": [*images, *turns[first]["content"]]}
    return [*turns[:first], shown, *turns[first + 1 :]]


def _inside(given: Mapping[str, Any]) -> Any:
    """The picture of a part's only key for one; in OpenAI's form that is an object with a `url`."""
    if len(given) > 1:
        raise ValueError(f"an image part with both {' and '.join(map(repr, given))}; keep one of them")
    ((key, picture),) = given.items()
    if key == "base64" and isinstance(picture, str):
        return as_data_uri(picture)
    if isinstance(picture, Mapping) and "url" in picture:
        more = {name: held for name, held in picture.items() if held is not None and name not in ("url", "detail")}
        check_unknown(more, (), "`url`")  # `detail` says how finely OpenAI's models look
        return picture["url"]
    return picture


def on_disk(turn: dict[str, Any]) -> dict[str, Any]:
    """A checked message as files hold it."""
    content = content_parts(turn, beside=BESIDE)
    kept = {key: value for key, value in turn.items() if key not in ("content", "tool_calls") and value is not None}
    calls = as_json(read_tool_calls(turn["tool_calls"])) if turn.get("tool_calls") is not None else None
    kept |= {"weight": int(kept["weight"])} if "weight" in kept else {}  # true and 1.0 are 1
    return {"role": kept.pop("role"), "content": content, **kept, **({"tool_calls": calls} if calls else {})}
