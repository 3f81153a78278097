"""data_prep/join_chats.py: image chats that go on with text, as training reads them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from unified.data.rows import read_encoded_rows, write_encoded_shard
from unified.data.shard_metadata import read_encoded_metadata

SCRIPT = "data_prep/join_chats.py"


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Three chats with a system turn; the last has two questions."""
    path = tmp_path / "texts.jsonl"
    chats = [["What is one?", "One."], ["What is two?", "Two."], ["What is three?", "Three.", "And four?", "Four."]]
    with open(path, "w") as file:
        for said in chats:
            turns = [{"role": ("user", "assistant")[i % 2], "content": words} for i, words in enumerate(said)]
            file.write(json.dumps({"messages": [{"role": "system", "content": "Be brief."}, *turns]}) + "\n")
    return path


def test_every_chat_is_joined_before_one_comes_again(
    run_script: Callable[..., int], toy_rows: Callable[[str], Path], texts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    first = toy_rows("da")
    assert run_script(SCRIPT, "--first", first, "--then", texts, "--out", out, "--count", 6) == 0
    joined, before = read_encoded_rows(out / "00000.parquet"), read_encoded_rows(first)
    assert read_encoded_metadata(out / "00000.parquet") == read_encoded_metadata(first)
    heads = [next(i for i, row in enumerate(before) if row["codes"] == new["codes"]) for new in joined]
    assert [sorted(heads[i : i + 2]) for i in (0, 2, 4)] == [[0, 1]] * 3
    tails = []
    for row, head in zip(joined, heads, strict=True):
        begun = before[head]["messages"]
        assert row["messages"][: len(begun)] == begun and row["source"].endswith(" then texts")
        tails.append([turn["content"][0]["text"] for turn in row["messages"][len(begun) :]])
    assert sorted(tail[0] for tail in tails[:3]) == sorted(tail[0] for tail in tails[3:])
    assert ["What is three?", "Three.", "And four?", "Four."] in tails
    again = tmp_path / "again"
    assert run_script(SCRIPT, "--first", first, "--then", texts, "--out", again, "--count", 6) == 0
    assert read_encoded_rows(again / "00000.parquet") == joined


def test_a_second_image_brings_its_codes(
    run_script: Callable[..., int], toy_rows: Callable[[str], Path], texts: Path, tmp_path: Path
) -> None:
    first, then = toy_rows("a"), toy_rows("dd")
    assert run_script(SCRIPT, "--first", first, "--then", then, texts, "--out", tmp_path / "out", "--count", 5) == 0
    codes = [row["codes"] for row in read_encoded_rows(tmp_path / "out/00000.parquet")]
    begun = read_encoded_rows(first)[0]["codes"]
    assert sorted(codes) == sorted([*[begun + row["codes"] for row in read_encoded_rows(then)], *[begun] * 3])


def test_what_cannot_be_joined_is_refused(
    run_script: Callable[..., int],
    toy_rows: Callable[[str], Path],
    texts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    first = toy_rows("da")
    other = tmp_path / "other.parquet"
    write_encoded_shard(other, read_encoded_rows(first), "another", (1, 2))
    silent = tmp_path / "silent.jsonl"
    silent.write_text('{"messages": [{"role": "system", "content": "Be brief."}]}\n')
    pictures = tmp_path / "pictures.jsonl"
    shown = {"role": "user", "content": [{"type": "image"}]}
    pictures.write_text(json.dumps({"messages": [shown], "images": ["cat.png"]}) + "\n")
    (tmp_path / "empty.jsonl").touch()
    write_encoded_shard(tmp_path / "empty.parquet", [], "x", (1, 2))
    for flags, words in (
        (["--first", first, "--then", tmp_path / "empty.jsonl"], "empty.jsonl: not one row; give files with a row"),
        (["--first", tmp_path / "empty.parquet", "--then", texts], "--first"),
        (["--first", first, other, "--then", texts], "--first are of 2 image tokenizers; give files of one"),
        (["--first", first, "--then", other], "codes of another tokenizer than --first"),
        (["--first", first, "--then", silent], "--then: chat 1 has nothing but a system turn; take it out"),
        (["--first", first, "--then", pictures], "pictures.jsonl:1: has images without codes; run"),
        (["--first", first, "--then", tmp_path / "none.jsonl"], "none.jsonl: no chats"),
        (["--first", first, "--then", texts, "--count", 0], "--count 0; give at least 1"),
    ):
        assert run_script(SCRIPT, *flags, "--out", tmp_path / "out") == 2
        assert words in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "out").exists()
