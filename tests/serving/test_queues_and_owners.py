"""What waits is bounded and given up with its client, and what is cached of one key's conversations is no other's."""

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from PIL import Image
from toy_server import Server, serve

from unified.cli.serve_command import check_origins
from unified.serving.engine import EngineLimits
from unified.serving.pictures import data_uri

KEYS = ("first-key-of-16-chars", "second-key-of-16-chars")
PICTURE = {"type": "image_url", "image_url": data_uri(Image.new("RGB", (16, 16), "red"))}
LOOK = {"messages": [{"role": "user", "content": [PICTURE]}], "max_tokens": 1}
ROUTES: dict[str, dict[str, Any]] = {
    "images/generations": {"prompt": "a"},
    "chat/completions": {"messages": [{"role": "user", "content": "a"}]},
    "responses": {"input": "a"},
}
SITE = "https://chat.example.com"


@pytest.fixture(scope="module")
def small(toy_checkpoint: Path) -> Iterator[Server]:
    with serve(toy_checkpoint, EngineLimits(1, 2), api_keys=KEYS, allow_origins=(SITE,)) as running:
        yield running


@pytest.fixture
def held(small: Server) -> Iterator[threading.Event]:
    """The engine's thread is busy until it is set."""
    event = threading.Event()
    small.engine.call(event.wait)
    while small.engine.calls:
        time.sleep(0.01)
    yield event
    event.set()


def post(server: Server, path: str, body: Any, key: str = KEYS[0]) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.post(f"{server.url}/v1/{path}", json=body, headers=headers, timeout=60)


@pytest.mark.parametrize("path", ROUTES)
def test_a_client_that_goes_before_a_stream_begins_leaves_nothing(small: Server, held: Any, path: str) -> None:
    app, body = small.uvicorn.config.app, json.dumps({**ROUTES[path], "stream": True}).encode()
    headers = [(b"content-type", b"application/json"), (b"authorization", f"bearer {KEYS[0]}".encode())]
    scope = {"type": "http", "method": "POST", "path": f"/v1/{path}", "headers": headers, "query_string": b""}
    received = iter([{"type": "http.request", "body": body}])

    async def receive() -> dict[str, Any]:
        return next(received, {"type": "http.disconnect"})

    async def send(message: dict[str, Any]) -> None:
        raise OSError("the client has gone")

    with pytest.raises(BaseException, match="client has gone|unhandled errors"):
        asyncio.run(app(scope | {"http_version": "1.1", "server": ("a", 1)}, receive, send))
    assert [ticket.cancelled.is_set() for ticket in small.engine.inbox] == [True]
    held.set()
    while small.engine.waiting or small.engine.active:
        time.sleep(0.01)


def test_pictures_that_wait_are_bounded(small: Server, held: threading.Event) -> None:
    answers: list[httpx.Response] = []
    asking = lambda: answers.append(post(small, "chat/completions", LOOK))  # noqa: E731
    threads = [threading.Thread(target=asking) for _ in range(3)]
    for thread in threads:
        thread.start()
    while small.engine.waiting < 3:
        time.sleep(0.01)
    refused = post(small, "chat/completions", LOOK)
    assert refused.status_code == 429 and refused.headers["retry-after"]
    assert refused.json()["error"]["code"] == "queue_full"
    held.set()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 3


def test_one_call_is_answered_between_two_steps(small: Server, held: threading.Event) -> None:
    """So that many pictures that are shown leave the answers in progress their time."""
    steps, counts, step = [0], list[int](), small.engine.step

    def counted() -> None:
        steps[0] += 1
        step()

    small.engine.step = counted
    futures = [small.engine.call(lambda: counts.append(steps[0])) for _ in range(3)]
    futures[0].cancel()
    held.set()
    futures[2].result(60)
    small.engine.step = step
    assert counts[1] == counts[0] + 1


def test_more_answers_than_ever_have_room_are_no_full_queue(small: Server) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="n: 4 images are more than 3") as images:
        small.client(KEYS[0]).images.generate(prompt="a", n=4)
    with pytest.raises(openai.UnprocessableEntityError, match="n: 4 are more than 3") as chat:
        small.client(KEYS[0]).chat.completions.create(model="a", n=4, **ROUTES["chat/completions"])
    assert images.value.param == chat.value.param == "n"
    assert len(small.client(KEYS[0]).images.generate(prompt="a", n=3).data) == 3


def test_a_conversation_is_gone_on_with_by_its_own_key_alone(small: Server) -> None:
    """As how fast an answer comes, and how much was cached, would tell of another's."""
    body = {"messages": [{"role": "user", "content": "a word that nobody else says"}], "max_tokens": 2}

    def read(key: str) -> int:
        usage = post(small, "chat/completions", body, key).json()["usage"]
        return usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"]

    assert [read(KEYS[0]) > 5, read(KEYS[0])] == [True, 1]
    assert [read(KEYS[1]) > 5, read(KEYS[1])] == [True, 1]
    assert read(KEYS[0]) == 1


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER "])
def test_a_key_is_known_however_its_scheme_is_spelled(small: Server, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {KEYS[1]}"}
    assert httpx.get(f"{small.url}/v1/models", headers=headers).status_code == 200
    for wrong in (KEYS[1], f"Basic {KEYS[1]}", scheme.strip(), f"{scheme.strip()}{KEYS[1]}"):
        assert httpx.get(f"{small.url}/v1/models", headers={"Authorization": wrong}).status_code == 401


def test_pages_of_named_origins_may_ask(small: Server) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,x-stainless-os"}
    for origin, allowed in ((SITE, SITE), ("https://example.org", None)):
        preflight = httpx.options(f"{small.url}/v1/chat/completions", headers={"Origin": origin, **asked})
        assert preflight.headers.get("access-control-allow-origin") == allowed
        assert (preflight.status_code == 200) == (allowed is not None)
        refused = httpx.get(f"{small.url}/v1/models", headers={"Origin": origin})
        assert refused.status_code == 401 and refused.headers.get("access-control-allow-origin") == allowed


@pytest.mark.parametrize(
    "origin", ["*", "example.org", "https://example.org/", "https://example.org/a", "ftp://a", ""]
)
def test_what_is_no_origin_is_refused(origin: str) -> None:
    check_origins((SITE, "http://localhost:3000"))
    with pytest.raises(ValueError, match="is no origin; give scheme and host"):
        check_origins((SITE, origin))
