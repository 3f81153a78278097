"""Files of earlier versions in today's words: the only module that knows the old ones.

Version 1 (until November 2026, without a `format_version`) stored other names for a few values. They are translated
once, as a file is read; digests are computed over the names of version 1, so that they stay what they were.
"""

from collections.abc import Mapping
from typing import Any

FORMAT_VERSION = 2
# key -> value of version 1 -> value of version 2
RENAMED_VALUES = {
    "image_positions": {"tick": "shared"},
    "positions": {"image": "image_tokens", "onward": "after_image", "apart": "split_ranks"},
}


def upgrade(stored: Mapping[str, Any], where: str) -> dict[str, Any]:
    """What a JSON file `where` holds, as this version would have written it; ValueError for a newer version's."""
    version = stored.get("format_version") or 1
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{where} has format_version {version}, this package knows {FORMAT_VERSION}; install a newer unified-ar"
        )
    renamed = {key: names[stored[key]] for key, names in RENAMED_VALUES.items() if stored.get(key) in names}
    return {**stored, **renamed, "format_version": FORMAT_VERSION}


def name_in_version_1(key: str, value: str) -> str:
    """How version 1 stored this value of `key`: what digests are made of."""
    return next((old for old, new in RENAMED_VALUES[key].items() if new == value), value)
