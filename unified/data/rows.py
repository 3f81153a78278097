"""Rows on disk: chats with images (JSONL or parquet), and encoded chats with codes instead.

A *row* is `{"messages", "images", "metadata", "source"}`; an *encoded row* has `codes` in place of `images`. In both,
every `{"type": "image"}` part of the messages stands for the next image, in order. L: codes of one image.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Features, Image, List, Value

from unified.files.atomic import atomic_path, write_text
from unified.files.images import OPENER_VERSION
from unified.files.jsonl import read_lines
from unified.image_tokenizer.scales import PatchNums, image_length, normalize_patch_nums
from unified.models.format_version import upgrade_settings
from unified.models.messages import content_parts, count_images, shorten

PART = {"type": Value("string"), "text": Value("string")}
MESSAGES = List({"role": Value("string"), "content": List(PART)})
CODES = List(List(Value("int32")))
_ORIGIN = {"metadata": Value("string"), "source": Value("string")}
ROW_FEATURES = Features({"messages": MESSAGES, "images": List(Image()), **_ORIGIN})
ENCODED_FEATURES = Features({"messages": MESSAGES, "codes": CODES, **_ORIGIN})
# without the note about features that `datasets` would leave in files
ROW_SCHEMA, ENCODED_SCHEMA = (kind.arrow_schema.remove_metadata() for kind in (ROW_FEATURES, ENCODED_FEATURES))
_BATCH_ROWS = 256  # rows of parquet held in memory at once, images included


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
    """One validated row; `messages` have lists of parts as content, `where` is `file:number` counted from 1."""

    messages: list[dict[str, Any]]
    images: list[ImageRef]
    metadata: str
    source: str
    where: str


def count_rows(path: str | Path) -> int:
    """Number of rows of a `.jsonl` or `.parquet` file.

    JSONL is validated, so that an error in its last line is found before hours of work on the others.
    Raises ValueError as `read_rows` does.
    """
    return pq.read_metadata(path).num_rows if _kind(path) == ".parquet" else sum(1 for _ in read_rows(path))


def read_rows(path: str | Path, start: int = 0, stop: int | None = None) -> Iterator[Row]:
    """Rows `start` to `stop` (half-open, blank lines not counted) of a `.jsonl` or `.parquet` file.

    In JSONL a content may be a plain string, images are paths relative to the file, `metadata` may be an object, and
    `metadata` and `source` (default: the file's stem) may be missing. Other keys are ignored.
    Raises ValueError naming file and row when a row is malformed or does not have one image per image part.
    """
    path = Path(path)
    records = _parquet_records if _kind(path) == ".parquet" else read_lines
    for number, record in records(path, start, stop):
        yield _checked(record, path, f"{path}:{number}")


def write_encoded_shard(
    path: str | Path,
    rows: Iterable[dict[str, Any]],
    fingerprint: str,
    patch_nums: PatchNums,
    opener: int = OPENER_VERSION,
) -> None:
    """Write encoded rows (`ENCODED_SCHEMA`'s columns) to one parquet file, atomically.

    `fingerprint` and `patch_nums` are the tokenizer's; "" and () for rows without codes, valid for every tokenizer.
    `opener` is the version of the opener that the images went through.
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
    write_parquet(path, pa.Table.from_pylist(rows, schema=ENCODED_SCHEMA.with_metadata(metadata)))


def write_parquet(path: str | Path, table: pa.Table) -> None:
    """Write a table atomically."""
    with atomic_path(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def read_encoded_metadata(path: str | Path) -> tuple[str, tuple[tuple[int, int], ...]]:
    """`(vq_fingerprint, patch_nums)` an encoded shard was written with.

    Raises ValueError when the file is not an encoded shard.
    """
    metadata = pq.read_schema(path).metadata or {}
    if b"vq_fingerprint" not in metadata or b"patch_nums" not in metadata:
        raise ValueError(f"{path} has no tokenizer fingerprint, so no codes; write it with data_prep/encode_images.py")
    scales = tuple((h, w) for h, w in json.loads(metadata[b"patch_nums"]))
    return metadata[b"vq_fingerprint"].decode(), scales


def shared_opener(paths: Iterable[str | Path]) -> int:
    """The version of the opener that the images of encoded shards went through; shards without codes do not count.

    Raises ValueError for shards of several: the same picture has other codes in each.
    """
    found: dict[int, list[str | Path]] = {}
    for path in paths:
        metadata = pq.read_schema(path).metadata or {}
        if metadata.get(b"vq_fingerprint"):
            found.setdefault(int(metadata.get(b"opener", b"1")), []).append(path)
    if len(found) > 1:
        with_codes = {opener: [path for path in own if has_codes(path)] for opener, own in found.items()}
        found = {opener: own for opener, own in with_codes.items() if own}
    if len(found) > 1:
        (old, first), (new, second) = sorted(found.items())[:2]
        raise ValueError(
            f"{first[0]} was encoded by opener {old} of images, {second[0]} by {new}, which gives some pictures other "
            "codes; encode the first again with data_prep/encode_images.py, or use it alone"
        )
    return next(iter(found), OPENER_VERSION)


def has_codes(path: str | Path) -> bool:
    """Whether a row of an encoded shard has an image."""
    images = pc.list_value_length(pq.read_table(path, columns=["codes"])["codes"])
    return bool(pc.any(pc.greater(images, 0)).as_py())


def shared_metadata(flag: str, paths: Sequence[str | Path]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The common `read_encoded_metadata` of shards given as `flag`; raises ValueError if they differ."""
    found = {read_encoded_metadata(path) for path in paths}
    if len(found) != 1:
        raise ValueError(f"{flag} are of {len(found)} image tokenizers; give files of one")
    return found.pop()


def read_encoded_rows(path: str | Path) -> list[dict[str, Any]]:
    """Rows of an encoded shard as dicts of `ENCODED_SCHEMA`'s columns; the inverse of `write_encoded_shard`."""
    return pq.read_table(path, columns=ENCODED_SCHEMA.names).to_pylist()


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


def _parquet_records(path: Path, start: int, stop: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
    file = pq.ParquetFile(path)
    columns = [name for name in ROW_SCHEMA.names if name in file.schema_arrow.names]
    stop = file.metadata.num_rows if stop is None else stop
    row = 0
    for group in range(file.num_row_groups):
        after = row + file.metadata.row_group(group).num_rows
        if after <= start or row >= stop:
            row = after
            continue
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns):
            selected = batch.slice(max(start - row, 0), max(min(stop, row + len(batch)) - max(start, row), 0))
            yield from enumerate(selected.to_pylist(), start=max(start, row) + 1)
            row += len(batch)


def _checked(record: dict[str, Any], path: Path, where: str) -> Row:
    messages = record.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ValueError(f"{where}: no `messages`; give a list of {{role, content}} as Hugging Face chats have")
    parts = [content_parts(message, where, "its file goes into `images`") for message in messages]
    messages = [{"role": m["role"], "content": content} for m, content in zip(messages, parts, strict=True)]
    images = [_image_ref(image, path, where) for image in record.get("images") or []]
    count = count_images(messages)
    if count != len(images):
        raise ValueError(f"{where}: {count} image parts in `messages` but {len(images)} `images`; give one each")
    metadata = record.get("metadata")
    if not isinstance(metadata, str):
        metadata = json.dumps(metadata or {})
    return Row(messages, images, metadata, str(record.get("source") or path.stem), where)


def _image_ref(image: Any, path: Path, where: str) -> ImageRef:
    if isinstance(image, str):
        return ImageRef(image, file=path.parent / image)
    if isinstance(image, dict) and image.get("bytes") is not None:
        return ImageRef(image.get("path") or where, data=image["bytes"])
    if isinstance(image, dict) and image.get("path"):
        return ImageRef(image["path"], file=path.parent / image["path"])
    raise ValueError(f"{where}: image {shorten(image)}; give a path (JSONL) or {{bytes, path}} (parquet)")
