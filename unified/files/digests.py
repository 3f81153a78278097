"""Digests of data sets, by which a run that goes on knows its data again."""

import hashlib
from collections.abc import Callable

COMPARED = 1024  # items that count, evenly spaced: no pass over all of them at the start of a run


def sampled_digest(count: int, read: Callable[[int], bytes], what: str) -> str:
    """The items `read(0)` to `read(count - 1)` in words that can be compared: their number, and up to `COMPARED`."""
    found = hashlib.sha256()
    for index in range(0, count, max(1, -(-count // COMPARED))):
        found.update(read(index))
    return f"{count} {what}, sha256 {found.hexdigest()[:16]}"
