"""What every request passes first: paths without a last slash, keys, and bodies of a bounded size, read in time."""

import asyncio
import hmac

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unified.serving.errors import ApiError
from unified.serving.settings import ServerSettings

API = "/v1/"
BODY_SECONDS = 60.0  # in which a body has to be there


class Gate:
    """ASGI middleware of everything under /v1/, and of /metrics where there are keys."""

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or not (path.startswith(API) or path.rstrip("/") == "/metrics"):
            await self.app(scope, receive, send)
            return
        scope["path"] = path.rstrip("/")  # in place: routes are noted in it
        try:
            self.check_key(scope)
            body = await asyncio.wait_for(self.read(scope, receive), BODY_SECONDS)
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        except TimeoutError:
            late = ApiError(408, f"the body took more than {BODY_SECONDS:.0f} seconds", code="timeout")
            await late.response()(scope, receive, send)
            return
        if body is not None:
            await self.app(scope, replay(body, receive), send)

    def check_key(self, scope: Scope) -> None:
        """Raise ApiError unless a request has one of the keys; all are compared, each in constant time."""
        if not self.settings.api_keys:
            return
        headers = dict(scope["headers"])
        given = headers.get(b"authorization", b"").removeprefix(b"Bearer ").strip()
        if not has_key(given, self.settings.api_keys):
            raise ApiError(
                401, "no valid API key: send the header `Authorization: Bearer KEY`", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip

    async def read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None where the client has gone. Raises ApiError where it is too large."""
        limit, parts, size = self.settings.max_body_bytes, [], 0
        told = dict(scope["headers"]).get(b"content-length", b"0")
        while True:
            size = max(size, int(told) if told.isdigit() else 0)
            if size > limit:
                raise ApiError(413, f"the body has more than {limit} bytes; send fewer or smaller images")
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            told, size = b"", sum(map(len, parts))
            if not message.get("more_body", False):
                if size > limit:
                    raise ApiError(413, f"the body has more than {limit} bytes; send fewer or smaller images")
                return b"".join(parts)


def replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that gives a body that has been read, then what comes after it."""
    given = False

    async def again() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


def has_key(given: bytes, keys: tuple[str, ...]) -> bool:
    """Whether `given` is one of `keys`; all are compared, each in constant time."""
    return any([hmac.compare_digest(given, key.encode()) for key in keys])
