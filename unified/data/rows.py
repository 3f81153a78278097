"""Rows on disk: chats with images (JSONL or parquet), and encoded chats with codes instead.

A *row* is `{"messages", "images", "tools", "metadata", "source"}`; an *encoded row* has `codes` in place of `images`.
In both, every `{"type": "image"}` part of the messages stands for the next image, in order. L: codes of one image.
`unified.data.forms` says in which other forms rows are read.
"""

import base64
import binascii
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Features, Image, List, Value

from unified.data.forms import as_row
from unified.data.parquet import (
    count_parquet_rows,
    parquet_rows,
    read_parquet,
    read_schema,
    write_parquet,
)
from unified.files.atomic import write_text
from unified.files.images import OPENER_VERSION, Fit
from unified.files.jsonl import numbered_lines, parse_object
from unified.image_tokenizer.scales import PatchNums, image_length, normalize_patch_nums
from unified.models.format_version import upgrade_settings
from unified.models.messages import shorten

PART = {"type": Value("string"), "text": Value("string")}
MESSAGE = {"role": Value("string"), "content": List(PART)}
MESSAGES = List(MESSAGE)
# files of rows that have one of these keys hold all of them, others none, as before there were any
EXTRA_KEYS = {
    "weight": Value("int8"),
    "name": Value("string"),
    "tool_calls": Value("string"),
    "tool_call_id": Value("string"),
}
ALL_MESSAGES = List({**MESSAGE, **EXTRA_KEYS})
CODES = List(List(Value("int32")))
_ORIGIN = {"metadata": Value("string"), "source": Value("string")}
ROW_FEATURES = Features({"messages": MESSAGES, "images": List(Image()), **_ORIGIN})
ENCODED_FEATURES = Features({"messages": MESSAGES, "codes": CODES, **_ORIGIN})
ALL_FEATURES = Features({**ENCODED_FEATURES, "messages": ALL_MESSAGES, "tools": Value("string")})
# without the note about features that `datasets` would leave in files
ROW_SCHEMA, ENCODED_SCHEMA, ALL_SCHEMA = (
    kind.arrow_schema.remove_metadata() for kind in (ROW_FEATURES, ENCODED_FEATURES, ALL_FEATURES)
)
SHOWN_ERRORS = 3  # rows named in one error message


@dataclass(frozen=True)
class ImageRef:
    """An image that is not read yet: its name for error messages, and its bytes or file."""

    name: str
    data: bytes | None = None
    file: Path | None = None

    def read(self) -> bytes:
        """Bytes of the image file; raises OSError when it cannot be read."""
        return self.data if self.data is not None else Path(self.file or self.name).read_bytes()


@dataclass(frozen=True)
class Row:
    """One validated row; `messages` have lists of parts as content, `where` is `file:number` counted from 1.

    `tools`, and `tool_calls` of messages, are JSON.
    """

    messages: list[dict[str, Any]]
    images: list[ImageRef]
    metadata: str
    source: str
    where: str
    tools: str | None = None

    def encoded(self, codes: list[list[int]]) -> dict[str, Any]:
        """The row with the codes of its images in place of them."""
        tools = {"tools": self.tools} if self.tools else {}
        return {"messages": self.messages, "codes": codes, "metadata": self.metadata, "source": self.source, **tools}


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read, and why."""

    where: str
    reason: str
    images: tuple[ImageRef, ...] = ()


def count_rows(path: str | Path, max_bad: int = 0) -> int:
    """Number of rows of a `.jsonl` or `.parquet` file, with up to `max_bad` that cannot be read.

    JSONL is validated, so that an error in its last line is found before hours of work on the others.
    Raises ValueError naming some of more bad rows, and for what is no such file.
    """
    if _kind(path) == ".parquet":
        return count_parquet_rows(path)
    bad, count = [], 0
    for row in iter_rows(path):
        count += 1
        bad += [row] if isinstance(row, BadRow) else []
    if len(bad) > max_bad:
        raise ValueError(name_errors([f"{row.where}: {row.reason}" for row in bad], "rows"))
    return count


def name_errors(errors: Sequence[str], what: str) -> str:
    """How many errors there are, and the first of them, in one line."""
    shown = "; ".join(errors[:SHOWN_ERRORS])
    more = f"; and {len(errors) - SHOWN_ERRORS} more" if len(errors) > SHOWN_ERRORS else ""
    return f"{len(errors)} bad {what}: {shown}{more}"


def leave_out(errors: Sequence[tuple[Callable[[], str], str]], max_bad: int, what: str) -> None:
    """Say on stderr that rows are left out, and which first; an error is a row's name, made when asked, and why.

    Raises ValueError, which says the same, for more than `max_bad`.
    """
    if not errors:
        return
    shown = [f"{name()}: {reason}" for name, reason in errors[:SHOWN_ERRORS]]
    said = name_errors([*shown, *[""] * (len(errors) - len(shown))], what)
    if len(errors) > max_bad:
        raise ValueError(f"{said}; mend them, or leave up to {len(errors)} out with max_bad (now {max_bad})")
    if os.environ.get("RANK", "0") == "0":
        sys.stderr.write(f"left out {said}\n")


def read_rows(path: str | Path, start: int = 0, stop: int | None = None) -> Iterator[Row]:
    """`iter_rows` that raises ValueError, naming file and row, for a row that cannot be read."""
    for row in iter_rows(path, start, stop):
        if isinstance(row, BadRow):
            raise ValueError(f"{row.where}: {row.reason}")
        yield row


def iter_rows(path: str | Path, start: int = 0, stop: int | None = None) -> Iterator[Row | BadRow]:
    """Rows `start` to `stop` (half-open, blank lines not counted) of a `.jsonl` or `.parquet` file.

    In JSONL a content may be a plain string, images are paths relative to the file, `metadata` may be an object, and
    `metadata` and `source` (default: the file's stem) may be missing. Other forms: `unified.data.forms`.
    Raises ValueError for what is no such file.
    """
    path = Path(path)
    for where, record in iter_records(path, start, stop):
        try:
            yield _checked(record, path, where)
        except ValueError as error:
            yield BadRow(where, str(error))


def iter_records(path: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[str, dict[str, Any] | bytes]]:
    """Records and their `file:number`: objects of a parquet file, lines of JSONL; for `as_record`."""
    numbered: Iterator[tuple[int, Any]]
    numbered = parquet_rows(path, start, stop) if _kind(path) == ".parquet" else numbered_lines(path, start, stop)
    return ((f"{path}:{number}", record) for number, record in numbered)


def as_record(record: dict[str, Any] | bytes) -> dict[str, Any]:
    """The object of a record; raises ValueError for a line that is none."""
    return parse_object(record) if isinstance(record, bytes) else record


def write_encoded_shard(
    path: str | Path,
    rows: Iterable[dict[str, Any]],
    fingerprint: str,
    patch_nums: PatchNums,
    opener: int = OPENER_VERSION,
    fit: Fit | None = None,
) -> None:
    """Write encoded rows (`ENCODED_SCHEMA`'s columns) to one parquet file, atomically.

    `fingerprint` and `patch_nums` are the tokenizer's; "" and () for rows without codes, valid for every tokenizer.
    `opener` is the version of the opener that the images went through, `fit` what made them square, None where all
    of them were.
    Raises ValueError when a list of codes does not have L entries.
    """
    rows, length = list(rows), image_length(patch_nums) if patch_nums else 0
    for codes in (codes for row in rows for codes in row["codes"]):
        if len(codes) != length:
            raise ValueError(f"{path}: an image has {len(codes)} codes, its tokenizer gives {length}; encode it again")
    scales = normalize_patch_nums(patch_nums) if patch_nums else ()
    metadata = {"vq_fingerprint": fingerprint, "patch_nums": json.dumps(scales)}
    if fingerprint:
        metadata["opener"] = str(opener)
    if fit is not None:
        metadata["fit"] = fit
    schema = ALL_SCHEMA if any(map(has_extras, rows)) else ENCODED_SCHEMA
    write_parquet(path, pa.Table.from_pylist(rows, schema=schema.with_metadata(metadata)))


def has_extras(row: Mapping[str, Any]) -> bool:
    """Whether an encoded row has tools, or messages more than role and content."""
    return bool(row.get("tools")) or any(
        message.get(key) is not None for message in row["messages"] for key in EXTRA_KEYS
    )


def features_of(path: str | Path) -> Features:
    """Columns of an encoded file."""
    return ALL_FEATURES if "tools" in read_schema(path).names else ENCODED_FEATURES


def read_encoded_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows of an encoded shard as dicts of `ENCODED_SCHEMA`'s columns; the inverse of `write_encoded_shard`.

    What a row does not have of `ALL_SCHEMA` is left out.
    """
    rows = read_parquet(path, list(features_of(path)))
    for row in rows:
        row["messages"] = [
            {key: value for key, value in message.items() if key not in EXTRA_KEYS or value is not None}
            for message in row["messages"]
        ]
    return [{key: value for key, value in row.items() if key != "tools" or value is not None} for row in rows]


def init_output_folder(folder: str | Path, settings: dict[str, Any]) -> Path:
    """Create the output folder of a job and its `settings.json`, or check that an existing one has these `settings`.

    Safe to call from several processes at once. Raises ValueError naming a setting that differs, and for parquet
    files without a `settings.json`.
    """
    folder, text = Path(folder), json.dumps(settings, indent=2) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    path, has_shards = folder / "settings.json", any(folder.glob("*.parquet"))  # shards are written after it
    if path.exists():
        found, settings = upgrade_settings(json.loads(path.read_text(encoding="utf-8"))), json.loads(text)
        changed = [key for key in {**found, **settings} if found.get(key) != settings.get(key)]
        if changed:
            key = changed[0]
            values = f"{shorten(found.get(key))}, not {shorten(settings.get(key))}"
            raise ValueError(f"{folder} was made with {key} {values}; give another --out or delete the folder")
        return folder
    if has_shards:
        raise ValueError(f"{folder} holds parquet files without a settings.json; give another --out")
    write_text(path, text)
    return folder


def _kind(path: str | Path) -> str:
    suffix = Path(path).suffix
    if suffix not in (".jsonl", ".parquet"):
        raise ValueError(f"{path} is neither .jsonl nor .parquet; give files of rows, for instance DIR/*.parquet")
    if not Path(path).is_file():
        raise ValueError(f"{path} is not a file; check the path")
    return suffix


def _checked(record: dict[str, Any] | bytes, path: Path, where: str) -> Row:
    row = as_row(as_record(record))
    images = [image_ref(image, path, where) for image in row["images"]]
    return Row(row["messages"], images, row["metadata"], str(row["source"] or path.stem), where, row["tools"])


def image_ref(image: Any, path: Path, where: str) -> ImageRef:
    """A picture of a record of `path`; raises ValueError for what is none."""
    if isinstance(image, bytes):
        return ImageRef(where, data=image)
    if isinstance(image, str) and image.startswith("data:"):
        head, _, body = image.partition(",")
        if not head.endswith(";base64"):
            raise ValueError(f"image {shorten(image)} is no base64; give the picture's path")
        try:
            return ImageRef(where, data=base64.b64decode(body, validate=True))
        except binascii.Error as error:
            raise ValueError(f"image {shorten(image)} is no base64 ({error}); write it whole") from None
    if isinstance(image, str) and re.match(r"https?://", image):
        raise ValueError(f"image {shorten(image)} is on the web; download it and give its path")
    if isinstance(image, str):
        return ImageRef(image, file=path.parent / image)
    if isinstance(image, dict) and image.get("bytes") is not None:
        return ImageRef(image.get("path") or where, data=image["bytes"])
    if isinstance(image, dict) and image.get("path"):
        return ImageRef(image["path"], file=path.parent / image["path"])
    raise ValueError(f"image {shorten(image)}; give a path (JSONL) or {{bytes, path}} (parquet)")
