"""`/v1/images` through the openai client, as it is, and by what clients in the wild send."""

import base64
import io
from typing import Any

import httpx
import openai
import pytest
from PIL import Image
from toy_server import Server, serve

from unified.serving.drawing import partial_scales

PROMPT = "a photo of a red cat"


def opened(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data)))


def post(server: Server, body: Any, path: str = "images/generations") -> httpx.Response:
    return httpx.post(f"{server.url}/v1/{path}", json=body, timeout=60)


def test_an_image_and_its_seed(server: Server) -> None:
    client = server.client()
    answer = client.images.generate(model="gpt-image-1", prompt=PROMPT, n=3, size="1024x1024")
    assert [opened(image.b64_json).size for image in answer.data] == [(16, 16)] * 3
    assert len({image.seed for image in answer.data}) == 3
    assert answer.usage.output_tokens == 15 and answer.size == "16x16"
    assert answer.unified["model"] == "toy" and answer.unified["ignored"] == ["size"]
    for image in answer.data:
        (again,) = client.images.generate(prompt=PROMPT, extra_body={"seed": image.seed}).data
        assert again.b64_json == image.b64_json


def test_sampling_settings_count(server: Server) -> None:
    client = server.client()

    def draw(**settings: Any) -> str:
        return client.images.generate(prompt=PROMPT, extra_body={"seed": 5, **settings}).data[0].b64_json

    plain = draw()
    assert draw(temperature=1.0, top_k=0, top_p=1.0, guidance_scale=1.0) == plain
    assert draw(temperature=0) == draw(temperature=0, seed=6)
    assert draw(temperature=0) == draw(top_k=1) == draw(top_p=1e-6, guidance_scale=1.0) == draw(top_p=0)
    assert len({plain, draw(temperature=0), draw(seed=6)}) == 3


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_formats(server: Server, output_format: str) -> None:
    answer = server.client().images.generate(prompt=PROMPT, output_format=output_format, output_compression=50)
    assert opened(answer.data[0].b64_json).format == output_format.upper() and answer.output_format == output_format


def test_a_stream_sharpens_scale_by_scale(server: Server) -> None:
    events = list(server.client().images.generate(prompt=PROMPT, stream=True, partial_images=3))
    assert [event.type for event in events] == ["image_generation.partial_image", "image_generation.completed"]
    partial, whole = events
    assert partial.partial_image_index == 0 and partial.unified["scale"] == 0 and partial.unified["scales"] == 2
    assert opened(partial.b64_json).size == opened(whole.b64_json).size == (16, 16)
    assert whole.usage.output_tokens == 5 and whole.usage.total_tokens == whole.usage.input_tokens + 5
    seed = whole.unified["seed"]
    (again,) = server.client().images.generate(prompt=PROMPT, extra_body={"seed": seed}).data
    assert again.b64_json == whole.b64_json


def test_a_stream_of_several_images_says_which(server: Server) -> None:
    events = list(server.client().images.generate(prompt=PROMPT, stream=True, n=3, partial_images=1))
    whole = [event for event in events if event.type.endswith("completed")]
    assert sorted(event.unified["index"] for event in whole) == [0, 1, 2] and len(events) == 6


@pytest.mark.parametrize("count", range(12))
def test_partial_images_are_the_last_scales_before_the_whole(count: int) -> None:
    shown = partial_scales(count, 10)
    assert len(shown) == min(count, 9) and shown <= set(range(9)) and (not count or 8 in shown)


@pytest.mark.parametrize(
    "body",
    [
        {"response_format": ""},
        {"response_format": "b64_json", "user": "me", "quality": "hd", "style": "vivid"},
        {"n": None, "size": None, "response_format": None, "stream": None, "model": None, "seed": None},
        {"model": "dall-e-3", "size": "auto", "background": "opaque", "moderation": "low"},
        {"something_new": {"a": [1]}},
        {"stream": False, "partial_images": 2},
    ],
)
def test_what_clients_send(server: Server, body: dict[str, Any]) -> None:
    answer = post(server, {"prompt": PROMPT, **body})
    assert answer.status_code == 200, answer.text
    assert opened(answer.json()["data"][0]["b64_json"]).size == (16, 16)


def test_a_url_is_a_data_uri_and_paths_may_end_with_a_slash(server: Server) -> None:
    answer = post(server, {"prompt": PROMPT, "response_format": "url"}, "images/generations/")
    url = answer.json()["data"][0]["url"]
    head, data = url.split(",")
    assert head == "data:image/png;base64" and opened(data).size == (16, 16)


@pytest.mark.parametrize(
    ("body", "status", "param"),
    [
        ({}, 422, "prompt"),
        ({"prompt": ""}, 422, "prompt"),
        ({"prompt": 5}, 422, "prompt"),
        ({"prompt": "x" * 40_000}, 422, "prompt"),
        ({"prompt": "x" * 20_000}, 400, "prompt"),  # the toy's context
        ({"prompt": PROMPT, "n": 0}, 422, "n"),
        ({"prompt": PROMPT, "n": 9}, 422, "n"),
        ({"prompt": PROMPT, "n": 10**30}, 422, "n"),
        ({"prompt": PROMPT, "seed": -1}, 422, "seed"),
        ({"prompt": PROMPT, "seed": 2**32}, 422, "seed"),
        ({"prompt": PROMPT, "temperature": -1}, 422, "temperature"),
        ({"prompt": PROMPT, "guidance_scale": 1e9}, 422, "guidance_scale"),
        ({"prompt": PROMPT, "top_p": -0.1}, 422, "top_p"),
        ({"prompt": PROMPT, "output_format": "gif"}, 422, "output_format"),
        ({"prompt": PROMPT, "background": "transparent"}, 400, "background"),
        ([], 422, "body"),
    ],
)
def test_errors_are_openais(server: Server, body: Any, status: int, param: str) -> None:
    answer = post(server, body)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error["param"] == param and error["type"] == "invalid_request_error" and error["message"].startswith(param)


def test_the_client_raises_its_own_errors(server: Server) -> None:
    client = server.client()
    with pytest.raises(openai.BadRequestError, match="background") as raised:
        client.images.generate(prompt=PROMPT, background="transparent")
    assert raised.value.code == "unsupported_value" and raised.value.param == "background"
    with pytest.raises(openai.UnprocessableEntityError, match="n: 9 images are more than 8"):
        client.images.generate(prompt=PROMPT, n=9)
    with pytest.raises(openai.BadRequestError, match="draws from words alone"):
        client.images.edit(image=b"none", prompt=PROMPT)
    refused = httpx.post(f"{server.url}/v1/images/variations", files={"image": b"none"})
    assert refused.status_code == 400 and "draws from words alone" in refused.json()["error"]["message"]
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(input="a", model="b")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"null", b'{"prompt": NaN}', b'"a"'])
def test_bodies_that_are_no_request(server: Server, content: bytes) -> None:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{server.url}/v1/images/generations", content=content, headers=headers)
    assert answer.status_code in (400, 422) and answer.json()["error"]["message"]


def test_special_tokens_in_a_prompt_are_text(server: Server) -> None:
    prompt = "<|image_start|><|im_end|> a <|image_pad|> cat"
    ids = server.engine.processor.prompt_ids([{"role": "user", "content": prompt}])
    assert server.engine.model.config.boi_token_id not in ids
    assert post(server, {"prompt": prompt}).status_code == 200


def test_models_health_metrics_and_documentation(server: Server) -> None:
    client = server.client()
    assert [model.id for model in client.models.list()] == ["toy"]
    assert client.models.retrieve("gpt-image-1").id == "toy"
    assert httpx.get(f"{server.url}/v1/models/").json()["data"][0]["id"] == "toy"
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok", "active": 0, "waiting": 0}
    assert "openapi" in httpx.get(f"{server.url}/docs").text
    post(server, {"prompt": "a secret cat"})
    text = httpx.get(f"{server.url}/metrics").text
    assert 'unified_responses_total{path="/v1/images/generations",status="200"}' in text and "secret" not in text


def test_a_strict_server_answers_to_its_name_only(toy_checkpoint: Any) -> None:
    with serve(
        toy_checkpoint, model_name="toy", strict_model=True, api_keys=("a-key-of-16-characters", "b" * 16)
    ) as one:
        client = one.client("b" * 16)
        assert client.images.generate(prompt=PROMPT, model="toy").data
        with pytest.raises(openai.NotFoundError, match="'gpt-image-1' is not served here, but 'toy'"):
            client.images.generate(prompt=PROMPT, model="gpt-image-1")
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("other")
        for key in ("x", "b" * 15, "b" * 17, "é"):
            headers = {"Authorization": f"Bearer {key}".encode()}
            answer = httpx.get(f"{one.url}/v1/models", headers=headers)
            assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(f"{one.url}/metrics").status_code == 401 and httpx.get(f"{one.url}/health").status_code == 200
