"""Rows on disk: chats with images (JSONL or parquet), and encoded chats with codes instead.

A *row* is `{"messages", "images", "tools", "metadata", "source"}`; an *encoded row* has `codes` in place of `images`.
In both, every `{"type": "image"}` part of the messages stands for the next image, in order. L: codes of one image.
`unified.data.forms` says in which other forms rows are read.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Features, Image, List, Value

from unified.data.forms import as_row
from unified.data.image_refs import ImageRef, image_ref
from unified.data.parquet import count_parquet_rows, parquet_rows, read_parquet, write_parquet
from unified.files.atomic import write_text
from unified.files.images import OPENER_VERSION, Fit
from unified.files.jsonl import numbered_lines, parse_object
from unified.files.parquet import read_schema
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
ROW_FILES = (".jsonl", ".json", ".parquet")
HOW_TO_CONVERT = {
    **dict.fromkeys((".gz", ".bz2", ".xz", ".zst", ".zip"), ", unpacked"),
    **{
        suffix: f", as datasets.load_dataset({kind!r}, data_files=…)['train'].to_parquet('rows.parquet') writes one"
        for suffix, kind in ((".csv", "csv"), (".tsv", "csv"), (".arrow", "arrow"))
    },
}
SHOWN_ERRORS = 3  # rows named in one error message


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
    """Number of rows of a file of `ROW_FILES`, with up to `max_bad` that cannot be read.

    Raises ValueError naming some of more bad rows, and for what is no such file.
    """
    count, errors = tally(path, iter_rows)
    if len(errors) > max_bad:
        raise ValueError(name_errors(errors, "rows"))
    return count


def tally(path: str | Path, items: Callable[[str | Path], Iterable[Any]]) -> tuple[int, list[str]]:
    """Number of rows of a file, as `items` reads them, and those that cannot be read with their reasons.

    JSON is validated, so that an error in its last line is found before hours of work on the others; parquet is not.
    """
    if _kind(path) == ".parquet":
        return count_parquet_rows(path), []
    count, errors = 0, []
    for item in items(path):
        count += 1
        errors += [f"{item.where}: {item.reason}"] if isinstance(item, BadRow) else []
    return count, errors


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


def iter_rows(
    path: str | Path, start: int = 0, stop: int | None = None, image_root: str | Path | None = None
) -> Iterator[Row | BadRow]:
    """Rows `start` to `stop` (half-open, blank lines not counted) of a file of `ROW_FILES`.

    In JSON a content may be a plain string, images are paths relative to `image_root` (default: the file's folder),
    `metadata` may be an object, and `metadata` and `source` (default: the file's stem) may be missing. Other forms:
    `unified.data.forms`. Raises ValueError for what is no such file.
    """
    path = Path(path)
    folder = path.parent if image_root is None else Path(image_root)
    for where, record in iter_records(path, start, stop):
        try:
            yield _checked(record, path, where, folder)
        except ValueError as error:
            yield BadRow(where, str(error))


def iter_records(path: Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[str, dict[str, Any] | bytes]]:
    """Records and their `file:number`: objects of a parquet file, those of JSON as bytes; for `as_record`."""
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
    path = Path(path)
    if path.is_dir() and any((path / name).exists() for name in ("dataset_info.json", "dataset_dict.json")):
        raise ValueError(
            f"{path} is a folder of datasets' save_to_disk; write "
            f"datasets.load_from_disk({str(path)!r}).to_parquet('rows.parquet') and give that"
        )
    if path.suffix not in ROW_FILES:
        raise ValueError(
            f"{path} is neither .jsonl, .json nor .parquet; give files of rows, for instance DIR/*.parquet"
            f"{HOW_TO_CONVERT.get(path.suffix.lower(), '')}"
        )
    if not path.is_file():
        raise ValueError(f"{path} is not a file; check the path")
    return path.suffix


def _checked(record: dict[str, Any] | bytes, path: Path, where: str, folder: Path) -> Row:
    row = as_row(as_record(record))
    images = [image_ref(image, folder, where) for image in row["images"]]
    return Row(row["messages"], images, row["metadata"], str(row["source"] or path.stem), where, row["tools"])
