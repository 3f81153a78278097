"""Files of public http(s) URLs: never of a private address, bounded in size and time, without redirects."""

import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from unified.serving.errors import ApiError

SECONDS = 10.0  # to connect, and for all of the answer, as slow servers may send a byte now and then
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address behind it


def public_address(host: str, port: int) -> str:
    """An address of `host`; ValueError unless all it has are public, as a name may have one of each."""
    found = {str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    if not found or not all(is_public(address.split("%")[0]) for address in found):
        raise ValueError("not a public address")
    return sorted(found)[0]


def is_public(address: str) -> bool:
    """Whether an IP address, and the IPv4 address in it, is one of the public internet's."""
    ip = ipaddress.ip_address(address)
    inner = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())] if isinstance(ip, ipaddress.IPv6Address) else []
    if ip in NAT64:
        inner.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return all(part.is_global and not part.is_multicast for part in (ip, *inner) if part is not None)


def fetch(url: str, where: str, max_bytes: int) -> bytes:
    """What an http(s) URL holds; ApiError that begins with `where` for whatever cannot or may not be fetched."""
    try:
        parts = urlsplit(url)
        secure, host = parts.scheme.lower() == "https", parts.hostname or ""
        port = parts.port or (443 if secure else 80)
        if parts.username or parts.password or not host:
            raise ValueError("a host without user and password is asked for")
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        with closing(connect(host, public_address(host, port), port, secure)) as connection:
            connection.connect()
            with ended_in_time(connection.sock):
                connection.request("GET", path, headers={"User-Agent": "unified", "Accept": "image/*"})
                with connection.getresponse() as response:
                    if response.status != 200:
                        raise ValueError(f"status {response.status}; redirects are not followed")
                    data = response.read(max_bytes + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = str(error) if isinstance(error, ValueError) else type(error).__name__
        raise ApiError(400, f"{where}: cannot be fetched ({reason})", where, "invalid_image_url") from None
    if len(data) > max_bytes:
        raise ApiError(413, f"{where}: more than {max_bytes} bytes", where, "image_too_large")
    return data


@contextmanager
def ended_in_time(connected: socket.socket) -> Iterator[None]:
    """Ends a connection after `SECONDS`, whoever waits for it; TimeoutError then."""
    late = threading.Event()

    def end() -> None:
        late.set()
        with suppress(OSError):  # closed already
            socket.socket.shutdown(connected, socket.SHUT_RDWR)  # not TLS' own, which is another thread's

    timer = threading.Timer(SECONDS, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if late.is_set():
            raise TimeoutError


def connect(host: str, address: str, port: int, secure: bool) -> http.client.HTTPConnection:
    """A connection to the address that was looked at, whatever the name resolves to the next time."""
    connection: Any = (
        http.client.HTTPSConnection(host, port, timeout=SECONDS, context=ssl.create_default_context())
        if secure
        else http.client.HTTPConnection(host, port, timeout=SECONDS)
    )
    connection._create_connection = lambda _, *args: socket.create_connection((address, port), SECONDS)
    return connection  # type: ignore[no-any-return]
