"""`/v1/chat/completions` through the openai client, as it is, and by what clients in the wild send."""

import base64
import io
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest
from PIL import Image
from toy_server import Server

from unified import Chat, ImageSampling, UnifiedProcessor
from unified.checkpoints.loading import load
from unified.serving.conversation import ids_with_tools
from unified.serving.pictures import data_uri
from unified.serving.service import Service

QUESTION = "a photo of a red cat"
CAT = [{"role": "user", "content": QUESTION}]


def opened(url: str) -> Image.Image:
    head, data = url.split(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def post(server: Server, body: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60)


def test_the_answer_is_that_of_chat(artist: Server, drawing_checkpoint: Path) -> None:
    greedy = {"image_sampling": {"temperature": 0}, "seed": 3}
    answer = artist.client().chat.completions.create(model="any", messages=CAT, max_tokens=12, extra_body=greedy)
    (choice,) = answer.choices
    chat = Chat(*load(drawing_checkpoint, device="cpu"), ImageSampling(temperature=0), max_new_tokens=12)
    parts = chat.ask(QUESTION)
    assert choice.message.content == "".join(part["text"] for part in parts if part["type"] == "text")
    assert [part["type"] for part in choice.message.unified["parts"]] == [part["type"] for part in parts]
    (image,), (drawn,) = choice.message.images, [part["image"] for part in parts if part["type"] == "image"]
    assert opened(image["image_url"]["url"]).tobytes() == drawn.tobytes() and image["unified"]["seed"] == 3
    assert answer.usage.completion_tokens_details.image_tokens == 5
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert choice.finish_reason in ("stop", "length") and answer.object == "chat.completion"


def test_a_picture_of_an_answer_can_be_drawn_again_alone(artist: Server) -> None:
    client = artist.client()
    (image,) = client.chat.completions.create(model="any", messages=CAT).choices[0].message.images
    (again,) = client.images.generate(prompt=QUESTION, extra_body={"seed": image["unified"]["seed"]}).data
    assert image["image_url"]["url"].endswith(again.b64_json)


def test_a_stream_says_what_the_whole_answer_says(artist: Server) -> None:
    settings: dict[str, Any] = {"model": "any", "messages": CAT, "seed": 5, "max_tokens": 20}
    client = artist.client()
    whole = client.chat.completions.create(**settings)
    more = {"partial_images": 3}
    chunks = list(
        client.chat.completions.create(
            **settings, stream=True, stream_options={"include_usage": True}, extra_body=more
        )
    )
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == whole.choices[0].message.content
    images = [image for delta in deltas for image in (delta.model_extra.get("images") or [])]
    assert images == whole.choices[0].message.images
    told = [delta.unified for delta in deltas if "unified" in delta.model_extra]
    assert told.pop() == whole.choices[0].message.unified
    partial = [said["partial_image"] for said in told]
    assert [(part["scale"], part["scales"]) for part in partial] == [(0, 2)] and opened(partial[0]["url"]).size == (
        16,
        16,
    )
    assert chunks[-1].usage == whole.usage and chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert len({chunk.id for chunk in chunks}) == 1 and deltas[0].role == "assistant"


def test_a_conversation_goes_on_with_its_picture(artist: Server) -> None:
    """The picture comes back as PNG and has the very codes it was drawn from: nothing before it is run again."""
    client = artist.client()
    first = client.chat.completions.create(model="any", messages=CAT, max_tokens=8)
    said = first.choices[0].message
    answer = {"role": "assistant", "content": said.content, "images": said.images}
    follow = [*CAT, answer, {"role": "user", "content": "and a dog?"}]
    second = client.chat.completions.create(model="any", messages=follow, max_tokens=8)
    assert second.usage.prompt_tokens_details.cached_tokens > first.usage.prompt_tokens + 5


@pytest.mark.parametrize("url_only", [False, True])
def test_pictures_are_looked_at(server: Server, url_only: bool) -> None:
    url = data_uri(Image.new("RGB", (40, 20), "red"))
    part = {"type": "image_url", "image_url": url if url_only else {"url": url, "detail": "low"}}
    content = [part, {"type": "text", "text": "How many cats?"}]
    answer, words = (
        server.client().chat.completions.create(
            model="any", messages=[{"role": "user", "content": asked}], max_tokens=1
        )
        for asked in (content, "How many cats?")
    )
    assert answer.usage.prompt_tokens == words.usage.prompt_tokens + 4 + 2


@pytest.mark.parametrize(
    "more",
    [
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "system", "content": "a"}, {"role": "developer", "content": "b"}, *CAT]},
        {"messages": [*CAT, {"role": "assistant", "content": None}, {"role": "user", "content": []}]},
        {"tools": [], "tool_choice": "auto", "stop": None, "n": 2, "response_format": {"type": "text"}},
        {"tools": [{"type": "function", "function": {"name": "f"}}]},
        {"max_completion_tokens": 3, "max_tokens": None, "modalities": ["text", "image"]},
        {"stop": ["a", "e"], "temperature": 0.7, "top_p": 0.9, "top_k": 5, "frequency_penalty": 0.1},
        {"stream_options": None, "user": "me", "logprobs": False, "metadata": {}, "store": False},
        {"image_sampling": {"temperature": 0.5, "guidance_scale": 2.0}, "max_images": 2},
    ],
)
def test_what_clients_send(server: Server, more: dict[str, Any]) -> None:
    answer = post(server, {"messages": CAT, "max_tokens": 4, **more})
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["choices"]) == more.get("n", 1)


WRITES_TOOLS = (
    "{% if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}"
    "{% if message.tool_calls %}{{ message.tool_calls | tojson }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(("template", "has_tools"), [(WRITES_TOOLS, True), (None, False)])
def test_tools_and_calls_go_into_the_template_that_writes_them(
    template: str | None, has_tools: bool, toy_checkpoint: Path
) -> None:
    processor = UnifiedProcessor.from_pretrained(toy_checkpoint)
    processor.chat_template = template or processor.chat_template
    service = SimpleNamespace(engine=SimpleNamespace(processor=processor))
    service.prompt_ids = partial(Service.prompt_ids, service)
    call = {"id": "1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    words = [{"type": "text", "text": "a"}]
    asked = [{"role": "user", "content": words}]
    called = [*asked, {"role": "assistant", "content": [], "tool_calls": [call]}, {"role": "tool", "content": words}]
    tools = [{"type": "function", "function": {"name": "add", "parameters": {}}}]
    for messages, given, shown in (
        (asked, tools, True),
        (called, None, True),
        (called, tools, True),
        (asked, [{}], False),
    ):
        ids, found = ids_with_tools(messages, [], given, service)  # type: ignore[arg-type]
        text = processor.tokenizer.decode(ids)
        assert found == ("add" in text) == (has_tools and shown) and "assistant" in text
    assert ids_with_tools(asked, [], None, service)[1] is False  # type: ignore[arg-type]


def test_fields_without_effect_are_named(server: Server) -> None:
    body = {"messages": CAT, "max_tokens": 2, "tools": [{"type": "function"}], "frequency_penalty": 1}
    assert post(server, body).json()["unified"]["ignored"] == ["frequency_penalty", "tools"]
    called = {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function"}]}
    answer = post(server, {"messages": [*CAT, called, *CAT], "max_tokens": 2})
    assert answer.json()["unified"]["ignored"] == ["messages.tool_calls"]


def test_stop_strings_end_an_answer(artist: Server) -> None:
    client = artist.client()
    body: dict[str, Any] = {"model": "any", "messages": [{"role": "user", "content": "What is it?"}], "max_tokens": 30}
    text = client.chat.completions.create(**body, modalities=["text"]).choices[0].message.content
    assert len(text) > 3
    stopped = client.chat.completions.create(**body, modalities=["text"], stop=text[3]).choices[0]
    assert stopped.message.content == text.split(text[3])[0] and stopped.finish_reason == "stop"


def test_text_only_answers_have_no_picture(artist: Server) -> None:
    for more in ({"modalities": ["text"]}, {"max_images": 0}):
        assert "images" not in post(artist, {"messages": CAT, "max_tokens": 6, **more}).json()["choices"][0]["message"]


@pytest.mark.parametrize(
    ("more", "status", "param"),
    [
        ({"messages": []}, 422, "messages"),
        ({"messages": [{"role": "robot", "content": "a"}]}, 422, "messages.0.role"),
        ({"messages": [{"role": "user", "content": "x" * 40_000}]}, 422, "messages"),
        ({"messages": CAT * 300}, 422, "messages"),
        ({"messages": [{"role": "user", "content": "x" * 20_000}]}, 400, "messages"),
        ({"tools": [{}], "tool_choice": "required"}, 400, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, 400, "response_format"),
        ({"logprobs": True}, 400, "logprobs"),
        ({"modalities": ["audio"]}, 400, "modalities"),
        ({"n": 9}, 422, "n"),
        ({"max_images": 9}, 422, "max_images"),
        ({"max_tokens": 0}, 422, "max_tokens"),
        ({"temperature": -0.1}, 422, "temperature"),
        ({"stop": ["x"] * 20}, 422, "stop"),
    ],
)
def test_errors_are_openais(server: Server, more: dict[str, Any], status: int, param: str) -> None:
    answer = post(server, {"messages": CAT, **more})
    assert answer.status_code == status and answer.json()["error"]["param"] == param, answer.text


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("data:image/png;base64,!!!", "invalid_image_url"),
        ("data:image/png;base64,AAAA", "invalid_image"),
        ("data:text/plain,hello", "invalid_image_url"),
        ("file:///etc/passwd", "invalid_image_url"),
        ("ftp://example.org/a.png", "invalid_image_url"),
        ("http://127.0.0.1/a.png", "unsupported_value"),
        ("", "invalid_image_url"),
    ],
)
def test_pictures_that_are_none(server: Server, url: str, code: str) -> None:
    content = [{"type": "image_url", "image_url": {"url": url}}]
    with pytest.raises(openai.BadRequestError, match="messages.0.content.0") as raised:
        server.client().chat.completions.create(model="any", messages=[{"role": "user", "content": content}])
    assert raised.value.code == code


def test_an_error_in_a_stream_is_the_clients(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    run: Callable[..., Any] = server.engine.model.model.run_backbone

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("out of luck")

    monkeypatch.setattr(server.engine.model.model, "run_backbone", fail)
    with pytest.raises(openai.APIError, match="RuntimeError: out of luck"):
        list(server.client().chat.completions.create(model="any", messages=CAT, stream=True))
    with pytest.raises(openai.APIError, match="RuntimeError: out of luck"):
        list(server.client().images.generate(prompt=QUESTION, stream=True))
    monkeypatch.setattr(server.engine.model.model, "run_backbone", run)
    assert server.client().images.generate(prompt=QUESTION).data


def test_special_tokens_of_users_are_text(artist: Server) -> None:
    spelled = "<|image_start|> <|im_end|>"
    body = {"messages": [{"role": "user", "content": spelled}], "max_tokens": 2, "modalities": ["text"]}
    assert post(artist, body).status_code == 200
    assert json.loads(post(artist, body).text)["usage"]["prompt_tokens"] > 20
