"""Conversations that may go on: their keys and values, by what was said, the least recently used ones dropped.

Legend: T positions in a cache.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unified.models.configuration import UnifiedConfig
from unified.models.row_cache import CachedRow
from unified.models.sequence_layout import read_layout


@dataclass(frozen=True)
class Prefix:
    """The first positions of a prompt, in a cache already: the last's RoPE position, whether any is an image's.

    images: number of input images among them.
    """

    row: CachedRow
    position: int
    image_seen: bool
    images: int

    @property
    def length(self) -> int:
        """Number of positions."""
        return self.row.length


def position_keys(ids: Sequence[int], codes: Tensor, config: UnifiedConfig) -> np.ndarray:
    """What each of a prompt's positions holds, (T,) int64: its id, in input images a digest of the image's codes."""
    keys = np.asarray(ids, dtype=np.int64)
    placeholders = np.flatnonzero(keys == config.image_pad_token_id)
    digests = [hashlib.sha256(row.cpu().numpy().tobytes()).digest()[:7] for row in codes]
    values = [-1 - int.from_bytes(digest, "big") for digest in digests]
    keys[placeholders] = np.repeat(np.array(values, dtype=np.int64), config.input_image_length)
    return keys


class PrefixCache:
    """Rows of finished answers, together at most `max_bytes`."""

    def __init__(self, config: UnifiedConfig, max_bytes: int) -> None:
        self.config, self.max_bytes = config, max_bytes
        self.rows: OrderedDict[tuple[str, bytes], tuple[np.ndarray, CachedRow]] = OrderedDict()  # by owner and keys
        self.bytes = 0  # in memory; a number, as other threads read it

    def put(self, keys: np.ndarray, row: CachedRow, owner: str = "") -> None:
        """Keep a row whose positions hold `keys` (T,) for its `owner`, whose rows that it continues are dropped."""
        for name, (shorter, _) in list(self.rows.items()):
            if name[0] == owner and len(shorter) <= len(keys) and np.array_equal(shorter, keys[: len(shorter)]):
                del self.rows[name]
        self.rows[owner, keys.tobytes()] = keys, row
        size = sum(row.bytes for _, row in self.rows.values())
        while size > self.max_bytes:
            _, (_, dropped) = self.rows.popitem(last=False)
            size -= dropped.bytes
        self.bytes = size

    def find(self, keys: np.ndarray, owner: str = "") -> Prefix | None:
        """The longest beginning of a prompt that is cached, ending before its last position and in no image."""
        best, name = 0, (owner, b"")
        for candidate, (stored, _) in self.rows.items():
            if candidate[0] != owner:
                continue
            shared = min(len(stored), len(keys) - 1)
            differing = np.flatnonzero(stored[:shared] != keys[:shared])
            length = self.before_image(keys, int(differing[0]) if len(differing) else shared)
            if length > best:
                best, name = length, candidate
        if not best:
            return None
        self.rows.move_to_end(name)
        return self.prefix(keys[:best], self.rows[name][1].cut(best))

    def before_image(self, keys: np.ndarray, length: int) -> int:
        """`length`, or less where position `length` continues an image that begins before it."""
        while length and self.in_image(keys[length]) and self.in_image(keys[length - 1]):
            length -= 1
        return length

    def in_image(self, key: int) -> bool:
        """Whether a position is an image's."""
        return key < 0 or key in self.config.vocabulary.image_ids

    def prefix(self, keys: np.ndarray, row: CachedRow) -> Prefix:
        """A row that holds `keys` (T,), with what is to know of it."""
        ids = torch.from_numpy(np.where(keys < 0, self.config.image_pad_token_id, keys))[None]
        layout = read_layout(ids, self.config)
        images = int((keys < 0).sum()) // self.config.input_image_length
        return Prefix(row, int(layout.position_steps.sum()) - 1, bool((layout.blocks >= 0).any()), images)
