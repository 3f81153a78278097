"""Tools and tool calls of conversations: OpenAI's and Hugging Face's forms, brought into the one that templates read.

On disk both may be JSON in a string, as a column of a parquet file has one type. What stands in them becomes text of
the chat template, so nothing in them may spell a special token (`unified.models.chat_templates`).
"""

import json
from collections.abc import Mapping
from typing import Any

from unified.models.messages import shorten

_CALL = {"id", "index", "type", "function"}  # keys of a tool call
_NAMED = {"name", "arguments"}  # ... and of its `function`, or of a call without one


def read_tools(value: Any) -> list[dict[str, Any]]:
    """`tools` as a list of `{"type": "function", "function": {"name", …}}`, empty for None.

    Raises ValueError for anything else.
    """
    tools = _list_of("tools", value)
    for tool in tools:
        named = tool.get("function") if tool.get("type", "function") == "function" else None
        if not isinstance(named, Mapping) or not isinstance(named.get("name"), str):
            raise ValueError(
                f'tool {shorten(tool)} is no function; write {{"type": "function", "function": {{"name": "..."}}}}'
            )
    return tools


def read_tool_calls(value: Any) -> list[dict[str, Any]]:
    """`tool_calls` as a list of `{"type": "function", "function": {"name", "arguments"}}`, empty for None.

    Arguments are an object, as templates write it; one in a string, as in OpenAI's form, is parsed.
    Raises ValueError for anything else.
    """
    calls = []
    for call in _list_of("tool_calls", value):
        function = call.get("function", call)
        name = function.get("name") if isinstance(function, Mapping) else None
        arguments = function.get("arguments", {}) if isinstance(function, Mapping) else None
        if isinstance(arguments, str):
            arguments = _parsed("arguments", arguments)
        if not isinstance(name, str) or not isinstance(arguments, Mapping):
            raise ValueError(
                f'tool call {shorten(call)} is none; write {{"function": {{"name": "...", "arguments": {{}}}}}}'
            )
        _check_call(call, function)
        named = {"id": call["id"]} if "id" in call else {}
        calls.append({**named, "type": "function", "function": {"name": name, "arguments": dict(arguments)}})
    return calls


def _check_call(call: Mapping[str, Any], function: Mapping[str, Any]) -> None:
    """Raise ValueError for what of a call no template would write."""
    levels = ((call, _CALL), (function, _NAMED)) if "function" in call else ((call, _CALL | _NAMED),)
    unknown = sorted(
        key for held, known in levels for key, value in held.items() if value is not None and key not in known
    )
    if unknown or call.get("type") not in (None, "function"):
        what = f"the key {unknown[0]!r}, which" if unknown else f"type {call['type']!r}, which"
        raise ValueError(f"tool call {shorten(call)} has {what} nothing honours; take it out")


def as_json(value: list[dict[str, Any]]) -> str | None:
    """Tools or tool calls as they stand in encoded files; None for none."""
    return json.dumps(value, ensure_ascii=False) if value else None


def _parsed(name: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} {shorten(text)} is not JSON ({error}); write an object or a list") from None


def _list_of(name: str, value: Any) -> list[dict[str, Any]]:
    given = _parsed(name, value) if isinstance(value, str) else value
    found = [] if given is None else given
    if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
        raise ValueError(
            f"{name} {shorten(value)} is no list of objects; write them as Hugging Face's chats have them"
        )
    return found
