"""Parquet files: rows in memory of a few megabytes, every row group read once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from unified.files.atomic import atomic_path
from unified.files.parquet import arrow_errors

BATCH_BYTES = 8 << 20  # of rows decoded at once, by the mean of their row group
BATCH_ROWS = 256
BUFFER_BYTES = 1 << 20


def count_parquet_rows(path: str | Path) -> int:
    """Number of rows; raises ValueError for a file that is no parquet."""
    with arrow_errors(path):
        return pq.read_metadata(path).num_rows


def read_parquet(path: str | Path, columns: list[str]) -> list[dict[str, Any]]:
    """All rows of small columns; raises ValueError for a damaged file."""
    with arrow_errors(path):
        return pq.read_table(path, columns=columns).to_pylist()


def parquet_rows(path: str | Path, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows `start` to `stop` (half-open) and their numbers, counted from 1, without the nulls that a column fills in.

    Row groups before `start` are not read, the others once. Rows that are not wanted are not made into Python's.
    Held in memory are `BATCH_BYTES` of rows and a page, for Arrow's writer at most 1,024 rows or a row group.
    Raises ValueError for a damaged file.
    """
    with arrow_errors(path):
        # buffered, a column is read page by page: else the whole of it in a row group would be in memory first
        file = pq.ParquetFile(path, buffer_size=BUFFER_BYTES, pre_buffer=False)
        stop = file.metadata.num_rows if stop is None else stop
        row = 0
        for group in range(file.num_row_groups):
            of_group = file.metadata.row_group(group)
            if row + of_group.num_rows <= start or row >= stop:
                row += of_group.num_rows
                continue
            size = max(1, BATCH_BYTES * of_group.num_rows // max(of_group.total_byte_size, 1))
            for batch in file.iter_batches(min(size, BATCH_ROWS), row_groups=[group], use_threads=False):
                first, last = max(start, row), min(stop, row + len(batch))
                selected = batch.slice(first - row, max(last - first, 0))
                for number, record in enumerate(selected.to_pylist(), start=first + 1):
                    yield number, without_nulls(record)
                row += len(batch)
                if row >= stop:
                    return


def write_parquet(path: str | Path, table: pa.Table) -> None:
    """Write a table atomically."""
    with atomic_path(path) as partial:
        pq.write_table(table, partial, compression="zstd")


def without_nulls(value: Any) -> Any:
    """`value` without the null entries of its objects: a column has the keys of all its rows in each of them."""
    if isinstance(value, dict):
        return {
            key: without_nulls(inner) if isinstance(inner, dict | list) else inner
            for key, inner in value.items()
            if inner is not None
        }
    if isinstance(value, list) and value and isinstance(value[0], dict | list):  # not the codes of an image
        return [without_nulls(inner) for inner in value]
    return value
