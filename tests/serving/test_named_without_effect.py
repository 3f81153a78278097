"""`unified.ignored` names every field of a request that changed nothing, and none that did."""

import json
from typing import Any

import httpx
import pytest
from PIL import Image
from toy_server import Server

from unified.serving.pictures import data_uri

URL = data_uri(Image.new("RGB", (16, 16), "red"))
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
RESPONSE: dict[str, Any] = {"input": "a", "max_output_tokens": 1}
DRAW = {"prompt": "a"}


def looked_at(detail: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": URL, "detail": detail}}


def said(*parts: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts), **more}]


@pytest.mark.parametrize(
    ("path", "body", "ignored"),
    [
        ("chat/completions", {"image_sampling": {"guidance": 9, "top_k": 3}}, ["image_sampling.guidance"]),
        ("chat/completions", {"partial_images": 2}, ["partial_images"]),
        ("chat/completions", {"partial_images": 2, "stream": True}, None),
        ("chat/completions", {"stream_options": {"include_usage": True}}, ["stream_options"]),
        ("chat/completions", {"stream_options": {"include_usage": False}, "stream": True}, None),
        ("chat/completions", {"messages": said({"type": "text", "text": "a"}, name="bob")}, ["messages.name"]),
        ("chat/completions", {"messages": said(looked_at("low"))}, ["messages.image_url.detail"]),
        ("chat/completions", {"messages": said(looked_at("auto"))}, None),
        ("responses", {"image_sampling": {"seed": 3}}, ["image_sampling.seed"]),
        ("responses", {"input": said({"type": "input_image", "image_url": URL, "detail": "high"})},
         ["messages.image_url.detail"]),
        ("responses", {"tools": [{"type": "image_generation", "partial_images": 1}]}, ["tools.partial_images"]),
        ("images/generations", {"partial_images": 2}, ["partial_images"]),
        ("images/generations", {"output_compression": 10}, ["output_compression"]),
        ("images/generations", {"output_compression": 10, "output_format": "jpeg"}, None),
        ("images/generations", {"response_format": "url", "stream": True}, ["response_format"]),
        ("images/generations", {"response_format": "url", "guidance": 2}, ["guidance"]),
    ],
)  # fmt: skip
def test_what_changes_nothing_is_named(
    path: str, body: dict[str, Any], ignored: list[str] | None, server: Server
) -> None:
    base = {"chat/completions": CHAT, "responses": RESPONSE, "images/generations": DRAW}[path]
    answer = httpx.post(f"{server.url}/v1/{path}", json=base | body, timeout=60)
    assert answer.status_code == 200, answer.text
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line.startswith("data: {")]
    notes = [json.loads(line).get("unified", {}) for line in lines] if lines else [answer.json()["unified"]]
    assert [note["ignored"] for note in notes if "ignored" in note] == ([ignored] if ignored else [])
