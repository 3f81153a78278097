"""Rows as people really write them, a table a kind: read right, or refused by file and line in one line."""

import base64
import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from test_forms import BLUE, IMAGE, RED, png, said, say, turns

from unified import UnifiedConfig
from unified.data.chat_dataset import load_encoded_rows, name_rows
from unified.data.forms import as_row
from unified.data.pair_forms import iter_pairs
from unified.data.preferences import load_pairs
from unified.data.rows import BadRow, iter_rows, read_encoded_rows, read_rows, write_encoded_shard

CALL = {"function": {"name": "f", "arguments": {"x": 1}}}
HI = [("user", "a"), ("assistant", "b")]
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}
B64 = base64.b64encode(png(RED)).decode()


def answer(**keys: Any) -> dict[str, Any]:
    return {"messages": [*turns("a"), {"role": "assistant", "content": "b", **keys}]}


def shown(part: dict[str, Any]) -> dict[str, Any]:
    return {"messages": turns([{**IMAGE, **part}], "b")}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, color in (("red.png", RED), ("blue.png", BLUE), ("a b.png", BLUE)):
        (tmp_path / name).write_bytes(png(color))
    return tmp_path


def read(record: dict[str, Any] | bytes, folder: Path) -> Any:
    """The row of a file's second line."""
    path = folder / "rows.jsonl"
    line = record if isinstance(record, bytes) else json.dumps(record).encode()
    path.write_bytes(b'{"messages": [{"role": "assistant", "content": "b"}]}\n' + line + b"\n")
    _, row = iter_rows(path)
    assert row.where == f"{path}:2"
    return row


@pytest.mark.parametrize(("given", "held"), [(0, 0), (1, 1), (True, 1), (False, 0), (0.0, 0), (1.0, 1), (None, None)])
def test_weights_are_0_or_1_however_they_are_written(
    given: Any, held: Any, folder: Path, toy_checkpoint: Path
) -> None:
    row = read(answer(weight=given), folder)
    assert row.messages[1].get("weight") == held and type(row.messages[1].get("weight")) is type(held)
    write_encoded_shard(folder / "0.parquet", [row.encoded([])], "", ())
    (stored,) = read_encoded_rows(folder / "0.parquet")
    assert stored["messages"][1].get("weight") == held


@pytest.mark.parametrize(
    ("record", "says"),
    [
        *((answer(weight=weight), "weight ") for weight in (0.5, "0", -1, 2, 10**30, [0])),
        ({"messages": [{"role": "user", "content": "a", "weight": 1}]}, "of a turn of user"),
        (answer(train=False), "the key 'train'"),
        (answer(function_call={"name": "f", "arguments": "{}"}), "the key 'function_call'"),
        *((answer(**{key: "hm"}), "thoughts are not trained") for key in ("reasoning_content", "thinking")),
        (answer(tool_calls=[{"function": {"name": "f", "arguments": "{x"}}]), "is not JSON"),
        (answer(tool_calls=[{"function": {"name": "f", "arguments": [1]}}]), "is none"),
        (answer(tool_calls=[{**CALL, "note": 1}]), "the key 'note', which nothing honours"),
        (answer(tool_calls=[{"function": {"name": "f", "strict": True}}]), "the key 'strict', which"),
        (answer(tool_calls=[{**CALL, "type": "code"}]), "type 'code', which nothing honours"),
        ({"messages": turns("a", "b"), "functions": [{"name": "f"}]}, "the key 'functions'"),
        ({"messages": turns("a", "b"), "tools": {"name": "f"}}, "is no list of objects"),
        ({"mesages": turns("a", "b")}, "no `messages` among the keys mesages; give a list of {role, content}"),
        ({}, "no `messages` among the keys (none)"),
        ({"messages": [{"role": "user", "contents": "a"}]}, "lacks `role` or `content`"),
        ({"messages": [{"role": "User", "content": "a"}]}, "role 'User'; choose from"),
        ({"messages": json.dumps(turns("a", "b"))}, "no `messages` but '[{"),
        ({"messages": {"role": "user"}}, "no `messages` but {'role'"),
        ({"messages": ["hi"]}, "lacks `role`"),
        ({"messages": turns(None, "b")}, "lacks `role` or `content`"),
        ({"messages": turns(["a"], "b")}, "part 'a'"),
        ({"messages": turns(say("a"), "b")}, "give a string or a list of parts"),
        ({"messages": turns([{"type": "video", "video": "a"}], "b")}, "part {'type': 'video'"),
        ({"messages": turns([{**say("a"), "cache_control": {}}], "b")}, "part {'type': 'text', 'text': 'a', 'cache"),
        ({"messages": turns([{"type": "text", "text": None}], "b")}, "part {'type': 'text'"),
        ({"messages": turns([{"image": "red.png"}], "b")}, "part {'image'"),
        (shown({"image": "red.png", "min_pixels": 9}), "part {'type': 'image', 'min_pixels'"),
        (shown({"image": "red.png", "path": "blue.png"}), "an image part with both 'image' and 'path'; keep one"),
        (shown({"image": "red.png", "index": 0}), "an image part with both 'image' and 'index'; keep one"),
        ({"messages": turns([IMAGE, say("a <image>")], "b"), "images": ["red.png"]}, "says <image> beside image"),
        ({"conversations": [{"from": "human", "value": "a", "content": "b"}]}, "with both 'value' and 'content'"),
        ({"conversations": [{"from": "human", "role": "user", "value": "a"}]}, "with both 'from' and 'role'"),
        ({"messages": turns("a", "b"), "metadata": {"id": 1}, "id": 2}, "'id' 2 beside 1 in `metadata`; keep one"),
        (shown({"image_url": {"url": "red.png", "size": 3}}), "the key 'size' (3) beside `url`"),
        (shown({"base64": "é"}), "is no base64"),
        *((shown({"image": url}), "is on the web; download it") for url in ("HTTPS://a/b.png", "s3://a/b.png")),
        *((shown({"image": name}), "names no file") for name in ("", " ", "a\0.png")),
        (shown({"image": {"path": 5}}), "image {'path': 5}; give a path"),
        (shown({"image": {"bytes": B64}}), "image {'bytes'"),
        ({"messages": turns([IMAGE, IMAGE], "b"), "images": ["red.png", None]}, "image None; give a path"),
        ({"messages": turns([IMAGE], "b"), "images": [["red.png"]]}, "image ['red.png']; give a path"),
        ({"messages": turns("<image><image>", "b"), "images": ["red.png"]}, "2 image parts in `messages` but 1"),
        ({"messages": turns("<image>", "b"), "images": ["red.png"] * 2}, "1 image parts in `messages` but 2"),
        ({"messages": turns([{**IMAGE, "index": "0"}], "b"), "images": ["red.png"]}, "1 image parts"),
        ({"conversations": [{"from": "function_call", "value": "{}"}]}, "a turn from 'function_call'; choose from"),
        ({"conversations": [{"from": "human"}]}, "lacks `role` or `content`"),
        ({"conversations": turns("a", "b"), "messages": turns("a", "b")}, "the key 'conversations'"),
        ({"prompt": "a", "completion": "b"}, "no `messages` but `prompt` and `completion`"),
        ({"prompt": "a", "completion": "b", "label": True}, "but a rated answer (`completion`, `label`)"),
        ({"instruction": "a", "input": "", "output": "b"}, "among the keys instruction, input, output"),
        ({"image": "red.png", "text": "a", "width": 3}, "the key 'width'"),
        ({"image": ["red.png", "blue.png"], "text": "a"}, "no `messages`"),
        (b'{"messages": [], "messages": [{"role": "user", "content": "a"}]}', "the key 'messages' stands twice"),
        (b'{"messages": [{"role": "user", "content": "a", "content": "z"}]}', "the key 'content' stands twice"),
        (b'{"messages": [{"role": "user", "content": NaN}]}', "content nan"),
        (b'{"messages": [{"role": "user", "content": "a"}],},', "not JSON (Expecting"),
        (b'[{"messages": []}]', "not an object but a list; write one object per line, or name the file .json"),
        (b'{"messages": [], "id": ' + b"9" * 5000 + b"}", "not JSON (Exceeds the limit"),
        (b'{"a": ' + b"[" * 100_000, "not JSON (maximum recursion"),
        (b'{"messages": [{"role": "user", "content": "\\ud83d"}]}', "half a surrogate pair in messages[0].content"),
        ('{"a": "é"}'.encode("latin-1"), "not UTF-8 (byte 8 is 0xe9)"),
        (b"\0\0", "not JSON"),
    ],
)  # fmt: skip
def test_refused_by_file_and_line(record: dict[str, Any] | bytes, says: str, folder: Path) -> None:
    row = read(record, folder)
    assert isinstance(row, BadRow) and says in row.reason and "\n" not in row.reason


def test_one_line_names_whatever_a_file_is(folder: Path) -> None:
    datasets.Dataset.from_list([{"a": 1}]).save_to_disk(folder / "saved")
    for name, says in (
        ("saved", "is a folder of datasets' save_to_disk; write datasets.load_from_disk"),
        ("rows.jsonl.gz", "DIR/*.parquet, unpacked"),
        ("rows.csv", "as datasets.load_dataset('csv', data_files"),
        ("rows.arrow", "as datasets.load_dataset('arrow', data_files"),
        ("rows.txt", "neither .jsonl, .json nor .parquet; give files of rows"),
    ):
        (folder / name).touch() if name != "saved" else None
        with pytest.raises(ValueError, match=r"(?s)^[^\n]*$") as error:
            list(read_rows(folder / name))
        assert says in str(error.value) and str(folder / name) in str(error.value)
    (folder / "utf16.jsonl").write_bytes('{"a": 1}'.encode("utf-16"))
    with pytest.raises(ValueError, match=r"utf16.jsonl:1: not UTF-8 .byte 1 is 0xff"):
        list(read_rows(folder / "utf16.jsonl"))
    (folder / "empty.jsonl").touch()
    assert list(read_rows(folder / "empty.jsonl")) == []


@pytest.mark.parametrize(
    ("record", "meaning"),
    [
        ({"messages": turns("what is <image>?", "b")}, [("user", "what is <image>?"), HI[1]]),
        ({"messages": turns("a\0b\u202ec", "b"), "images": []}, [("user", "a\0b\u202ec"), HI[1]]),
        ({"messages": [{"role": "system", "content": "s"}, *turns("a", "b")] * 2}, [("system", "s"), *HI] * 2),
        ({"messages": turns("a", "b")[::-1]}, HI[::-1]),
        ({"messages": turns([], "")}, [("user",), ("assistant", "")]),
        ({"messages": turns([IMAGE], [IMAGE]), "images": ["red.png"] * 2}, [("user", None), ("assistant", None)]),
        ({"images": ["red.png"], "text": "a"}, [("user", "a"), ("assistant", None)]),
        ({"image": ["red.png"], "caption": "a"}, [("user", "a"), ("assistant", None)]),
        (shown({"image": "a b.png"}), [("user", None), HI[1]]),
        (shown({"image_url": {"url": "red.png", "detail": "low"}}), [("user", None), HI[1]]),
        (shown({"base64": B64}), [("user", None), HI[1]]),
        (shown({"image": "data:image/png;base64," + B64[:9] + "\n" + B64[9:]}), [("user", None), HI[1]]),
        ({"messages": turns("a", "b"), "metadata": {"n": 10**40}, "id": 10**40}, HI),
        (
            {"image": "red.png", "conversations": [{"from": "human", "value": "a\n<image>"}, turns(None, "b")[1]]},
            [("user", "a", None), HI[1]],
        ),
    ],
)
def test_read_right(record: dict[str, Any], meaning: list, folder: Path) -> None:
    row = read(record, folder)
    assert not isinstance(row, BadRow) and said(row.messages) == meaning
    assert all(image.read() in (png(RED), png(BLUE)) for image in row.images)


@pytest.mark.parametrize("value", [0, False, "", [], "words", {"id": 3}])
def test_metadata_of_every_kind_is_kept(value: Any, folder: Path) -> None:
    (row,) = (read({"messages": turns("a", "b"), "metadata": value, "id": 3}, folder),)
    assert json.loads(row.metadata) == {"id": 3, **(value if isinstance(value, dict) else {"metadata": value})}


def test_calls_are_read_with_and_without_ids(folder: Path) -> None:
    tool = {"role": "tool", "content": "3", "tool_call_id": "1"}
    for call in (CALL, {"id": "1", "type": "function", **CALL}, {"name": "f", "arguments": '{"x": 1}', "index": 0}):
        row = read({"messages": [*turns("a"), {"role": "assistant", "tool_calls": [call]}, tool]}, folder)
        assert json.loads(row.messages[1]["tool_calls"])[0]["function"] == CALL["function"]


def test_a_file_url_a_root_and_an_absolute_path_are_one_picture(folder: Path) -> None:
    other = folder / "rows"
    other.mkdir()
    names = (f"file://{folder}/a%20b.png", str(folder / "a b.png"), "a b.png")
    (other / "rows.jsonl").write_text("".join(json.dumps(shown({"image": name})) + "\n" for name in names))
    assert [row.images[0].read() for row in iter_rows(other / "rows.jsonl", image_root=folder)] == [png(BLUE)] * 3  # type: ignore[union-attr]


LLAVA = [
    {"id": "1", "image": "red.png", "conversations": [{"from": "human", "value": "<image>\na"}, turns(None, "b")[1]]},
    {"id": "2", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"id": "3"},
    {"id": "4", "conversations": [{"from": "human", "value": "ü\u2028"}, {"from": "gpt", "value": "b"}]},
]


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("at_once", [7, 1 << 20])
def test_llavas_json_is_a_list(indent: int | None, at_once: int, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr("unified.files.json_lists.READ_AT_ONCE", at_once)
    path = folder / "rows.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(LLAVA, indent=indent, ensure_ascii=False).encode())
    first, second, bad, last = iter_rows(path)
    assert (
        isinstance(bad, BadRow) and bad.where.endswith(":29" if indent else ":1") and "among the keys id" in bad.reason
    )
    assert said(first.messages) == [("user", None, "a"), HI[1]] and said(second.messages) == HI  # type: ignore[union-attr]
    assert said(last.messages)[0] == ("user", "ü\u2028")  # type: ignore[union-attr]
    assert name_rows([str(path)], [2]) == [bad.where]
    assert [row.where for row in iter_rows(path, 1, 3)] == [second.where, bad.where]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"data": []}', ":1: no list of objects"),
        ("", ":1: no list of objects"),
        ('[\n{"id": 1}\n{"id": 2}]', ":3: no list of objects"),
        ('[{"id": 1},\n]', ":2: not JSON"),
        ('[{"id": 1,\n "x": tru}' + " " * 50 + "]", ":2: not JSON (Expecting value)"),
        ('[{"id": "1]', ":1: not JSON (Unterminated"),
        ("[] []", ":1: something stands behind the list"),
        ("[1]", ":1: not an object but a int"),
    ],
)
def test_json_that_is_no_list_of_rows_is_refused_by_line(text: str, says: str, folder: Path) -> None:
    (folder / "rows.json").write_text(text)
    with pytest.raises(ValueError) as error:
        for row in iter_rows(folder / "rows.json"):
            if isinstance(row, BadRow) and "among" not in row.reason:
                raise ValueError(f"{row.where}: {row.reason}")
    assert f"rows.json{says}" in str(error.value) and "\n" not in str(error.value)


def test_windows_files_are_read(folder: Path, toy_checkpoint: Path) -> None:
    line = json.dumps({"messages": turns("a", "b")}).encode()
    (folder / "w.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line + b"\r\n")
    config = UnifiedConfig.from_pretrained(toy_checkpoint)
    assert [said(row["messages"]) for row in load_encoded_rows([str(folder / "w.jsonl")], config)] == [HI, HI]
    assert name_rows([str(folder / "w.jsonl")], [1]) == [f"{folder}/w.jsonl:3"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"chosen": 5}, "5 is no conversation"),
        ({"prompt": 5}, "5 is no conversation"),
        ({"chosen": ["a"]}, "is no conversation"),
        ({"chosen": ""}, "the chosen answer is empty"),
        ({"prompt": None}, "does not end with a turn to answer"),
        ({"rejected": "a"}, "chosen and rejected are the same answer"),
        ({"images": [None]}, "image None; give a path"),
        ({"chosen": [{"role": "assistant", "content": [IMAGE]}], "images": ["a", "b"]}, "1 image parts in"),
        ({"score_chosen": "x", "score_rejected": 1}, "score_chosen 'x'; give a number"),
        ({"score_chosen": float("nan"), "score_rejected": 1}, "scores nan"),
        ({"seeds": [2**70]}, "whole numbers of 64 bits"),
        ({"seeds": "x"}, "whole numbers of 64 bits"),
        ({"codes": 5}, "codes 5; give a list of codes"),
        ({"chosen_codes": [["a"]]}, "chosen_codes [['a']]; give"),
        ({"margin": 1}, "the key 'margin'"),
        ({"completion": "a"}, "the key 'completion'"),
        ({"rejected": None, "label": True}, "not a pair"),
    ],
)  # fmt: skip
def test_pairs_are_refused_by_file_and_line(
    change: dict[str, Any], says: str, folder: Path, toy_checkpoint: Path
) -> None:
    path = folder / "p.jsonl"
    path.write_text(json.dumps(PAIR) + "\n" + json.dumps(PAIR | change) + "\n")
    _, pair = iter_pairs(path)  # as data_prep/encode_images.py reads them
    with pytest.raises(ValueError, match=r"^1 bad pairs: .*p\.jsonl:2: ") as error:
        load_pairs([str(path)], UnifiedConfig.from_pretrained(toy_checkpoint))
    known = pair.reason if isinstance(pair, BadRow) else ""
    assert says in str(error.value) or says in known
    assert "\n" not in str(error.value)


def test_what_a_row_is_read_from_stays_as_it_was() -> None:
    record = shown({"image": "red.png"})
    before = json.dumps(record)
    as_row(record)
    assert json.dumps(record) == before
