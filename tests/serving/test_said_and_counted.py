"""What an answer said, read again as it was said, and counted whoever listened to its end."""

import time
from typing import Any

import httpx
import pytest
from PIL import Image
from toy_server import Server

from unified.serving.chat_protocol import ChatMessage, TextPart
from unified.serving.conversation import parts_of
from unified.serving.pictures import data_uri

URL = data_uri(Image.new("RGB", (16, 16), "red"))
IMAGES = [{"type": "image_url", "image_url": {"url": URL}, "index": index} for index in range(2)]
ASKED = {"role": "user", "content": "a photo of a red cat"}


def words(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def picture(index: Any) -> dict[str, Any]:
    return {"type": "image", "index": index}


@pytest.mark.parametrize(
    ("content", "count", "said", "read"),
    [
        ("A cat.", 1, [picture(0), words("A cat.")], ["image", "A cat."]),
        ("A cat.", 2, [picture(0), words("A "), picture(1), words("cat.")], ["image", "A ", "image", "cat."]),
        ([words("A "), words("cat.")], 1, [picture(0), words("A cat.")], ["image", "A cat."]),
        ("", 1, [picture(0)], ["image"]),
        ("A dog.", 1, [picture(0), words("A cat.")], ["A dog.", "image"]),
        ("A cat.", 2, [picture(0), words("A cat.")], ["A cat.", "image", "image"]),
        ("A cat.", 2, [picture(1), picture(0), words("A cat.")], ["A cat.", "image", "image"]),
        ("A cat.", 1, [picture(4), words("A cat.")], ["A cat.", "image"]),
        ("A cat.", 1, [picture("0"), {"text": 5}], ["A cat.", "image"]),
        ("A cat.", 1, "picture first", ["A cat.", "image"]),
        ("A cat.", 1, None, ["A cat.", "image"]),
        (None, 0, [], []),
    ],
)
def test_an_answer_is_read_in_the_order_in_which_it_was_said(
    content: Any, count: int, said: Any, read: list[str]
) -> None:
    """Where somebody has changed it, its pictures stand behind its words."""
    answer = {"role": "assistant", "content": content, "images": IMAGES[:count] or None}
    parts = parts_of(ChatMessage(**answer, unified={"parts": said, "seed": 1}))
    assert [part.text if isinstance(part, TextPart) else "image" for part in parts] == read
    asked = parts_of(ChatMessage(**answer | {"role": "user"}, unified={"parts": said}))
    assert [part.type for part in asked[len(asked) - count :]] == ["image_url"] * count


def counted(server: Server) -> dict[str, float]:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    names = ("unified_text_tokens_total", "unified_cached_tokens_total", "unified_images_total")
    return {name: float(line.split()[1]) for line in lines for name in names if line.startswith(name)}


def test_an_answer_sent_back_as_it_came_is_not_run_again(artist: Server) -> None:
    """Its picture stands before its words; a stop string changes nothing of what is counted."""
    url = f"{artist.url}/v1/chat/completions"
    body: dict[str, Any] = {"max_tokens": 6, "modalities": ["text"]}

    def said(**answer: Any) -> dict[str, Any]:
        return {"messages": [ASKED, {"role": "assistant", **answer}, ASKED], **body}

    first = httpx.post(url, json=said(content=[IMAGES[0], words("A cat.")]), timeout=60).json()
    again = said(content="A cat.", images=IMAGES[:1], unified={"parts": [picture(0), words("A cat.")], "seed": 1})
    second = httpx.post(url, json=again, timeout=60).json()
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == first["usage"]["prompt_tokens"] - 1
    before = counted(artist)
    text = second["choices"][0]["message"]["content"]
    stopped = httpx.post(url, json=again | {"stop": text[1]}, timeout=60).json()
    assert stopped["choices"][0]["message"]["content"] == text.split(text[1])[0]
    assert stopped["usage"]["prompt_tokens_details"]["cached_tokens"] == cached
    assert counted(artist)["unified_cached_tokens_total"] == before["unified_cached_tokens_total"] + cached


def test_what_is_hung_up_on_is_counted(artist: Server) -> None:
    before = counted(artist)
    body = {"messages": [ASKED], "max_tokens": 40, "stream": True}
    with httpx.stream("POST", f"{artist.url}/v1/chat/completions", json=body, timeout=60) as stream:
        next(line for line in stream.iter_lines() if '"images"' in line or '"content": "' in line)
    end = time.monotonic() + 30
    while sum(counted(artist).values()) == sum(before.values()):
        assert time.monotonic() < end, "nothing of the answer is counted"
        time.sleep(0.02)
