"""Reading files of earlier format versions: the only module that knows their values.

Version 1 (until November 2026, without a `format_version`) stored other names for a few values. They are translated
once, when a file is read; digests are computed over the names of version 1, so that they do not change.
"""

from collections.abc import Mapping
from typing import Any

FORMAT_VERSION = 2
# key -> value of version 1 -> value of version 2
RENAMED_VALUES = {
    "image_positions": {"tick": "shared"},
    "positions": {"image": "image_tokens", "onward": "after_image", "apart": "split_ranks"},
}
# of a folder's settings.json, which has no version: key of version 1 -> key of version 2
RENAMED_SETTINGS = {"guidance": "guidance_scale", "heldout_guidance": "heldout_guidance_scale"}
ADDED_SETTINGS = {"top_k": 0, "top_p": 1.0}  # what jobs of version 1 without these keys did
ADDED_TO_TOKENIZERS = {"upsampling": "shuffle", "fit": "crop"}  # ... and trainings of image tokenizers
ADDED_TO_ENCODED = {"opener": 1, "fit": "crop"}  # ... and encodings of images
DROPPED_SETTINGS = ("launch",)  # on which nothing in the folder depends


def upgrade(stored: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Convert the content of the JSON file `where` to this version's; ValueError if a newer version wrote it."""
    version = stored.get("format_version") or 1
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{where} has format_version {version}, this package supports {FORMAT_VERSION}; install a newer unified-ar"
        )
    renamed = {key: names[stored[key]] for key, names in RENAMED_VALUES.items() if stored.get(key) in names}
    return {**stored, **renamed, "format_version": FORMAT_VERSION}


def upgrade_record(made_of: Mapping[str, Any]) -> dict[str, Any]:
    """Add to what a run was made of the settings that version 1 did not have."""
    return {**(ADDED_TO_TOKENIZERS if "codebook_size" in made_of else {}), **made_of}


def upgrade_settings(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a folder's settings of version 1, which named the guidance otherwise, to this version's."""
    kept = {RENAMED_SETTINGS.get(key, key): value for key, value in stored.items() if key not in DROPPED_SETTINGS}
    encoded = {"vq_fingerprint", "shard_size", "inputs"} <= stored.keys()
    return {**(ADDED_SETTINGS if "guidance" in stored else {}), **(ADDED_TO_ENCODED if encoded else {}), **kept}


def name_in_version_1(key: str, value: str) -> str:
    """The name that version 1 stored for this value of `key`, over which digests are computed."""
    return next((old for old, new in RENAMED_VALUES[key].items() if new == value), value)
