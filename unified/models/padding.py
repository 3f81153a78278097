"""Rows of ids as tensors: transformers' options of padding and truncation.

Legend: B batch, T sequence.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers.processing_utils import TextKwargs

# of HF's tokenizers, which arrive among other arguments or in processor_kwargs
ROW_OPTIONS = ("padding", "padding_side", "truncation", "max_length", "pad_to_multiple_of", "add_special_tokens")

# of HF's processors, in one call: options of the tokenizer, of pictures, and of what is not read here
GROUPS = ("text_kwargs", "common_kwargs", "images_kwargs", "videos_kwargs", "audio_kwargs")
OPTIONS = TextKwargs.__annotations__.keys() - {"return_mm_token_type_ids"}


def text_options(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of the tokenizer and of pictures among those `given` to a processor, by groups or not.

    Raises ValueError for names that neither has.
    """
    groups = {name: dict(given.get(name) or {}) for name in GROUPS}
    options = {"return_token_type_ids": False} | {name: value for name, value in given.items() if name not in GROUPS}
    options |= groups["common_kwargs"] | groups["text_kwargs"]
    unknown = [name for name, value in options.items() if name not in OPTIONS and value not in (None, False)]
    unknown += [f"{name} {sorted(groups[name])}" for name in GROUPS[3:] if groups[name]]
    if unknown:
        raise ValueError(f"{', '.join(unknown)}: nothing honours it; valid are {', '.join(sorted(OPTIONS))}")
    pictures = {name: value for name, value in groups["images_kwargs"].items() if name != "return_tensors"}
    return {name: value for name, value in options.items() if name in OPTIONS}, pictures


@dataclass
class Rows:
    """How rows of ids become tensors: HF's options of tokenizers. Raises ValueError for values of no meaning here."""

    padding: Any = None  # None: where several rows become one tensor
    padding_side: str | None = None
    truncation: Any = False
    max_length: int | None = None
    pad_to_multiple_of: int | None = None
    return_tensors: str | None = "pt"
    add_special_tokens: bool = False  # a chat template writes its own

    def __post_init__(self) -> None:
        if self.return_tensors not in ("pt", "np", "auto", None):
            raise ValueError(f"return_tensors {self.return_tensors!r} is not supported; use 'pt', 'np' or None")
        if self.padding not in (None, True, False, "longest", "max_length", "do_not_pad"):
            raise ValueError(f"padding {self.padding!r}; use True, False, 'longest', 'max_length' or 'do_not_pad'")
        if self.padding_side not in (None, "left", "right"):
            raise ValueError(f"padding_side {self.padding_side!r}; use 'left' or 'right'")
        if self.padding == "max_length" and self.max_length is None:
            raise ValueError("padding 'max_length' needs max_length; give it")

    def resolve_auto(self, as_they_are: bool) -> None:
        """Make "auto" lists where rows are asked for `as_they_are` and no padding is given, else tensors."""
        if self.return_tensors == "auto":
            self.return_tensors = None if as_they_are and self.padding is None else "pt"

    def cut(self, row: list[int], image_ids: set[int], side: str) -> slice:
        """What truncation leaves of a row; ValueError where it would cut through images."""
        if (
            self.truncation in (False, None, "do_not_truncate")
            or self.max_length is None
            or len(row) <= self.max_length
        ):
            return slice(None)
        kept = slice(self.max_length) if side == "right" else slice(len(row) - self.max_length, None)
        if image_ids.intersection(row):
            raise ValueError(
                f"max_length {self.max_length} would cut {len(row)} ids with images; raise it, or take turns out"
            )
        return kept

    def feature(self, rows: list[list[int]], filler: int, side: str) -> Any:
        """Rows as lists, or as one tensor (B, T), filled up on `side`."""
        pads = self.padding in (True, "longest", "max_length")
        if self.padding is None:
            pads = self.return_tensors is not None
        width = max(map(len, rows))
        if self.padding == "max_length":
            width = max(width, cast(int, self.max_length))
        if self.pad_to_multiple_of:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        if pads:
            left = (self.padding_side or side) == "left"
            fill = [[filler] * (width - len(row)) for row in rows]
            rows = [more + row if left else row + more for more, row in zip(fill, rows, strict=True)]
        if self.return_tensors is not None and len({len(row) for row in rows}) > 1:
            raise ValueError(f"rows of {sorted({len(row) for row in rows})} ids make no tensor; set padding to True")
        return self.tensor(rows)

    def tensor(self, rows: list[list[int]]) -> Any:
        """Rows of one length as `return_tensors` says."""
        if self.return_tensors is None:
            return rows
        return torch.tensor(rows) if self.return_tensors == "pt" else torch.tensor(rows).numpy()
