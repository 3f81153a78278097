"""Integrity of safetensors files, and strict loading: no weight of a model may be missing."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

DIGESTED = ("*config.json", "*.safetensors", "pytorch_model*.bin")
SAMPLE = 2**14  # bytes at either end of a tensor that count for its fingerprint


def check_weights(folder: Path, needed: str | None = None) -> None:
    """Raise ValueError if a safetensors file in `folder` is truncated or damaged, or `needed` is missing."""
    if needed and not (folder / needed).is_file():
        raise ValueError(f"{folder} has no {needed}; restore it or make the folder again")
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):  # reads the header and checks the file's length
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{path} is truncated or damaged ({error}); copy it again, or make the folder {folder} again"
            ) from None


def fingerprint(*folders: Path) -> str:
    """Digest of checkpoints or adapters: configurations, and of every tensor its name, shape, first and last bytes.

    So it takes as long for 70B as for a toy, and sees any training.
    """
    found = hashlib.sha256()
    for folder in folders:
        for path in sorted(path for pattern in DIGESTED for path in folder.glob(pattern)):
            found.update(path.name.encode())
            found.update(_samples(path) if path.suffix == ".safetensors" else _content(path))
    return found.hexdigest()[:16]


def _content(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read() if path.suffix == ".json" else hashlib.file_digest(file, "sha256").digest()


def _samples(path: Path) -> bytes:
    """A safetensors file's header, and the ends of every tensor behind it."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
        parts = [header]
        for name, tensor in json.loads(header).items():
            if name != "__metadata__":
                start, stop = tensor["data_offsets"]
                for place in (start, max(start, stop - SAMPLE)):
                    file.seek(8 + length + place)
                    parts.append(file.read(min(SAMPLE, stop - place)))
    return b"".join(parts)


def refuse_missing(folder: str | os.PathLike, missing: Iterable[str], owner: str = "model") -> None:
    """Raise ValueError if weights are `missing` in `folder`, which would be randomly initialized."""
    names = sorted(missing)
    if names:
        raise ValueError(
            f"{folder} lacks {len(names)} of the {owner}'s weights, {names[0]} first; copy it again, or make it again"
        )


def load_strict(model_class: Any, folder: str | os.PathLike, **options: Any) -> Any:
    """`model_class.from_pretrained(folder, **options)` of a class or Auto class of transformers.

    Raises ValueError if a weight is missing in the files.
    """
    model, report = model_class.from_pretrained(folder, output_loading_info=True, **options)
    refuse_missing(folder, report["missing_keys"])
    return model


class StrictPreTrainedModel(PreTrainedModel):
    """A PreTrainedModel whose `from_pretrained` refuses missing weights."""

    @classmethod
    def from_pretrained(  # type: ignore[override]  # HF's signature is longer
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Self:
        """As HF's, but raises ValueError for missing weights instead of a warning."""
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, report = loaded
        refuse_missing(pretrained_model_name_or_path, report["missing_keys"])
        return loaded if output_loading_info else model
