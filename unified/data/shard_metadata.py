"""What the schema of an encoded shard says of its codes: tokenizer, opener's version, how images became square."""

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import cast

import pyarrow.compute as pc
import pyarrow.parquet as pq

from unified.files.image_sets import say
from unified.files.images import OPENER_VERSION, Fit
from unified.files.parquet import arrow_errors, read_schema
from unified.models.processing import UnifiedProcessor

DONE_BY = {"crop": "cropped to their centre", "pad": "padded with white"}


def read_encoded_metadata(path: str | Path) -> tuple[str, tuple[tuple[int, int], ...]]:
    """`(vq_fingerprint, patch_nums)` an encoded shard was written with.

    Raises ValueError when the file is not an encoded shard.
    """
    metadata = read_schema(path).metadata or {}
    if b"vq_fingerprint" not in metadata or b"patch_nums" not in metadata:
        raise ValueError(f"{path} has no tokenizer fingerprint, so no codes; write it with data_prep/encode_images.py")
    scales = tuple((h, w) for h, w in json.loads(metadata[b"patch_nums"]))
    return metadata[b"vq_fingerprint"].decode(), scales


def _shards(paths: Iterable[str | Path]) -> Iterator[str | Path]:
    return (path for path in paths if Path(path).suffix == ".parquet")


def shared_opener(paths: Iterable[str | Path]) -> int:
    """The version of the opener that the images of encoded shards went through; files without codes do not count.

    Raises ValueError for shards of several: the same picture has other codes in each.
    """
    found: dict[int, list[str | Path]] = {}
    for path in _shards(paths):
        metadata = read_schema(path).metadata or {}
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
    """Whether a row of an encoded shard has an image that was opened.

    The images of answers of a shard of pairs count where it has the opener's version: elsewhere they were drawn.
    """
    schema = read_schema(path)
    opened = [name for name in schema.names if name.endswith("codes")] if b"opener" in (schema.metadata or {}) else []
    with arrow_errors(path):
        table = pq.read_table(path, columns=opened or ["codes"])
    return any(pc.any(pc.greater(pc.list_value_length(column), 0)).as_py() for column in table.columns)


def shared_metadata(flag: str, paths: Sequence[str | Path]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """The common `read_encoded_metadata` of shards given as `flag`; raises ValueError if they differ."""
    found = {read_encoded_metadata(path) for path in paths}
    if len(found) != 1:
        raise ValueError(f"{flag} are of {len(found)} image tokenizers; give files of one")
    return found.pop()


def shared_fit(paths: Iterable[str | Path]) -> Fit | None:
    """How images that are not square became so in encoded shards; None where there are none, or it is not recorded.

    Raises ValueError for shards in which it was done in two ways.
    """
    found: dict[str, str | Path] = {}
    for path in _shards(paths):
        recorded = (read_schema(path).metadata or {}).get(b"fit")
        if recorded is not None:
            found.setdefault(recorded.decode(), path)
    if len(found) > 1:
        (one, first), (other, second) = sorted(found.items())
        raise ValueError(
            f"{first} was encoded with --fit {one}, {second} with --fit {other}, and a model opens pictures in one "
            "way; encode one of them again with data_prep/encode_images.py"
        )
    return cast(Fit | None, next(iter(found), None))


def check_one_encoding(paths: Iterable[str | Path]) -> None:
    """Raise ValueError for encoded shards of one run, those of evaluations among them, of two openers or two fits."""
    files = [*paths]
    shared_opener(files)
    shared_fit(files)


def adopt_fit(processor: UnifiedProcessor, paths: Iterable[str | Path], measured: Iterable[str | Path] = ()) -> None:
    """Have `processor` make pictures square as the encoded shards do that are trained on, and say where it changes.

    Raises ValueError as `shared_fit`, and for shards `measured` on that another fit or opener has made.
    """
    files, others = [*paths], [*measured]
    check_one_encoding([*files, *others])
    fit = shared_fit(files)
    if fit is not None and fit != processor.fit:
        processor.set_fit(fit)
        done = f"{DONE_BY[fit]} in use, too"
        say(f"pictures that are not square are {done}, as train_files were encoded with --fit {fit}")
    found = shared_fit(others)
    if found not in (None, processor.fit):
        raise ValueError(
            f"eval_files were encoded with --fit {found}, and the model opens pictures with {processor.fit}; encode "
            f"them again with --fit {processor.fit}"
        )
