"""Rows that cannot be trained on: counted in one pass, three named, left out up to max_bad; what rows carry."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from datasets import Dataset
from pairs import text_pair

from unified import UnifiedConfig, UnifiedProcessor
from unified.data.chat_dataset import ChatDataset, load_encoded_rows, name_rows
from unified.data.preferences import PairCollator, check_lengths, load_pairs, write_pairs
from unified.data.rows import ENCODED_SCHEMA, read_encoded_rows, write_encoded_shard

ASK, YES = {"role": "user", "content": "a cat"}, {"role": "assistant", "content": "yes"}
LONG, BAD = {**YES, "content": "cat " * 200}, {**YES, "weight": 0}


@pytest.fixture(scope="module")
def processor(toy_checkpoint: Path) -> UnifiedProcessor:
    return UnifiedProcessor.from_pretrained(toy_checkpoint)


@pytest.fixture
def data(processor: UnifiedProcessor, toy_checkpoint: Path, tmp_path: Path) -> Callable[..., ChatDataset]:
    """Two files: good rows, and rows of which those at `bad` are something else."""

    def make(bad: dict[int, list[dict]], count: int = 40) -> ChatDataset:
        files = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
        for file, others in zip(files, ({}, bad), strict=True):
            rows = [{"messages": others.get(number, [ASK, YES])} for number in range(1, count + 1)]
            file.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
        paths = [str(file) for file in files]
        faults: dict[int, str] = {}
        rows = load_encoded_rows(paths, UnifiedConfig.from_pretrained(toy_checkpoint), faults)
        return ChatDataset(rows, processor, files=paths, faults=faults)

    return make


KINDS = {
    "too long": ([ASK, LONG], "more than max_length 128"),
    "empty": ([], "no `messages`"),
    "malformed": ([ASK, {**YES, "wieght": 1}], "put it into `metadata`"),
    "without codes": ([ASK, {"role": "assistant", "content": [{"type": "image"}]}], "1 image parts"),
    "no answer": ([ASK], "it has no assistant turn"),
    "weight 0 alone": ([ASK, BAD], "its assistant turns have weight 0"),
    "refused by the template": ([ASK, {**YES, "name": "Ann"}], "does not write name 'Ann'"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_all_are_counted_and_three_named_by_line(kind: str, data: Callable[..., ChatDataset]) -> None:
    row, why = KINDS[kind]
    rows = data(dict.fromkeys((2, 5, 9, 11, 30), row))
    with pytest.raises(ValueError) as error:
        rows.check_lengths(128)
    said = str(error.value)
    assert said.startswith("5 bad rows: ") and said.count(why) == 3 and "; and 2 more; " in said and "\n" not in said
    for line in (3, 9, 17):  # blank lines count
        assert f"b.jsonl:{line}, row " in said
    assert "leave up to 5 out with max_bad" in said


def test_they_are_left_out_up_to_max_bad(data: Callable[..., ChatDataset], capsys: pytest.CaptureFixture) -> None:
    bad = {2: [ASK, LONG], 5: [], 40: [ASK, BAD]}
    rows = data(bad)
    with pytest.raises(ValueError, match="^3 bad rows"):
        rows.check_lengths(128, max_bad=2)
    assert len(rows) == 80
    lengths = rows.check_lengths(128, max_bad=3)
    assert len(rows) == len(lengths) == 77 and "left out 3 bad rows: " in capsys.readouterr().err
    assert {len(rows[at]["input_ids"]) for at in range(77)} == {*lengths}
    assert [Path(name).name for name in rows.name_rows([0, 40, 41, 76])] == [
        "a.jsonl:1", "b.jsonl:1", "b.jsonl:5", "b.jsonl:77",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="not one of 80 rows can be trained on; the first: .*a.jsonl:1, row 0"):
        data({}).check_lengths(5, max_bad=80)


def test_pairs_are_counted_and_left_out_alike(processor: UnifiedProcessor, capsys: pytest.CaptureFixture) -> None:
    pairs = [text_pair(n, right="yes " * 99 if n % 3 == 0 else "Good.") for n in range(10)]
    rows = Dataset.from_list(pairs).add_column("index", range(100, 110))

    def names(indices: Any) -> list[str]:
        return [f"p.jsonl:{index}" for index in indices]

    with pytest.raises(ValueError) as error:
        check_lengths(rows, PairCollator(processor, 64), names, 3)
    said = str(error.value)
    assert said.startswith("4 bad pairs: p.jsonl:100, pair 0 (source toy): a chosen answer ends") and "1 more" in said
    kept = check_lengths(rows, PairCollator(processor, 64), names, 4)
    assert kept["index"] == [101, 102, 104, 105, 107, 108] and "left out 4 bad pairs" in capsys.readouterr().err


def test_pairs_that_cannot_be_read_are_counted_with_them(
    processor: UnifiedProcessor, toy_checkpoint: Path, tmp_path: Path
) -> None:
    file = tmp_path / "p.jsonl"
    pairs = [{"prompt": "Hi", "chosen": "Good.", "rejected": "No."} for _ in range(6)]
    pairs[1] |= {"chosen": 5}
    pairs[4] |= {"chosen": "yes " * 99}
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    faults: dict[int, str] = {}
    read = load_pairs([str(file)], UnifiedConfig.from_pretrained(toy_checkpoint), faults)
    assert read["index"] == [0, 2, 3, 4, 5] and [*faults] == [1]

    def names(indices: Any) -> list[str]:
        return name_rows([str(file)], indices, "pairs")

    with pytest.raises(ValueError, match=r"^2 bad pairs: .*p\.jsonl:2: .*; .*p\.jsonl:5, pair 3 .*max_bad \(now 1\)"):
        check_lengths(read, PairCollator(processor, 64), names, 1, faults)
    assert check_lengths(read, PairCollator(processor, 64), names, 2, faults)["index"] == [0, 2, 3, 5]


def test_sft_leaves_them_out(
    run_script: Callable[..., int], monkeypatch: pytest.MonkeyPatch, toy_checkpoint: Path, tmp_path: Path, capfd
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    file = tmp_path / "rows.jsonl"
    rows = [[ASK, LONG if number == 3 else YES] for number in range(8)]
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    given = ["--config", "recipes/configs/tiny.yaml", "--model", toy_checkpoint, "--train_files", file]
    given += ["--max_length", 128, "--max_steps", 1, "--save_strategy", "no"]
    assert run_script("recipes/sft.py", *given, "--output_dir", tmp_path / "no") == 2
    assert "1 bad rows: " in (said := capfd.readouterr().err) and "rows.jsonl:4, row 3" in said
    assert run_script("recipes/sft.py", *given, "--output_dir", tmp_path / "out", "--max_bad", 1) == 0
    assert "left out 1 bad rows: " in capfd.readouterr().err


def encoded(messages: list[dict], **more: Any) -> dict[str, Any]:
    parts = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
    return {"messages": parts, "codes": [], "metadata": "{}", "source": "s", **more}


def test_files_with_and_without_what_rows_may_carry_go_together(
    processor: UnifiedProcessor, toy_checkpoint: Path, tmp_path: Path
) -> None:
    """Files of version 0.1.0 have none; a file has all of it or none."""
    config = UnifiedConfig.from_pretrained(toy_checkpoint)
    plain, weighted = encoded([ASK, YES]), encoded([ASK, BAD, ASK, YES])
    tools = [{"type": "function", "function": {"name": "f"}}]
    for name, rows in (
        ("0", [plain]),
        ("1", [weighted, plain]),
        ("2", [encoded([ASK, YES], tools=json.dumps(tools))]),
    ):
        write_encoded_shard(tmp_path / f"{name}.parquet", rows, config.vq_fingerprint, (1, 2))
        assert read_encoded_rows(tmp_path / f"{name}.parquet") == rows
    assert pq.read_schema(tmp_path / "0.parquet").equals(ENCODED_SCHEMA)
    (tmp_path / "3.jsonl").write_text(json.dumps({"messages": [ASK, BAD, ASK, YES]}) + "\n")
    alone = load_encoded_rows([str(tmp_path / "0.parquet")], config)
    assert alone.column_names == ENCODED_SCHEMA.names and [*alone.features["messages"].feature] == ["role", "content"]
    rows = load_encoded_rows([str(tmp_path), str(tmp_path / "3.jsonl")], config)
    data = ChatDataset(rows, processor)
    weights = [[message["weight"] for message in row["messages"]] for row in rows]
    assert weights == [[None] * 2, [None, 0, None, None], [None] * 2, [None] * 2, [None, 0, None, None]]
    assert json.loads(rows[3]["tools"]) == tools
    for number in (1, 4):
        ids, labels = data[number]["input_ids"], data[number]["labels"]
        assert ids == processor.encode_chat([ASK, YES, ASK, YES]).input_ids
        assert sum(label >= 0 for label in labels) * 2 == sum(
            label >= 0 for label in processor.encode_chat([ASK, YES, ASK, YES]).labels
        )
    with pytest.raises(ValueError, match="does not write `tools`"):
        data[3]


def test_pairs_carry_tools_and_names(toy_checkpoint: Path, tmp_path: Path) -> None:
    config = UnifiedConfig.from_pretrained(toy_checkpoint)
    tools = [{"type": "function", "function": {"name": "f"}}]
    pair = {"prompt": [{**ASK, "name": "Ann"}], "chosen": [YES], "rejected": "no", "tools": tools}
    (tmp_path / "p.jsonl").write_text(json.dumps(pair) + "\n")
    (found,) = load_pairs([str(tmp_path / "p.jsonl")], config)
    assert found["messages"][0]["name"] == "Ann" and json.loads(found["tools"]) == tools
    write_pairs(tmp_path / "p.parquet", [found], config.vq_fingerprint, (1, 2))
    write_pairs(tmp_path / "q.parquet", [text_pair()], config.vq_fingerprint, (1, 2))
    both = load_pairs([str(tmp_path / "p.parquet"), str(tmp_path / "q.parquet")], config)
    assert both[0] == found and both[1]["tools"] is None
    (tmp_path / "p.jsonl").write_text(json.dumps(pair | {"chosen": [BAD]}) + "\n")
    with pytest.raises(ValueError, match=r"p\.jsonl:1: the chosen answer has weight 0"):
        load_pairs([str(tmp_path / "p.jsonl")], config)
