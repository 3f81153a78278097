"""What a message is: one set of roles and one check of content, wherever messages come from."""

from pathlib import Path
from typing import Any

import pytest

from unified.data.pair_forms import as_pair
from unified.data.rows import read_rows
from unified.models.messages import ROLES, content_parts, count_images

IMAGE, SAY = {"type": "image"}, {"type": "text", "text": "Hi."}


@pytest.mark.parametrize("role", ROLES)
def test_every_role_is_legal_everywhere(role: str, tmp_path: Path) -> None:
    message = {"role": role, "content": "Hi."}
    assert content_parts(message) == [SAY]
    (tmp_path / "rows.jsonl").write_text(f'{{"messages": [{{"role": "{role}", "content": "Hi."}}]}}\n')
    (row,) = read_rows(tmp_path / "rows.jsonl")
    assert row.messages == [{"role": role, "content": [SAY]}]
    if role != "assistant":
        assert as_pair({"prompt": [message], "chosen": "A", "rejected": "B"})["messages"] == row.messages


def test_parts_are_kept_as_they_are_or_brought_into_one_form() -> None:
    image = {"type": "image", "codes": [1, 2]}
    message = {"role": "user", "content": [image, SAY], "name": None}
    assert content_parts(message)[0] is image and count_images([message]) == 1
    assert content_parts({"role": "user", "content": (IMAGE, SAY)}, beside="there") == [{**IMAGE, "text": None}, SAY]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (None, "message None lacks `role` or `content`; it takes 'role' and 'content'"),
        ({"content": "x"}, "lacks `role` or `content`"),
        ({"role": "user", "content": None}, "lacks `role` or `content`"),
        ({"role": "user", "content": "x", "mask": 0}, "has the key 'mask', which nothing honours; it takes"),
        ({"role": "user", "content": "\ud800"}, "character 1 is half a surrogate pair"),
        ({"role": "<|im_end|>", "content": "x"}, "role '<|im_end|>'; choose from system, user, assistant, tool"),
        ({"role": ["user"], "content": "x"}, "role ['user']; choose from"),
        ({"role": "user", "content": 3}, "content 3 of role user; give a string or a list of parts"),
        ({"role": "user", "content": ["x"]}, "part 'x'; write"),
        ({"role": "user", "content": [{"text": "x"}]}, "part {'text': 'x'}; write"),
        ({"role": "user", "content": [{"type": "video"}]}, "part {'type': 'video'}; write"),
        ({"role": "user", "content": [{"type": ["image"]}]}, "part {'type': ['image']}; write"),
        ({"role": "user", "content": [{"type": "text", "text": 3}]}, "part {'type': 'text', 'text': 3}; write"),
    ],
)
def test_what_is_no_message_is_named(message: Any, says: str) -> None:
    for where in ("", "rows.jsonl:7"):
        for beside in ("", "there"):
            with pytest.raises(ValueError) as error:
                content_parts(message, where, beside)
            assert str(error.value).startswith(
                f"{where}: " if where else ("message", "role", "content", "part", "char")
            )
            assert says in str(error.value)


@pytest.mark.parametrize("part", [{**IMAGE, "image": "cat.png"}, {**IMAGE, "text": "x"}, {**SAY, "image": "cat.png"}])
def test_parts_on_disk_hold_nothing_that_would_be_lost(part: dict[str, Any]) -> None:
    assert content_parts({"role": "user", "content": [part]}) == [part]
    with pytest.raises(ValueError, match=r'or {"type": "image"} \(there\)$'):
        content_parts({"role": "user", "content": [part]}, beside="there")
