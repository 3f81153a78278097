"""CHANGELOG.md: the table of moved modules names what is there, and nothing that is still where it was."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
MOVED = re.findall(r"^\| (`unified[\w.`]*) \| (`unified[^|]*) \| ([^|]*)\|$", TEXT, re.MULTILINE)


def quoted(text: str) -> list[str]:
    return re.findall(r"`([\w.]+)`", text)


def file_of(module: str) -> Path:
    return ROOT / f"{module.replace('.', '/')}.py"


@pytest.mark.parametrize(("old", "now", "names"), MOVED, ids=[row[0].strip("`") for row in MOVED])
def test_a_moved_module_is_where_the_change_log_says(old: str, now: str, names: str) -> None:
    assert not file_of(*quoted(old)).exists()
    code = "\n".join(file_of(module).read_text(encoding="utf-8") for module in quoted(now))
    before, after = quoted(names)[::2], quoted(names)[1::2]
    words = {*re.findall(r"\w+", code)}  # a name may be an attribute
    assert {name.split(".")[-1] for name in after} <= words
    assert not {*before} & {*re.findall(r"^(?:def |class )?(\w+)(?:\(|\[|:| = )", code, re.MULTILINE)}


def test_the_change_log_has_a_place_for_what_comes_and_every_released_version() -> None:
    sections = re.findall(r"^## (\S+)", TEXT, re.MULTILINE)
    assert sections[0] == "Unreleased"
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert version and sections[1] == version[1]
    assert len(MOVED) > 60
