"""Parquet files: rows in bounded memory, row groups read once, damage in one line."""

import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from accelerate import PartialState

from unified import UnifiedConfig
from unified.data.chat_dataset import load_encoded_rows
from unified.data.encoding import Shard, share_of, with_rows
from unified.data.parquet import count_parquet_rows, parquet_rows
from unified.data.preferences import load_pairs
from unified.data.rows import ROW_SCHEMA, BadRow, count_rows, read_encoded_rows, read_rows, write_encoded_shard
from unified.files.parquet import read_schema

ASK = [{"role": "user", "content": [{"type": "text", "text": "a"}]}]
DRAWN = {"role": "assistant", "content": [{"type": "image", "text": None}]}


def write(path: Path, rows: int, row_bytes: int = 10, group: int = 100, **options: int) -> Path:
    rng = np.random.default_rng(0)
    table = [
        {"messages": [*ASK, DRAWN], "images": [{"bytes": rng.bytes(row_bytes), "path": None}], "source": f"{number}"}
        for number in range(rows)
    ]
    pq.write_table(pa.Table.from_pylist(table, schema=ROW_SCHEMA), path, row_group_size=group, **options)
    return path


@pytest.mark.parametrize(("group", "page_rows"), [(100, 1), (16, 1024)])
def test_memory_holds_a_page_and_some_rows(group: int, page_rows: int, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", 64, 2**20, group, write_batch_size=page_rows)
    tracemalloc.start()
    held = pa.total_allocated_bytes()
    most = 0
    for _ in read_rows(path):
        most = max(most, pa.total_allocated_bytes() - held)
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert python < 12 * 2**20 and most < 52 * 2**20  # of 64 MB


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_neighbouring_shards_read_a_row_group_once(
    processes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "rows.parquet", 60, group=20)
    shards = [Shard(str(path), start, start + 5, tmp_path / f"{start}") for start in range(0, 60, 5)]
    read: list[int] = []
    iter_batches = pq.ParquetFile.iter_batches

    def counted(self: pq.ParquetFile, *args: object, row_groups: list[int], **kwargs: object) -> object:
        read.extend(row_groups)
        return iter_batches(self, *args, row_groups=row_groups, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", counted)
    found = []
    for index in range(processes):
        state = PartialState()
        monkeypatch.setattr(state, "num_processes", processes)
        monkeypatch.setattr(state, "process_index", index)
        found += [row.source for _, rows in with_rows(share_of(shards, state)) for row in rows]  # type: ignore[union-attr]
    assert found == [str(number) for number in range(60)]
    assert len(read) <= 3 + processes - 1  # a row group at the border of two processes is read by both


def test_shards_with_others_between_them_are_read_alone(tmp_path: Path) -> None:
    path = str(write(tmp_path / "rows.parquet", 20, group=8))
    shards = [Shard(path, start, start + 3, tmp_path / f"{start}") for start in (0, 3, 9, 15)]
    found = [[row.source for row in rows] for _, rows in with_rows(shards)]  # type: ignore[union-attr]
    assert found == [[str(shard.start + at) for at in range(3)] for shard in shards]


@pytest.mark.parametrize("damage", ["cut", "no parquet", "empty", "zeros inside"])
def test_damage_is_one_line_with_the_files_name(damage: str, tmp_path: Path, toy_checkpoint: Path) -> None:
    path = write(tmp_path / "rows.parquet", 50, 2000)
    data = path.read_bytes()
    middle = data[:4] + bytes(len(data) // 2) + data[4 + len(data) // 2 :]
    path.write_bytes({"cut": data[:-100], "no parquet": b"hello" * 9, "empty": b"", "zeros inside": middle}[damage])
    config = UnifiedConfig.from_pretrained(toy_checkpoint)
    doors = [lambda: list(read_rows(path)), lambda: load_encoded_rows([str(path)], config)]
    doors += [lambda: load_pairs([str(path)], config), lambda: list(parquet_rows(path))]
    doors += [] if damage == "zeros inside" else [lambda: count_rows(path), lambda: read_schema(path)]
    for door in doors:
        with pytest.raises(ValueError, match=r"rows\.parquet cannot be read as parquet \(.*\); copy") as error:
            door()
        assert "\n" not in str(error.value)


def test_damaged_codes_are_one_line(tmp_path: Path, toy_checkpoint: Path) -> None:
    config = UnifiedConfig.from_pretrained(toy_checkpoint)
    path = tmp_path / "00000.parquet"
    rows = [{"messages": [*ASK, DRAWN], "codes": [[n % 32] * 5], "metadata": f"{n}"} for n in range(999)]
    write_encoded_shard(path, rows, config.vq_fingerprint, (1, 2))
    data = path.read_bytes()
    path.write_bytes(data[:4] + bytes(len(data) // 2) + data[4 + len(data) // 2 :])
    for door in (lambda: load_encoded_rows([str(path)], config), lambda: read_encoded_rows(path)):
        with pytest.raises(ValueError, match=r"00000\.parquet cannot be read as parquet") as error:
            door()
        assert "\n" not in str(error.value)


def test_a_key_of_other_rows_is_no_key_of_this_one(tmp_path: Path) -> None:
    """A column has the keys of all its rows in each of them, as nulls."""
    path = tmp_path / "rows.parquet"
    call = {"function": {"name": "f", "arguments": {"a": 1}}}
    rows = [
        {"messages": ASK, "label": None},
        {"messages": [*ASK, {"role": "assistant", "content": None, "tool_calls": [call]}], "label": 3},
        {
            "messages": [*ASK, {"role": "assistant", "content": DRAWN["content"][:0], "tool_calls": [call]}],
            "label": None,
        },
    ]
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert count_parquet_rows(path) == 3
    first, *others = list(read_rows(path, 0, 1))
    assert first.messages == ASK and not others
    (third,) = read_rows(path, 2, 3)
    assert json.loads(third.messages[1]["tool_calls"])[0]["function"] == {"name": "f", "arguments": {"a": 1}}
    with pytest.raises(ValueError, match=r"rows\.parquet:2: the key 'label' \(3\)"):
        list(read_rows(path))
    assert isinstance(BadRow("a:1", "why").images, tuple)
