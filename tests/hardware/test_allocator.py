"""unified/hardware.allocator.py: glibc is told, another C library is left alone."""

import platform

import pytest

from unified.hardware.allocator import keep_freed_memory


def test_glibc_keeps_what_was_freed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert keep_freed_memory() == (platform.libc_ver()[0] == "glibc")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert not keep_freed_memory()
