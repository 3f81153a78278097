"""Files of public http(s) URLs: never of a private address, bounded in size and time, without redirects."""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit

from unified.serving.errors import ApiError

SECONDS = 10.0  # to connect, and for all of the answer, as slow servers may send a byte now and then
NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address behind it


def public_addresses(host: str, port: int) -> list[str]:
    """Addresses of `host`, the one to try first first; ValueError unless all are public, as a name may have both."""
    found = dict.fromkeys(str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    if not found or not all(is_public(address.split("%")[0]) for address in found):
        raise ValueError("not a public address")
    return list(found)


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
        with closing(connect(host, public_addresses(host, port), port, secure)) as connection:
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


def connect(host: str, addresses: Sequence[str], port: int, secure: bool) -> http.client.HTTPConnection:
    """A connection to the first of the addresses that answers, whatever the name resolves to the next time.

    Raises the last one's OSError where none does, such as those of IPv6 on a machine without it.
    """
    connection: Any = (
        http.client.HTTPSConnection(host, port, timeout=SECONDS, context=ssl.create_default_context())
        if secure
        else http.client.HTTPConnection(host, port, timeout=SECONDS)
    )
    end = time.monotonic() + SECONDS
    connection._create_connection = lambda *_: connected(addresses, port, end)
    return connection  # type: ignore[no-any-return]


def connected(addresses: Sequence[str], port: int, end: float) -> socket.socket:
    """A socket to the first of the addresses that answers before `end`, of time.monotonic()."""
    for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
        try:
            share = (end - time.monotonic()) / left  # so that one that never answers leaves the others theirs
            found = socket.create_connection((address, port), max(share, 0.001))
            found.settimeout(SECONDS)
            return found
        except OSError:
            if left == 1:
                raise
    raise OSError("no address")
