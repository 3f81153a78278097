"""What of gradio is served, and to whom: the paths that the page asks for, after a login where the server has keys.

Gradio has more routes than its pages need (a proxy, remote files, editors), and asks for a login on some of them only.
"""

import asyncio
import json
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from starlette.datastructures import MutableHeaders
from starlette.requests import HTTPConnection
from starlette.types import Message, Receive, Scope, Send

from unified.serving.errors import ApiError, unsupported
from unified.serving.gate import replay

if TYPE_CHECKING:
    from gradio.routes import App

API = "/gradio_api"
OPEN = ("/", "/login", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", f"{API}/theme.css")
OPEN_FOLDERS = ("/assets/", "/static/", "/svelte/")
EVENTS, HEARTBEAT = f"{API}/queue/data", f"{API}/heartbeat/"
CALLS = (f"{API}/queue/join", f"{API}/run/predict")
WITH_KEY = (
    "/config", "/logout", EVENTS, *CALLS,
    *(f"{API}/{name}" for name in ("upload", "upload_progress", "cancel", "reset")),
    *(f"{API}/{name}" for name in ("info", "app_id", "startup-events")),
)  # fmt: skip
# of files those of this machine, absolute: gradio refuses all but uploads, and would fetch what begins with http
FOLDERS_WITH_KEY = (HEARTBEAT, f"{API}/file=/")
POLL = 0.1  # seconds
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; media-src 'self' data: blob:; font-src 'self' data:; "
    "style-src 'self' 'unsafe-inline'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'self'; form-action 'self'; frame-ancestors 'self'"
)


def is_of_page(path: str) -> bool:
    """Whether the page asks for it."""
    return is_open(path) or path in WITH_KEY or path.startswith(FOLDERS_WITH_KEY)


def is_open(path: str) -> bool:
    """Whether it is shown before a login: the login itself and what it is drawn with, the same for every model."""
    return path in OPEN or path.startswith(OPEN_FOLDERS)


def session_of(scope: Scope) -> str | None:
    """The session whose events a browser listens to; None for all other requests."""
    path: str = scope["path"]
    if path.startswith(HEARTBEAT):
        return path.removeprefix(HEARTBEAT)
    return HTTPConnection(scope).query_params.get("session_hash") if path == EVENTS else None


async def body_of(receive: Receive) -> bytes:
    """All of a request's body, which is bounded; what there is of one whose client has gone."""
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    return b"".join(parts)


def check_files(body: bytes) -> None:
    """Raise ApiError where a call names a URL as a file, which gradio would fetch, whatever the server allows."""
    try:
        rest = [json.loads(body)]
    except (ValueError, RecursionError):  # gradio does not take it either
        return
    while rest:
        one = rest.pop()
        if isinstance(one, dict):
            place = one.get("path", one.get("url"))
            if isinstance(place, str) and place.strip().lower().startswith(("http:", "https:")):
                raise unsupported("data", "URLs are not fetched here; upload the file")
        if isinstance(one, dict | list):
            rest += one.values() if isinstance(one, dict) else one


class PageAccess:
    """ASGI app: gradio's behind the login and a Content-Security-Policy, for pages of this server alone."""

    def __init__(self, app: "App", stopping: asyncio.Event) -> None:
        self.app, self.stopping = app, stopping

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_begun = False

        async def send_with_policy(message: Message) -> None:
            nonlocal is_begun
            is_begun = message.get("more_body", message["type"] == "http.response.start")
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        try:
            self.check(scope)
            if scope["path"] in CALLS:
                body = await body_of(receive)
                check_files(body)
                receive = replay(body, receive)
        except ApiError as error:
            await error.response()(scope, receive, send_with_policy)
            return
        # gradio answers other sites' pages as if it knew them; without their name it says nothing to them
        scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"origin"]
        session = session_of(scope)
        if session is None:
            await self.app(scope, receive, send_with_policy)
        else:
            await self.stream(self.app(scope, receive, send_with_policy), session)
            if is_begun:
                await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def stream(self, answer: Coroutine[Any, Any, None], session: str) -> None:
        """Events, which have no end of their own, until the server stops and the session's answers are complete."""
        answering, over = asyncio.create_task(answer), asyncio.create_task(self.is_over(session))
        try:
            await asyncio.wait([answering, over], return_when=asyncio.FIRST_COMPLETED)
        finally:
            answering.cancel()
            over.cancel()
            await asyncio.wait([answering, over])
        if not answering.cancelled():
            answering.result()

    async def is_over(self, session: str) -> None:
        """Wait until the server stops and nothing of the session is answered any more."""
        await self.stopping.wait()
        while self.app.get_blocks()._queue.pending_event_ids_session.get(session):
            await asyncio.sleep(POLL)

    def check(self, scope: Scope) -> None:
        """Raise ApiError for who has not logged in, and for what another site's page sends."""
        connection = HTTPConnection(scope)
        if scope["method"] != "GET" and connection.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise ApiError(403, "the page of another site may not ask this one", code="cross_site")
        if self.app.auth is not None and not is_open(scope["path"]) and not self.has_login(connection):
            raise ApiError(401, "not logged in: open / and give an API key as the password", code="invalid_api_key")

    def has_login(self, connection: HTTPConnection) -> bool:
        """Whether the browser has the cookie of a login, as gradio sets it."""
        name = self.app.cookie_id
        cookies = (connection.cookies.get(f"access-token{kind}-{name}") for kind in ("", "-unsecure"))
        return any(cookie in self.app.tokens for cookie in cookies)
