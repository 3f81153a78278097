"""What clients in the wild send, and hostile ones: each is answered, or refused by OpenAI's error object."""

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from PIL import Image
from toy_server import Server

from unified.serving.pictures import data_uri

CAT = [{"role": "user", "content": "a photo of a red cat"}]
PICTURE = data_uri(Image.new("RGB", (40, 20), "red"))
DATA = PICTURE.split(",")[1]
JSON = {"Content-Type": "application/json"}
# routes, what they need, and their fields that are numbers
ROUTES: dict[str, tuple[dict[str, Any], str]] = {
    "images/generations": (
        {"prompt": "a"},
        "n seed partial_images output_compression temperature top_k top_p guidance_scale",
    ),
    "chat/completions": (
        {"messages": CAT},
        "n seed partial_images max_images max_tokens max_completion_tokens temperature top_k top_p",
    ),
    "responses": ({"input": "a"}, "seed max_output_tokens temperature top_p"),
}
NO_NUMBERS = ["-1", "-Infinity", "Infinity", "NaN", "1e308", str(2**63), str(2**64), '""', '"1"', "[]", "{}", "true"]


@pytest.fixture(scope="module")
def http(artist: Server) -> Iterator[httpx.Client]:
    """Asks a server whose answer to CAT is a picture."""
    with httpx.Client(base_url=f"{artist.url}/v1/", timeout=60) as client:
        yield client


def chat(http: httpx.Client, **body: Any) -> dict[str, Any]:
    """A choice of an answer."""
    answer = http.post("chat/completions", json={"messages": CAT, "max_tokens": 6, **body})
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]


def error(answer: httpx.Response) -> dict[str, Any]:
    assert 400 <= answer.status_code < 500, answer.text
    found = answer.json()["error"]
    assert set(found) == {"message", "type", "param", "code"} and len(found["message"]) <= 500
    return found


@pytest.mark.parametrize("route", ROUTES)
def test_numbers_that_are_none(http: httpx.Client, route: str) -> None:
    needed, fields = ROUTES[route]
    for field in fields.split():
        for value in NO_NUMBERS:
            body = f'{json.dumps(needed)[:-1]}, "{field}": {value}}}'
            refused = http.post(route, content=body, headers=JSON)
            assert error(refused)["param"] == field and refused.status_code == 422, (field, value)
    huge = f'{json.dumps(needed)[:-1]}, "seed": {"9" * 5000}}}'
    assert http.post(route, content=huge, headers=JSON).status_code == 400


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 422), (b"{", 400), (b"[]", 422), (b"null", 422), (b'"a"', 422), (b"[" * 100_000, 400),
        (b'{"prompt": "a", "x": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400), (b'{"prompt": "\xff"}', 400),
        (b'{"prompt": "\\ud800"}', 422), (b'{"prompt": "a", "\\ud800": 1}', 422), (b"\x1f\x8b", 400),
    ],
)  # fmt: skip
def test_bodies_that_are_no_request(http: httpx.Client, content: bytes, status: int) -> None:
    refused = http.post("images/generations", content=content, headers=JSON)
    assert error(refused) and refused.status_code == status


@pytest.mark.parametrize(
    "content",
    [b'\xef\xbb\xbf{"prompt": "a"}', '{"prompt": "a"}'.encode("utf-16"), b'{"prompt": "a\\u0000\\u001b[31m"}',
     b'{"prompt": "a", "x": "\\ud800", "prompt": "b"}'],
)  # fmt: skip
def test_bodies_that_are_strange(http: httpx.Client, content: bytes) -> None:
    headers = {"Content-Type": "application/vnd.api+json; charset=utf-8"}
    assert http.post("images/generations", content=content, headers=headers).status_code == 200


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_bodies_of_another_kind_are_refused(http: httpx.Client, kind: str) -> None:
    for route, (needed, _) in ROUTES.items():
        headers = {"Content-Type": kind} if kind else {}
        refused = http.post(route, content=json.dumps(needed), headers=headers)
        assert refused.status_code == 415 and error(refused)["code"] == "unsupported_media_type"
        assert "send application/json" in refused.text


def test_paths_and_methods(artist: Server, http: httpx.Client) -> None:
    for path in ("models", "models/", "models//", "models/toy/", "models/gpt-4o"):
        assert http.get(path).status_code == http.head(path).status_code == 200
    for path in ("health", "metrics"):
        assert http.head(f"{artist.url}/{path}").status_code == 200
    for path in ("", "v1/models", "completions", "embeddings"):
        for method in ("GET", "HEAD", "OPTIONS", "POST"):
            assert http.request(method, path).status_code == 404
        assert "the API is under /v1" in error(http.get(path))["message"]
    assert error(http.get("chat/completions"))["code"] == "method_not_allowed"


def test_answers_have_ids(http: httpx.Client) -> None:
    asked = (http.get("models"), http.get("nothing"), http.post("chat/completions", json={}))
    ids = [answer.headers["x-request-id"] for answer in asked]
    assert len(set(ids)) == 3 and all(name.startswith("req_") for name in ids)


@pytest.mark.parametrize(
    ("url", "is_read"),
    [
        (PICTURE, True), ({"url": PICTURE, "detail": "high"}, True), (f"DATA:IMAGE/PNG;BASE64,{DATA}", True),
        (f"data:image/png;base64, {DATA[:9]}\r\n {DATA[9:]}", True), (f" data:;base64,{DATA}", True),
        (f"data:image/jpg;charset=utf-8;base64,{DATA}", True),
        (f"data:image/png;base64,{DATA.replace('=', '%3D')}", True),
        (f"data:image/png;base64,{DATA.replace('+', '-').replace('/', '_')}", True),
        (f"data:image/png,{DATA}", False), (DATA, False), ("blob:http://a", False), (" HTTP://a/b.png", False),
        (None, False), (5, False), ({}, False), ([PICTURE], False), ({"url": None}, False),
    ],
)  # fmt: skip
def test_pictures(http: httpx.Client, url: Any, is_read: bool) -> None:
    for kind in ("image_url", "input_image"):
        messages = [{"role": "user", "content": [{"type": kind, "image_url": url}]}]
        answer = http.post("chat/completions", json={"messages": messages, "max_tokens": 1})
        assert (answer.status_code == 200) == is_read, answer.text
        assert is_read or str(error(answer)["param"]).startswith("messages.0.content.0")


@pytest.mark.parametrize(
    ("part", "param"),
    [
        ({"type": "input_audio", "input_audio": {}}, "messages.0.content.0"), ({}, "messages.0.content.0"),
        ({"type": "text"}, "messages.0.content.0.text"), ({"type": "text", "text": 5}, "messages.0.content.0.text"),
        ({"type": "input_image", "file_id": "a"}, "messages.0.content.0.image_url"), (5, "messages.0.content.0"),
        ({"type": "x" * 9999}, "messages.0.content.0"),
    ],
)  # fmt: skip
def test_a_refusal_says_which_part_is_wrong(http: httpx.Client, part: Any, param: str) -> None:
    assert (
        error(http.post("chat/completions", json={"messages": [{"role": "user", "content": [part]}]}))["param"]
        == param
    )


@pytest.mark.parametrize(
    "more",
    [
        {"messages": [{"role": "function", "name": "f", "content": "5"}, *CAT]},
        {"tool_choice": "none", "tools": None},
        {"messages": [{"role": "user", "name": "me", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"functions": [{"name": "f"}], "function_call": "auto"}, {"stop": ""}, {"stop": []}, {"stop": ["", "b"]},
        {"response_format": {"type": "text"}}, {"model": ""}, {"service_tier": "auto", "logit_bias": {"5": 1}},
        {"top_p": 0, "temperature": 1}, {"temperature": 0}, {"max_tokens": None}, {"stream_options": {}},
    ],
)  # fmt: skip
def test_what_is_harmless(http: httpx.Client, more: dict[str, Any]) -> None:
    assert chat(http, **more)["finish_reason"] in ("stop", "length")


def test_what_is_honoured_is_not_named_as_without_effect(http: httpx.Client) -> None:
    body = {"messages": CAT, "max_tokens": 1, "response_format": {"type": "text"}, "stop": "b"}
    assert "ignored" not in http.post("chat/completions", json=body).json()["unified"]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"functions": [{"name": "f"}], "function_call": {"name": "f"}}, "function_call"),
        ({"tools": [{}], "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format"), ({"modalities": []}, "modalities"),
        ({"modalities": ["image"], "max_images": 0}, "max_images"),
    ],
)  # fmt: skip
def test_what_would_break_an_answer_is_refused(http: httpx.Client, more: dict[str, Any], param: str) -> None:
    assert error(http.post("chat/completions", json={"messages": CAT, **more}))["param"] == param


def test_modalities_choose_what_is_answered(http: httpx.Client) -> None:
    """`["image"]` draws whatever the model would say, the picture that /v1/images/generations draws of the words."""
    asked = {"messages": [{"role": "user", "content": "What is it?"}], "seed": 5}
    assert "images" not in chat(http, **asked, modalities=["text"])["message"]
    alone = chat(http, **asked, modalities=["image"], max_images=3)
    assert alone["message"]["content"] == "" and alone["finish_reason"] == "stop"
    (image,) = alone["message"]["images"]
    drawn = http.post("images/generations", json={"prompt": "What is it?", "seed": 5}).json()["data"][0]
    assert image["image_url"]["url"].endswith(drawn["b64_json"])


def test_a_seed_gives_the_same_words_and_pictures(http: httpx.Client) -> None:
    def said(**more: Any) -> tuple[str, str]:
        message = chat(http, max_tokens=12, **more)["message"]
        return message["content"], message["images"][0]["image_url"]["url"]

    sampled = {"temperature": 1.5, "image_sampling": {"temperature": 1.2}}
    assert said(seed=3, **sampled) == said(seed=3, **sampled) != said(seed=4, **sampled)
    greedy = {"temperature": 0, "image_sampling": {"temperature": 0}}
    assert said(seed=3, **greedy) == said(seed=4, **greedy)
    least = {"temperature": 1.5, "top_p": 0, "image_sampling": {"top_p": 0}}
    assert said(seed=5, **least) == said(seed=3, **greedy)


def test_streams_of_several_answers(http: httpx.Client) -> None:
    body = {"messages": CAT, "max_tokens": 8, "n": 2, "seed": 3, "temperature": 1.5, "stop": ["zz"]}
    whole = http.post("chat/completions", json=body).json()
    more = {"stream": True, "stream_options": {"include_usage": True}}
    lines = http.post("chat/completions", json={**body, **more}).text.splitlines()
    *chunks, last = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
    assert lines[-2:] == ["data: [DONE]", ""]
    assert last["choices"] == [] and last["usage"] == whole["usage"]
    assert all(chunk["usage"] is None and len(chunk["choices"]) == 1 for chunk in chunks)
    for number, choice in enumerate(whole["choices"]):
        parts = [one for chunk in chunks if (one := chunk["choices"][0])["index"] == number]
        assert "".join(part["delta"].get("content") or "" for part in parts) == choice["message"]["content"]
        assert [part["finish_reason"] for part in parts if part["finish_reason"]] == [choice["finish_reason"]]
    plain = http.post("chat/completions", json={**body, "stream": True}).text
    assert '"usage"' not in plain


@pytest.mark.parametrize("partial_images", range(0, 11, 5))
def test_settings_of_pictures(http: httpx.Client, partial_images: int) -> None:
    body = {"prompt": "a", "size": "auto", "response_format": "", "quality": "auto", "background": "auto"}
    body |= {"moderation": "low", "output_compression": 0, "partial_images": partial_images, "stream": True}
    lines = http.post("images/generations", json=body).text.splitlines()
    kinds = [line.rpartition(".")[2] for line in lines if line.startswith("event: ")]
    assert kinds == ["partial_image"] * min(partial_images, 1) + ["completed"]
