"""Rows that the chat template refuses, and rows whose context is not that of use, are named before training."""

import json
from pathlib import Path
from typing import Any

import pytest
from toys import make_config, make_tokenizer, make_vq, toy_row

from unified import UnifiedConfig
from unified.data.chat_dataset import ChatDataset, load_encoded_rows
from unified.models.processing import UnifiedProcessor


@pytest.fixture
def processor() -> UnifiedProcessor:
    tokenizer = make_tokenizer()
    return UnifiedProcessor.from_config(tokenizer, make_config(tokenizer, make_vq().config))


def row_of() -> dict[str, Any]:
    return toy_row("text", 1, [])


def test_a_row_that_the_chat_template_refuses_has_its_file_and_number(
    processor: UnifiedProcessor, tmp_path: Path
) -> None:
    processor.chat_template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no\n tools') }}{% endif %}"
        "{{ m.content }}<|im_end|>{% endfor %}"
    )
    good, bad = ([{"role": role, "content": "a"}, {"role": "assistant", "content": "b"}] for role in ("user", "tool"))
    paths = [str(tmp_path / name) for name in ("first.jsonl", "second.jsonl")]
    for path, rows in zip(paths, ([good] * 2, [good, good, bad]), strict=True):
        Path(path).write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    rows = load_encoded_rows(paths, UnifiedConfig(vq_fingerprint="feed"))
    with pytest.raises(
        ValueError, match=r"second\.jsonl:3, row \d+ \(source second\): .*refuses the .*tool.*: no tools; mend"
    ):
        ChatDataset(rows, processor, files=paths).check_lengths(150)


def test_rows_with_a_system_message_of_their_own_are_counted(
    processor: UnifiedProcessor, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_system(said: str) -> dict[str, Any]:
        row = row_of()
        return {**row, "messages": [{"role": "system", "content": [{"type": "text", "text": said}]}, *row["messages"]]}

    ChatDataset([*[row_of()] * 2, with_system(str(processor.system_prompt))], processor).check_lengths(150)
    assert "system message" not in capsys.readouterr().err
    ChatDataset([*[row_of()] * 2, with_system("You draw."), with_system("Be a painter.")], processor).check_lengths(
        150
    )
    assert "2 of 4 rows have a system message of their own, such as 'You draw.'" in capsys.readouterr().err
