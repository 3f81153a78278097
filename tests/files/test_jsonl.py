"""JSONL files: every line is read once, and errors name file and line."""

import json
from pathlib import Path

import pytest

from unified.files.jsonl import parse_object, read_lines


def test_lines_have_their_numbers_and_blank_ones_are_no_objects(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    separators = {"text": "one\u2028line\x85of\x0ctext"}  # str.splitlines would cut it in four
    path.write_text(f'\n{{"a": 1}}\r\n \n{json.dumps(separators, ensure_ascii=False)}\n{{"b": 2}}', encoding="utf-8")
    expected = [(2, {"a": 1}), (4, separators), (5, {"b": 2})]
    assert list(read_lines(path)) == expected
    for start in range(4):
        for stop in range(start, 4):
            assert list(read_lines(path, start, stop)) == expected[start:stop]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"a": ', r"not JSON \(.*\); write one object per line"),
        (b'["a"]', "not an object but a list; write one object per line"),
        ('{"a": "é"}'.encode("latin-1"), r"not UTF-8 \(byte 8 is 0xe9\); save the file as UTF-8"),
        ('{"a": 1}'.encode("utf-16"), r"not UTF-8 \(byte 1 is 0xff\); save the file as UTF-8"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: bytes, words: str) -> None:
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n\n' + line)
    with pytest.raises(ValueError, match=rf"x\.jsonl:3: {words}"):
        list(read_lines(path))
    with pytest.raises(ValueError, match=f"^here: {words}"):
        parse_object(line, "here")
    assert list(read_lines(path, 0, 1)) == [(1, {"a": 1})]  # what is not asked for is not read
