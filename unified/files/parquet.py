"""Parquet files that are damaged: Arrow's and `datasets`' errors in one line that names the file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq


@contextmanager
def arrow_errors(path: str | Path) -> Iterator[None]:
    """Turn what Arrow and `datasets` raise for a damaged file into a ValueError of one line that names it."""
    try:
        yield
    except _errors() as error:
        found = error.__cause__ if type(error).__name__ == "DatasetGenerationError" and error.__cause__ else error
        said = " ".join(str(found).split()) or type(found).__name__
        raise ValueError(f"{path} cannot be read as parquet ({said}); copy or write the file again") from None


def _errors() -> tuple[type[Exception], ...]:
    from datasets.exceptions import DatasetGenerationError  # slow to import, and not needed until something fails

    return pa.ArrowException, DatasetGenerationError, UnicodeDecodeError, OSError


def read_schema(path: str | Path) -> pa.Schema:
    """Columns and metadata; raises ValueError for a file that is no parquet."""
    with arrow_errors(path):
        return pq.read_schema(path)


def check_pages(paths: Sequence[str | Path], columns: list[str]) -> None:
    """Raise ValueError naming the first file of which a page of `columns` is damaged."""
    for path in paths:
        with arrow_errors(path), pq.ParquetFile(path) as file:
            for group in range(file.num_row_groups):
                file.read_row_group(group, columns)
