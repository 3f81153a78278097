"""What every request passes first: its host, paths without a last slash, keys, bodies of a bounded size in time."""

import asyncio
import hmac
import ipaddress
import re

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unified.serving.errors import ApiError
from unified.serving.settings import ServerSettings

API = "/v1"
HOST = re.compile(r"(?:\[([^\[\]]+)\]|([^:\[\]]+))(?::[0-9]*)?")  # of a header: an IPv6 address in brackets, or other
BODY_SECONDS = 60.0  # in which a body has to be there


class Gate:
    """ASGI middleware: bodies of all requests; keys of those under /v1 and of /metrics. The page has its login.

    `owner` of a request's state says whose it is, by its key; without keys all are the same one's.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app, self.settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope.setdefault("state", {})["owner"] = ""
        try:
            self.check_host(scope)
            path = scope["path"].rstrip("/")
            if path.startswith(f"{API}/") or path in (API, "/metrics"):
                scope["path"] = path  # in place: routes are noted in it
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

    def check_host(self, scope: Scope) -> None:
        """Raise ApiError where a server without keys is asked by a name that anybody's DNS may give it.

        So would another site's page that has its own name resolve to this machine (DNS rebinding).
        """
        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if self.settings.api_keys or not host:
            return
        parts = HOST.fullmatch(host.lower())
        name = parts[1] or parts[2] if parts else ""
        if not (name == "localhost" or name.endswith(".localhost") or is_address(name)):
            message = f"Host: {host!r} is neither localhost nor an address; a server that is asked by name has keys"
            raise ApiError(403, message, code="host_not_allowed")

    def check_key(self, scope: Scope) -> None:
        """Raise ApiError unless a request has one of the keys; all are compared, each in constant time."""
        if not self.settings.api_keys:
            return
        headers = dict(scope["headers"])
        scheme, _, given = headers.get(b"authorization", b"").partition(b" ")
        number = key_number(given.strip(), self.settings.api_keys) if scheme.lower() == b"bearer" else None
        if number is None:
            raise ApiError(
                401, "no valid API key: send the header `Authorization: Bearer KEY`", code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        scope["state"]["owner"] = f"key {number}"

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


def is_address(name: str) -> bool:
    """Whether a host is an IP address, and no name."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def key_number(given: bytes, keys: tuple[str, ...]) -> int | None:
    """Which of `keys` `given` is; all are compared, each in constant time."""
    same = [hmac.compare_digest(given, key.encode()) for key in keys]
    return same.index(True) if any(same) else None


async def check_json(request: Request) -> None:
    """Raise ApiError for a body that is said to be something else than JSON, as FastAPI takes it for text then."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        given = f"Content-Type: {kind[:100]} is not JSON" if kind else "no Content-Type"
        raise ApiError(415, f"{given}; send application/json", code="unsupported_media_type")
