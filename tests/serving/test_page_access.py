"""What of gradio is served beside the API, and to whom; without a browser."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from page_process import STOP_SECONDS, Server, page_server

from unified.serving.page_access import check_files

CLOSED_SECONDS, OPEN_SECONDS = 600, 7200  # page_sessions', whose import would leave gradio's loops open
KEY = "a key of 16 chars or more"
API = "/gradio_api"
LOGGED_IN = [
    ("GET", "/config"), ("POST", f"{API}/queue/join"), ("POST", f"{API}/run/predict"),
    ("GET", f"{API}/queue/data?session_hash=a"), ("POST", f"{API}/upload"),
    ("GET", f"{API}/upload_progress?upload_id=a"), ("GET", f"{API}/file=/etc/passwd"),
    ("GET", f"{API}/heartbeat/a"), ("POST", f"{API}/cancel"), ("POST", f"{API}/reset"), ("GET", f"{API}/info"),
    ("GET", f"{API}/app_id"), ("GET", f"{API}/startup-events"), ("HEAD", "/config"),
]  # fmt: skip
NOT_SERVED = [
    ("GET", "/nothing"), ("POST", "/chat/completions"), ("GET", "/v1"), ("GET", "/v1/"), ("GET", "/v1/nothing"),
    ("GET", "/healthy"), ("GET", "/monitoring"), ("GET", "/monitoring/summary"),
    ("GET", f"{API}/proxy=https://example.com/a"), ("GET", f"{API}/file=https://example.com/a"),
    ("GET", f"{API}/file=../etc/passwd"), ("GET", f"{API}/file/etc/passwd"), ("GET", f"{API}/token"),
    ("GET", f"{API}/deep_link?session_hash=a"), ("GET", f"{API}/dev/reload"), ("POST", f"{API}/vibe-edit"),
    ("GET", f"{API}/custom_component/a/client/b/c"), ("POST", f"{API}/stream/a"), ("GET", f"{API}/openapi.json"),
    ("POST", f"{API}/component_server"), ("POST", f"{API}/call/predict"),
]  # fmt: skip


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with page_server(tmp_path_factory.mktemp("locked"), "another key of 16 chars", KEY) as running:
        yield running


def ask(server: Server, method: str, path: str, **more: object) -> httpx.Response:
    return httpx.request(method, f"{server.url}{path}", timeout=30, **more)


def login(server: Server, password: str) -> httpx.Response:
    return ask(server, "POST", "/login", data={"username": "me", "password": password})


def test_nothing_of_the_page_works_without_a_key(locked: Server) -> None:
    for method, path in LOGGED_IN:
        for cookies in ({}, {"access-token-a": "b"}):
            refused = ask(locked, method, path, cookies=cookies)
            assert refused.status_code == 401, (method, path, refused.text)
            if method != "HEAD":
                assert refused.json()["error"]["type"] == "authentication_error"
        assert ask(locked, method, path, headers={"Authorization": f"Bearer {KEY}"}).status_code == 401
    shown = ask(locked, "GET", "/")
    assert shown.status_code == 200 and '"auth_required":true' in shown.text.replace(" ", "")
    assert "Temperature" not in shown.text and ask(locked, "GET", "/theme.css").status_code == 200


def test_a_key_of_the_server_opens_the_page(locked: Server) -> None:
    for wrong in ("", "wrong", KEY[:-1], KEY + "x", "é\U0001f408", "another key of 16 chars\n"):
        refused = login(locked, wrong)
        assert refused.status_code in (400, 422) and not refused.cookies
    right = login(locked, KEY)
    assert right.status_code == 200 and all("HttpOnly" in it for it in right.headers.get_list("set-cookie"))
    with httpx.Client(base_url=locked.url, cookies=right.cookies) as browser:
        assert browser.get("/config").status_code == 200 and "Temperature" in browser.get("/").text
        uploaded = browser.post(f"{API}/upload", files={"files": ("a.txt", b"it", "text/plain")})
        assert browser.get(f"{API}/file={uploaded.json()[0]}").content == b"it"
        browser.get("/logout")
    with httpx.Client(base_url=locked.url, cookies=right.cookies) as browser:
        assert browser.get("/config").status_code == 401  # the login is forgotten, and not by the browser alone


def test_a_login_is_none_for_the_api(locked: Server) -> None:
    assert ask(locked, "GET", "/v1/models", cookies=login(locked, KEY).cookies).status_code == 401


def test_files_of_the_machine_are_not_shown(locked: Server) -> None:
    cookies = login(locked, KEY).cookies
    uploaded = ask(locked, "POST", f"{API}/upload", cookies=cookies, files={"files": ("a", b"it")}).json()[0]
    outside = [
        "/etc/passwd", "//etc/passwd", "/proc/self/environ", "/", __file__, f"{uploaded}/../../../../etc/passwd",
        str(Path(uploaded).parent), "/%2e%2e/etc/passwd", "/..%2f..%2fetc%2fpasswd",
    ]  # fmt: skip
    for path in outside:
        refused = ask(locked, "GET", f"{API}/file={path}", cookies=cookies)
        assert refused.status_code in (403, 404), (path, refused.text)
    for folder in ("/static", "/assets", "/svelte"):
        for path in ("..%2f..%2froutes.py", "%2e%2e/%2e%2e/routes.py", "%2fetc%2fpasswd"):
            assert ask(locked, "GET", f"{folder}/{path}", cookies=cookies).status_code in (403, 404)


def test_errors_beside_the_page_are_those_of_the_api(locked: Server) -> None:
    """And of gradio's routes those that the page does not need are not there, for anybody."""
    key = {"Authorization": f"Bearer {KEY}"}
    for method, path in NOT_SERVED:
        missing = ask(locked, method, path, headers=key, cookies=login(locked, KEY).cookies)
        assert missing.status_code == 404, (method, path, missing.text)
        assert missing.json()["error"] | {"message": ""} == {
            "message": "", "type": "invalid_request_error", "param": None, "code": "not_found",
        }  # fmt: skip
    for method, path in [("GET", "/v1/chat/completions"), ("DELETE", "/v1/models"), ("POST", "/health"),
                         ("PUT", "/v1/images/generations/"), ("POST", "/metrics")]:  # fmt: skip
        wrong = ask(locked, method, path, headers=key)
        assert wrong.status_code == 405 and wrong.json()["error"]["code"] == "method_not_allowed", (method, path)
        assert wrong.headers["allow"]
    assert ask(locked, "GET", "/v1").json()["error"]["code"] == "invalid_api_key"


def test_pages_of_other_sites_get_no_answer(locked: Server) -> None:
    cookies, origin = login(locked, KEY).cookies, {"Origin": "https://example.org", "Host": "models.example.com"}
    answer = ask(locked, "GET", "/config", cookies=cookies, headers=origin)
    assert not [name for name in answer.headers if name.startswith("access-control")]
    preflight = {**origin, "Access-Control-Request-Method": "POST"}
    answer = ask(locked, "OPTIONS", "/login", cookies=cookies, headers=preflight)
    assert answer.status_code == 405 and "access-control-allow-origin" not in answer.headers
    sent = {**origin, "Sec-Fetch-Site": "cross-site"}
    answer = ask(locked, "POST", f"{API}/upload", cookies=cookies, headers=sent, files={"files": ("a", b"it")})
    assert answer.status_code == 403 and answer.json()["error"]["code"] == "cross_site"


def test_bodies_for_the_page_are_bounded_before_a_login(locked: Server) -> None:
    for path in ("/login", f"{API}/queue/join", f"{API}/upload"):
        answer = ask(locked, "POST", path, content=b"x" * 100_001)
        assert answer.status_code == 413, path
    many = [("files", (f"{number}.txt", b"x" * 20_000)) for number in range(6)]
    assert ask(locked, "POST", f"{API}/upload", files=many, cookies=login(locked, KEY).cookies).status_code == 413


def begin(server: Server, words: str, session: str, count: int = 1, **more: object) -> None:
    """Press "Draw" for some pictures."""
    config = httpx.get(f"{server.url}/config", **more).json()
    number = next(one["id"] for one in config["dependencies"] if one["api_name"] == "create")
    body = {"data": [words, count, 5, 1, 1, None], "fn_index": number, "session_hash": session, "trigger_id": 1}
    httpx.post(f"{server.url}{API}/queue/join", json=body, **more).raise_for_status()


def test_a_file_of_a_call_is_no_url(locked: Server) -> None:
    """gradio would fetch it, and `--allow-urls` is off."""
    cookies, meta = login(locked, KEY).cookies, {"_type": "gradio.FileData"}
    files: list[dict[str, object]] = [
        {"path": "http://example.com/a.png", "meta": meta}, {"path": " HTTPS://example.com/a", "url": "/tmp/a"},
        {"url": "https://example.com/a.png"},
    ]  # fmt: skip
    for file in files:
        for data in ([file], [[{"files": [file]}]], {"deep": {"er": file}}):
            for path in ("queue/join", "run/predict"):
                body = {"data": data, "fn_index": 0, "session_hash": "a"}
                refused = ask(locked, "POST", f"{API}/{path}", json=body, cookies=cookies)
                assert refused.status_code == 400 and "URLs are not fetched here" in refused.text
    local = {"data": [{"text": "see http://a", "path": "/tmp/a", "url": f"{locked.url}/a"}], "session_hash": "a"}
    check_files(json.dumps(local).encode())
    for strange in (b"", b"[" * 100_000, b"\xff", b"5", b'"http://a"'):
        check_files(strange)


def test_a_page_that_is_reloaded_while_it_draws_gives_its_places_and_its_pictures_free(locked: Server) -> None:
    cookies = login(locked, KEY).cookies
    with httpx.Client(base_url=locked.url, cookies=cookies, timeout=60) as browser:
        for session in ("before", "after"):
            with browser.stream("GET", f"{API}/heartbeat/{session}") as heartbeat:
                next(heartbeat.iter_lines())
                begin(locked, "a cat", session, 4, cookies=cookies)
                with browser.stream("GET", f"{API}/queue/data?session_hash={session}") as events:
                    lines = events.iter_lines()
                    next(line for line in lines if "process_generating" in line)
                    assert locked.pages() == 1
            wait_until(lambda: not locked.active)
            wait_until(lambda: not locked.pages(CLOSED_SECONDS))  # again where its last step has come after it


def test_a_page_that_is_left_alone_is_forgotten(locked: Server) -> None:
    cookies = login(locked, KEY).cookies
    with httpx.Client(base_url=locked.url, cookies=cookies, timeout=60) as browser:
        with browser.stream("GET", f"{API}/heartbeat/alone") as heartbeat:
            beats = heartbeat.iter_lines()
            next(beats)
            begin(locked, "a cat", "alone", cookies=cookies)
            wait_until(lambda: locked.pages() == 1)
            wait_until(lambda: not locked.active)
            assert locked.pages(OPEN_SECONDS - 60) == 1
            time.sleep(1.5)  # gradio looks every second
            assert locked.pages(61) == 1
            wait_until(lambda: locked.pages() == 0)


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_a_stopping_server_leaves_idle_pages_and_finishes_begun_drawings(tmp_path: Path) -> None:
    server = Server(tmp_path)
    try:
        with httpx.Client(base_url=server.url, timeout=60) as browser:
            with (
                browser.stream("GET", f"{API}/heartbeat/idle") as idle,
                browser.stream("GET", f"{API}/heartbeat/busy") as busy,
            ):
                beats = [stream.iter_lines() for stream in (idle, busy)]
                assert [next(lines) for lines in beats] == ["data: ALIVE"] * 2
                begin(server, "a cat", "busy")
                with browser.stream("GET", f"{API}/queue/data?session_hash=busy") as events:
                    lines = (line for line in events.iter_lines() if line)
                    while json.loads(next(lines)[6:])["msg"] != "process_generating":
                        pass
                    server.process.terminate()
                    told = [json.loads(line[6:]) for line in lines]
        assert told[-1]["msg"] == "close_stream" and told[-2]["success"], told[-2]
        assert 'download="a-cat-5.png"' in str(told)
        server.process.wait(STOP_SECONDS)
    finally:
        server.process.kill()
        written = server.stop()
    assert "ancel" not in written and "Traceback" not in written, written
