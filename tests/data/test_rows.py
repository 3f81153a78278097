import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unified.data.rows import (
    ENCODED_SCHEMA,
    ROW_SCHEMA,
    count_rows,
    init_output_folder,
    read_encoded_rows,
    read_rows,
    write_encoded_shard,
)
from unified.data.shard_metadata import read_encoded_metadata

IMAGE = {"type": "image"}
SAY = {"type": "text", "text": "hello"}


def row(images, content=None, **extra):
    asks = [{"role": "user", "content": content or "hello"}]
    return {"messages": asks, "images": images, **extra}


def write_jsonl(path, rows):
    path.write_text("\n\n".join(json.dumps(r) for r in rows) + "\n")  # blank lines must not count
    return path


def test_jsonl_rows_are_normalised(tmp_path):
    (tmp_path / "cat.png").write_bytes(b"png")
    rows = [row(["cat.png"], [SAY, IMAGE], metadata={"a": 1}), row([], source="chat")]
    first, second = read_rows(write_jsonl(tmp_path / "in.jsonl", rows))
    assert first.messages == [{"role": "user", "content": [SAY, {"type": "image", "text": None}]}]
    assert [image.read() for image in first.images] == [b"png"] and first.images[0].name == "cat.png"
    assert (json.loads(first.metadata), first.source, first.where) == ({"a": 1}, "in", f"{tmp_path}/in.jsonl:1")
    assert second.messages[0]["content"] == [SAY]
    assert (second.metadata, second.source, second.where) == ("{}", "chat", f"{tmp_path}/in.jsonl:3")


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_span_of_rows_is_the_slice_of_all_rows(tmp_path, kind):
    rows = [row([], f"row {i}", metadata="{}", source="s") for i in range(10)]
    if kind == "jsonl":
        path = write_jsonl(tmp_path / "in.jsonl", rows)
    else:
        path = tmp_path / "in.parquet"
        for r in rows:
            r["messages"][0]["content"] = [{"type": "text", "text": r["messages"][0]["content"]}]
        pq.write_table(pa.Table.from_pylist(rows, schema=ROW_SCHEMA), path, row_group_size=3)
    everything = list(read_rows(path))
    assert count_rows(path) == len(everything) == 10
    for start in range(11):
        for stop in range(start, 11):
            assert list(read_rows(path, start, stop)) == everything[start:stop]


def test_parquet_images_are_bytes_or_a_file(tmp_path):
    (tmp_path / "b.png").write_bytes(b"file")
    images = [{"bytes": b"inside", "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    path = tmp_path / "in.parquet"
    rows = [row(images, [IMAGE, IMAGE], metadata="{}", source="s")]
    pq.write_table(pa.Table.from_pylist(rows, schema=ROW_SCHEMA), path)
    (read,) = read_rows(path)
    assert [image.read() for image in read.images] == [b"inside", b"file"]
    assert [image.name for image in read.images] == ["a.png", "b.png"]


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"images": []}, "no `messages`"),
        ({"messages": [{"role": "user"}]}, "lacks `role` or `content`"),
        (
            {"messages": [{"role": "developer", "content": "x"}]},
            "role 'developer'; choose from system, user, assistant, tool",
        ),
        ({"messages": [{"role": "user", "content": "x", "mask": [0]}]}, "has the key 'mask'"),
        ({"messages": [{"role": "user", "content": 3}]}, "content 3"),
        (row([], [{"type": "image", "file": "cat.png"}]), "its file goes into `images`, or into the part"),
        (row([], [{"type": "text"}]), "part {'type': 'text'}"),
        (row(["a.png"], [SAY]), "0 image parts in `messages` but 1 `images`"),
        (row([], [IMAGE]), "1 image parts in `messages` but 0 `images`"),
        (row([7], [IMAGE]), "image 7"),
        ([1], "a list"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path, bad, says):
    path = write_jsonl(tmp_path / "in.jsonl", [row([]), bad])
    with pytest.raises(ValueError) as error:
        count_rows(path)
    assert f"{path}:3: " in str(error.value) and says in str(error.value)


def test_what_is_not_json_or_not_a_file_of_rows_is_refused(tmp_path):
    broken = tmp_path / "in.jsonl"
    broken.write_text('{"messages": \n')
    with pytest.raises(ValueError, match=r"in\.jsonl:1: not JSON"):
        list(read_rows(broken))
    with pytest.raises(ValueError, match="neither .jsonl, .json nor .parquet"):
        list(read_rows(tmp_path))
    with pytest.raises(ValueError, match="is not a file"):
        count_rows(tmp_path / "missing.parquet")


def test_encoded_shard_round_trip(tmp_path):
    path = tmp_path / "0.parquet"
    messages = [{"role": "user", "content": [{"type": "image", "text": None}, {"type": "text", "text": "é"}]}]
    rows = [{"messages": messages, "codes": [[1, 2, 3, 4, 5]], "metadata": "{}", "source": "s"}]
    write_encoded_shard(path, rows, "abc", (1, 2))
    assert read_encoded_rows(path) == rows
    assert read_encoded_metadata(path) == ("abc", ((1, 1), (2, 2)))
    assert pq.read_schema(path).equals(ENCODED_SCHEMA)
    assert [file.name for file in tmp_path.iterdir()] == ["0.parquet"]


def test_text_only_shard_fits_every_tokenizer(tmp_path):
    rows = [{"messages": [{"role": "user", "content": [SAY]}], "codes": [], "metadata": "{}", "source": "s"}]
    write_encoded_shard(tmp_path / "0.parquet", rows, "", ())
    assert read_encoded_metadata(tmp_path / "0.parquet") == ("", ())


def test_codes_of_the_wrong_length_are_refused_and_leave_no_file(tmp_path):
    with pytest.raises(ValueError, match="has 4 codes, its tokenizer gives 5"):
        write_encoded_shard(tmp_path / "0.parquet", [{"messages": [], "codes": [[1, 2, 3, 4]]}], "abc", (1, 2))
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_no_encoded_shard_has_no_stamp(tmp_path):
    pq.write_table(pa.table({"a": [1]}), tmp_path / "0.parquet")
    with pytest.raises(ValueError, match="no tokenizer fingerprint"):
        read_encoded_metadata(tmp_path / "0.parquet")


def test_a_folder_keeps_the_settings_it_was_made_with(tmp_path):
    out = tmp_path / "new" / "out"
    for _ in range(2):
        assert init_output_folder(out, {"seed": 1, "files": ["a"]}) == out
    with pytest.raises(ValueError, match="was made with seed 1, not 2; give another --out"):
        init_output_folder(out, {"seed": 2, "files": ["a"]})
    with pytest.raises(ValueError, match="was made with limit None, not 3"):
        init_output_folder(out, {"seed": 1, "files": ["a"], "limit": 3})
    assert [file.name for file in out.iterdir()] == ["settings.json"]


def test_a_folder_of_version_1_is_gone_on_with_under_the_settings_it_had(tmp_path):
    old = {"model": "m", "guidance": 3.0, "temperature": 0.7, "heldout_guidance": 1.0, "launch": "cpu_bf16.yaml"}
    new = {"model": "m", "guidance_scale": 3.0, "temperature": 0.7, "heldout_guidance_scale": 1.0}
    (tmp_path / "settings.json").write_text(json.dumps(old))
    (tmp_path / "00000.parquet").touch()
    assert init_output_folder(tmp_path, new | {"top_k": 0, "top_p": 1.0}) == tmp_path
    with pytest.raises(ValueError, match="was made with guidance_scale 3.0, not 2.0"):
        init_output_folder(tmp_path, new | {"guidance_scale": 2.0, "top_k": 0, "top_p": 1.0})
    with pytest.raises(ValueError, match="was made with top_k 0, not 5"):
        init_output_folder(tmp_path, new | {"top_k": 5, "top_p": 1.0})
    (tmp_path / "settings.json").write_text(json.dumps(old | {"top_k": 5, "top_p": 0.9}))  # as eval/generate_images.py
    assert init_output_folder(tmp_path, new | {"top_k": 5, "top_p": 0.9}) == tmp_path


def test_shards_that_no_settings_tell_of_are_left_alone(tmp_path):
    (tmp_path / "00000.parquet").touch()
    with pytest.raises(ValueError, match="holds parquet files without a settings.json; give another --out"):
        init_output_folder(tmp_path, {"seed": 1})
    assert [file.name for file in tmp_path.iterdir()] == ["00000.parquet"]
