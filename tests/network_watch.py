"""Hosts that tests look up or call: sockets to anything but this machine are counted and refused."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

HERE = ("localhost", "127.0.0.1", "::1", "0.0.0.0", "", None, socket.gethostname())


@contextmanager
def watched() -> Iterator[list[Any]]:
    """Hosts that were looked up or called, which fails."""
    hosts: list[Any] = []
    connect, getaddrinfo = socket.socket.connect, socket.getaddrinfo

    def refuse(host: Any) -> None:
        if (host.decode() if isinstance(host, bytes) else host) not in HERE:
            hosts.append(host)
            raise OSError(f"no network in this test, but {host} is called")

    def checked_connect(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            refuse(address[0])
        connect(self, address)

    def checked_lookup(host: Any, *args: Any, **kwargs: Any) -> Any:
        refuse(host)
        return getaddrinfo(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", checked_connect)
        patch.setattr(socket, "getaddrinfo", checked_lookup)
        yield hosts
