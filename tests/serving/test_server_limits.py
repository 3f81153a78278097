"""What a server does with what is too much, too large, too slow, gone or unwanted: it refuses, nothing is stuck."""

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import httpx
import openai
import pytest
from PIL import Image
from toy_server import Server, serve

from unified.models.image_processing import UnifiedImageProcessor
from unified.serving.conversation import read_square
from unified.serving.engine import EngineLimits
from unified.serving.errors import ApiError
from unified.serving.fetching import fetch, is_public, public_addresses
from unified.serving.jobs import Finished, TextToken
from unified.serving.metrics import Metrics
from unified.serving.pictures import data_uri
from unified.serving.service import Answers
from unified.serving.settings import ServerSettings, read_keys

PROMPT = {"prompt": "a photo of a red cat"}


@pytest.fixture(scope="module")
def small(toy_checkpoint: Path) -> Iterator[Server]:
    limits = EngineLimits(max_batch=2, max_queue=2, cache_bytes=10_000)
    with serve(toy_checkpoint, limits, max_body_bytes=50_000, max_image_pixels=10_000, max_input_images=2) as running:
        yield running


def post(server: Server, body: Any, path: str = "images/generations", **more: Any) -> httpx.Response:
    return httpx.post(f"{server.url}/v1/{path}", json=body, timeout=60, **more)


def settled(server: Server) -> bool:
    """Whether all places are free again, in some seconds."""
    end = time.monotonic() + 30
    while (server.engine.active or server.engine.waiting) and time.monotonic() < end:
        time.sleep(0.02)
    return not server.engine.active and not server.engine.waiting


@pytest.mark.parametrize("told", [True, False])
def test_large_bodies(small: Server, told: bool) -> None:
    content = json.dumps({"prompt": "x" * 60_000}).encode()
    body = content if told else iter([content[:30_000], content[30_000:]])
    answer = httpx.post(f"{small.url}/v1/images/generations", content=body, timeout=60)
    assert answer.status_code == 413 and "50000 bytes" in answer.json()["error"]["message"]


def test_a_full_queue_says_when_to_come_back(small: Server) -> None:
    held = threading.Event()
    small.engine.call(held.wait)  # the engine's thread is busy
    try:
        answers: list[httpx.Response] = []
        threads = [threading.Thread(target=lambda: answers.append(post(small, PROMPT))) for _ in range(4)]
        for thread in threads:
            thread.start()
        while small.engine.waiting < 4:
            time.sleep(0.01)
        refused = post(small, PROMPT)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"] | {"message": ""} == {
            "message": "", "type": "rate_limit_error", "param": None, "code": "queue_full",
        }  # fmt: skip
        with pytest.raises(openai.RateLimitError, match="4 requests wait already"):
            small.client().images.generate(prompt="a", n=2)
    finally:
        held.set()
    for thread in threads:
        thread.join()
    assert [answer.status_code for answer in answers] == [200] * 4
    assert "unified_refused_total 2.0" in httpx.get(f"{small.url}/metrics").text


def test_clients_that_hang_up_leave_no_place_taken(small: Server) -> None:
    """In a stream, while they wait for an answer, and while they send."""
    port = int(small.url.rsplit(":", 1)[1])
    bodies = [{**PROMPT, "stream": True, "partial_images": 1}, PROMPT]
    chat = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 400, "modalities": ["text"], "stop": []}
    for number in range(40):
        path, body = ("images/generations", bodies[number % 2]) if number % 4 else ("chat/completions", chat)
        content = json.dumps(body).encode()
        head = f"POST /v1/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(head + content[: None if number % 5 else 5])
            if number % 3 == 0:
                client.recv(10) if number % 5 and body.get("stream") else time.sleep(0.02)
    assert settled(small)
    assert post(small, PROMPT).status_code == 200


def test_bodies_that_do_not_come(small: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first part is there and the rest is not, or nothing is: refused in time, and no place is taken."""
    monkeypatch.setattr("unified.serving.gate.BODY_SECONDS", 0.3)
    port = int(small.url.rsplit(":", 1)[1])
    for path, begun in (("images/generations", b'{"prompt": "a'), ("chat/completions", b""), ("nowhere", b"{")):
        head = f"POST /v1/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 500\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
            client.sendall(head + begun)
            answer = http_answer(client)
        assert answer.startswith("HTTP/1.1 408") and '"code":"timeout"' in answer.replace(" ", ""), answer
    assert settled(small) and post(small, PROMPT).status_code == 200


def http_answer(client: socket.socket) -> str:
    """What a server says until its error object is whole."""
    said = b""
    while not said.endswith(b"}}") and (part := client.recv(4096)):
        said += part
    return said.decode()


def test_answers_that_take_too_long_end(toy_checkpoint: Path) -> None:
    with serve(toy_checkpoint, seconds=0.0) as server:
        answer = post(server, PROMPT)
        assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
        with pytest.raises(openai.APIError, match="more than 0 seconds"):
            list(server.client().images.generate(**PROMPT, stream=True))


def test_a_stopping_server_finishes_streams(toy_checkpoint: Path) -> None:
    with serve(toy_checkpoint) as server:
        held = threading.Event()
        stream = httpx.stream(
            "POST", f"{server.url}/v1/images/generations", json={**PROMPT, "stream": True}, timeout=60
        )
        with stream as response:
            server.engine.call(held.wait)
            leaving = threading.Timer(0.3, held.set)
            leaving.start()
            server.uvicorn.should_exit = True
            assert "image_generation.completed" in response.read().decode()


def test_nothing_of_a_request_is_logged(small: Server, capfd: pytest.CaptureFixture[str], caplog: Any) -> None:
    with caplog.at_level("DEBUG"):
        post(small, {"prompt": "a secret word"})
        post(small, {"prompt": "a secret word", "seed": "secret"})
        post(small, {"prompt": "a secret word", "n": 99})
    written = capfd.readouterr()
    logged = " ".join(record.getMessage() for record in caplog.records if record.name.startswith("unified"))
    assert "secret" not in written.out + written.err + logged


def test_other_sites_may_not_ask(small: Server) -> None:
    origin = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    preflight = httpx.options(f"{small.url}/v1/images/generations", headers=origin)
    assert preflight.status_code == 405 and "access-control-allow-origin" not in preflight.headers
    assert "access-control-allow-origin" not in post(small, PROMPT, headers=origin).headers


@pytest.mark.parametrize(
    ("host", "status"),
    [("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:80", 200), ("192.168.0.7:1", 200), ("example.org:8000", 403),
     ("localhost.example.org", 403), ("[", 403), ("a]:[b", 403), ("", 200)],
)  # fmt: skip
def test_without_keys_a_server_is_asked_by_no_name(small: Server, host: str, status: int) -> None:
    """A page of another site may have its own name resolve to this machine, and is then of the same origin."""
    for path in ("health", "v1/models"):
        assert httpx.get(f"{small.url}/{path}", headers={"Host": host}).status_code == status


def test_with_keys_a_server_is_asked_by_any_name(toy_checkpoint: Path) -> None:
    key = "a" * 16
    with serve(toy_checkpoint, api_keys=(key,)) as server:
        headers = {"Host": "example.org", "Authorization": f"Bearer {key}"}
        assert httpx.get(f"{server.url}/v1/models", headers=headers).status_code == 200


def test_bodies_are_bounded_wherever_they_are_sent(small: Server) -> None:
    assert httpx.post(f"{small.url}/gradio_api/queue/join", content=b"x" * 60_000).status_code == 413


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("8.8.8.8", True), ("127.0.0.1", False), ("10.1.2.3", False), ("192.168.0.1", False), ("0.0.0.0", False),
        ("169.254.169.254", False), ("::1", False), ("::ffff:127.0.0.1", False), ("fd00::1", False),
        ("fe80::1", False), ("2606:4700::1111", True), ("2002:7f00:1::", False), ("224.0.0.1", False),
        ("100.64.0.1", False), ("64:ff9b::7f00:1", False), ("64:ff9b::808:808", True),
    ],
)  # fmt: skip
def test_public_addresses(address: str, public: bool) -> None:
    assert is_public(address) == public


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/a", "http://localhost/a", "http://[::1]/a", "http://2130706433/a", "http://user:pw@8.8.8.8/a",
     "https://169.254.169.254/latest", "http:///a", "http://8.8.8.8:99999/a"],
)  # fmt: skip
def test_private_addresses_are_not_fetched(url: str) -> None:
    with pytest.raises(ApiError, match="cannot be fetched"):
        fetch(url, "image", 1000)


def test_a_name_is_looked_up_once_and_that_address_asked(small: Server) -> None:
    """A name that is public when it is looked at and private when it is asked is asked where it was public."""
    port = int(small.url.rsplit(":", 1)[1])
    with patch("unified.serving.fetching.public_addresses", return_value=["127.0.0.1"]) as looked_up:
        data = fetch(f"http://public.localhost:{port}/health", "image", 1000)
    assert json.loads(data)["status"] == "ok" and looked_up.call_count == 1
    with patch("unified.serving.fetching.public_addresses", return_value=["127.0.0.1"]):
        with pytest.raises(ApiError, match="more than 10 bytes"):
            fetch(f"http://public.localhost:{port}/health", "image", 10)
        with pytest.raises(ApiError, match="status 404"):
            fetch(f"http://public.localhost:{port}/none", "image", 10)


@pytest.mark.parametrize("addresses", [["127.0.0.2", "127.0.0.1"], ["::1", "127.0.0.1", "127.0.0.2"]])
def test_a_host_is_asked_where_it_answers(addresses: list[str], small: Server) -> None:
    """A host has addresses of IPv4 and IPv6, and this machine may have only one of them."""
    port = int(small.url.rsplit(":", 1)[1])
    found = [(socket.AF_UNSPEC, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]
    with patch("socket.getaddrinfo", return_value=found), patch("unified.serving.fetching.is_public"):
        assert public_addresses("a.b", port) == addresses
    with patch("unified.serving.fetching.public_addresses", return_value=addresses):
        assert json.loads(fetch(f"http://public.localhost:{port}/health", "image", 1000))["status"] == "ok"
    with patch("unified.serving.fetching.public_addresses", return_value=["127.0.0.2", "127.0.0.3"]):
        with pytest.raises(ApiError, match="cannot be fetched .ConnectionRefusedError"):
            fetch(f"http://public.localhost:{port}/health", "image", 1000)


def test_a_slow_server_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that sends a byte now and then, which no limit on a single read ends."""
    monkeypatch.setattr("unified.serving.fetching.SECONDS", 0.3)
    monkeypatch.setattr("unified.serving.fetching.public_addresses", lambda *_: ["127.0.0.1"])
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            client, _ = listening.accept()
            with client, suppress(OSError):
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                for _ in range(1000):
                    client.sendall(b"x")
                    time.sleep(0.02)

        thread = threading.Thread(target=drip)
        thread.start()
        with pytest.raises(ApiError, match="cannot be fetched .TimeoutError"):
            fetch(f"http://example.invalid:{listening.getsockname()[1]}/a", "image", 10_000)
        thread.join()


def test_a_client_that_has_gone_is_noticed_however_fast_tokens_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unified.serving.service.POLL", 0.05)

    async def gone() -> bool:
        return True

    async def listen() -> int:
        answers = Answers(1, Metrics())

        async def write() -> None:
            for token in range(100):
                answers.hear(0, TextToken(token))
                await asyncio.sleep(0.01)
            answers.hear(0, Finished("length"))

        writing = asyncio.create_task(write())
        async for _ in answers.events(SimpleNamespace(is_disconnected=gone)):
            pass
        writing.cancel()
        return answers.running

    assert asyncio.run(listen()) == 1


def test_images_are_made_small_as_they_are_read() -> None:
    """Many large ones of a conversation would fill the memory."""
    url = data_uri(Image.new("RGB", (90, 60), "red"))
    engine = SimpleNamespace(processor=SimpleNamespace(image_processor=UnifiedImageProcessor(16)))
    image = read_square(url, "a", SimpleNamespace(engine=engine, settings=ServerSettings()))
    assert image.size == (16, 16) and image.getpixel((8, 8)) == (255, 0, 0)


def shown(url: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}]}


@pytest.mark.parametrize("data", ["\N{LATIN SMALL LETTER E WITH ACUTE}", "a", "@@@@"])
def test_what_is_no_base64_is_refused(small: Server, data: str) -> None:
    answer = post(small, shown(f"data:image/png;base64,{data}"), "chat/completions")
    assert answer.status_code == 400 and "not valid base64" in answer.json()["error"]["message"]


def test_faults_are_errors_of_the_protocol(small: Server) -> None:
    body = shown(data_uri(Image.new("RGB", (16, 16))))
    with patch.object(small.engine, "encode", side_effect=RuntimeError("a secret word")):
        answer = post(small, body, "chat/completions")
    assert answer.status_code == 500 and answer.json()["error"]["type"] == "server_error"
    assert "secret" not in answer.text


def test_a_stopped_engine_is_told_from_a_full_queue(toy_checkpoint: Path) -> None:
    with serve(toy_checkpoint) as server:
        server.engine.stop()
        for answer in (
            post(server, PROMPT),
            post(server, shown(data_uri(Image.new("RGB", (16, 16)))), "chat/completions"),
            httpx.get(f"{server.url}/health"),
        ):
            assert answer.status_code == 503 and answer.json()["error"]["code"] == "stopped"


def test_keys_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    path.write_text("# mine\n" + "a" * 16 + "\n\n" + "b" * 20 + "\n")
    assert read_keys(path) == ("a" * 16, "b" * 20)
    path.write_text("# none\n")
    with pytest.raises(ValueError, match="has no key"):
        read_keys(path)
    path.write_text("short\n")
    with pytest.raises(ValueError, match="keys:1: a key of fewer than 16 characters"):
        read_keys(path)
