"""Forms in which people publish rows: each of them at every door is read right, or refused by file and line."""

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image

from unified import UnifiedConfig
from unified.data.chat_dataset import load_encoded_rows
from unified.data.forms import as_row
from unified.data.preferences import load_pairs
from unified.data.rows import read_encoded_rows, read_rows

RED, BLUE = (200, 20, 20), (20, 20, 200)
DRAW = [("user", "a cat"), ("assistant", None)]
ASK = [("user", None, "Who is this?"), ("assistant", "A cat.")]
COMPARE = [("user", None, None, "Which is older?"), ("assistant", "The first.")]
WORDS = [("user", "Hi."), ("assistant", "Hello.")]
PAIR = [("user", None, "Who is this?"), ("assistant", "A cat."), ("assistant", "A dog.")]
TEXT_PAIR = [("user", "Hi."), ("assistant", "Hello."), ("assistant", "No.")]
IMAGE = {"type": "image"}


def png(color: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), color).save(buffer, "PNG")
    return buffer.getvalue()


def say(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def turns(*contents: Any) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in zip(("user", "assistant"), contents, strict=False)]


def answers(chosen: Any, rejected: Any) -> dict[str, Any]:
    return {"chosen": turns(None, chosen)[1:], "rejected": turns(None, rejected)[1:]}


DATA = "data:image/png;base64," + base64.b64encode(png(RED)).decode()
# what a row of the form says, and what it means
ROWS: dict[str, tuple[dict[str, Any], list]] = {
    "messages and images": ({"messages": turns("a cat", [IMAGE]), "images": ["red.png"]}, DRAW),
    "messages of strings, images": ({"messages": turns("Who is this?", "A cat."), "images": ["red.png"]}, ASK),
    "messages and image": ({"messages": turns([IMAGE, say("Who is this?")], "A cat."), "image": "red.png"}, ASK),
    "a picture inside its part": (
        {"messages": turns([{**IMAGE, "image": "red.png"}, say("Who is this?")], "A cat.")},
        ASK,
    ),
    "OpenAI's image_url": (
        {"messages": turns([{"type": "image_url", "image_url": {"url": DATA}}, say("Who is this?")], "A cat.")},
        ASK,
    ),
    "TRL's index": (
        {
            "messages": turns([{**IMAGE, "index": 1}, {**IMAGE, "index": 0}, say("Which is older?")], "The first."),
            "images": ["blue.png", "red.png"],
        },
        COMPARE,
    ),
    "marks in messages": (
        {"messages": turns("<image><image>Which is older?", "The first."), "images": ["red.png", "blue.png"]},
        COMPARE,
    ),
    "the prompt repeated": (
        {
            "prompt": "Hi. ",
            "prompt_id": "7",
            "messages": [{"role": "system", "content": "Be kind."}, *turns("Hi.", "Hello.")],
        },
        [("system", "Be kind."), *WORDS],
    ),
    "ShareGPT": ({"conversations": [{"from": "human", "value": "Hi."}, {"from": "gpt", "value": "Hello."}]}, WORDS),
    "LLaVA": (
        {
            "id": "7",
            "image": "red.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWho is this?"},
                {"from": "gpt", "value": "A cat."},
            ],
        },
        ASK,
    ),
    "image and text": ({"image": "red.png", "text": "a cat"}, DRAW),
    "image and caption": ({"image": "red.png", "caption": ["a cat"]}, DRAW),
    "TRL, conversational": (
        {"images": ["red.png"], "prompt": turns([IMAGE, say("Who is this?")]), **answers("A cat.", "A dog.")},
        PAIR,
    ),
    "TRL, strings with images": (
        {"images": ["red.png"], "prompt": turns("Who is this?"), **answers("A cat.", "A dog.")},
        PAIR,
    ),
    "TRL, plain": (
        {"images": ["red.png"], "prompt": "Who is this?", "chosen": "A cat.", "rejected": "A dog."},
        PAIR,
    ),
    "TRL, implicit prompt": (
        {
            "images": ["red.png"],
            "chosen": turns([IMAGE, say("Who is this?")], "A cat."),
            "rejected": turns([IMAGE, say("Who is this?")], "A dog."),
        },
        PAIR,
    ),
    "TRL, text": ({"prompt": "Hi.", "chosen": "Hello.", "rejected": "No."}, TEXT_PAIR),
}
FORMS = [(name, kind) for name in ROWS for kind in ("jsonl", "parquet")]


def said(messages: list[dict[str, Any]]) -> list:
    """Messages as tuples of role, texts and None for images."""
    return [(turn["role"], *(part["text"] for part in turn["content"])) for turn in messages]


def in_one_type(record: dict[str, Any]) -> dict[str, Any]:
    """Contents that are all lists of parts where one is, as a column of a parquet file has one type."""
    names = [key for key in ("messages", "prompt", "chosen", "rejected") if isinstance(record.get(key), list)]
    if all(isinstance(turn["content"], str) for key in names for turn in record[key]):
        return record

    def in_parts(turn: dict[str, Any]) -> dict[str, Any]:
        return turn | {"content": [say(turn["content"])] if isinstance(turn["content"], str) else turn["content"]}

    return record | {key: [in_parts(turn) for turn in record[key]] for key in names}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """A file of two rows: one that any door of its kind reads, and the form."""

    def run(name: str, kind: str) -> Path:
        record, meaning = ROWS[name]
        for color, file in ((RED, "red.png"), (BLUE, "blue.png")):
            (tmp_path / file).write_bytes(png(color))
        path = tmp_path / f"rows.{kind}"
        if kind == "jsonl":
            path.write_text(json.dumps(record) + "\n")
            return path
        inside = {"red.png": {"bytes": png(RED), "path": None}, "blue.png": {"bytes": png(BLUE), "path": "b.png"}}
        pictures = {key: [inside[name] for name in record[key]] for key in ("images",) if key in record}
        pictures |= {"image": inside[record["image"]]} if "image" in record else {}
        datasets.Dataset.from_list([in_one_type(record) | pictures]).to_parquet(path)
        return path

    return run


def is_pair(name: str) -> bool:
    return "chosen" in ROWS[name][0]


def has_pictures(name: str) -> bool:
    return any(None in turn for turn in ROWS[name][1])


@pytest.mark.parametrize(("name", "kind"), FORMS)
def test_encode_images_reads_every_form(
    name: str,
    kind: str,
    write: Callable[..., Path],
    run_script: Callable[..., int],
    toy_checkpoint: Path,
    tmp_path: Path,
) -> None:
    path, out = write(name, kind), tmp_path / "out"
    vq = toy_checkpoint.parent / "vq"
    assert run_script("data_prep/encode_images.py", "--vq", vq, "--inputs", path, "--out", out) == 0
    config = UnifiedConfig.from_pretrained(toy_checkpoint)
    if is_pair(name):
        (pair,) = load_pairs([str(out)], config)
        assert said([*pair["messages"], *pair["chosen"], *pair["rejected"]]) == ROWS[name][1]
        codes = pair["codes"]
    else:
        (row,) = read_encoded_rows(out / "00000.parquet")
        assert said(row["messages"]) == ROWS[name][1]
        assert len(load_encoded_rows([str(out)], config)) == 1
        codes = row["codes"]
    assert len(codes) == sum(turn.count(None) for turn in ROWS[name][1])
    if len(codes) == 2:  # red comes first
        assert codes[0] != codes[1]
        rows = list(read_rows(path))
        assert [image.read() for image in rows[0].images] == [png(RED), png(BLUE)]


@pytest.mark.parametrize(("name", "kind"), FORMS)
@pytest.mark.parametrize("door", ["sft", "dpo"])
def test_training_reads_words_and_names_the_line_of_others(
    name: str, kind: str, door: str, write: Callable[..., Path], toy_checkpoint: Path
) -> None:
    path, config = write(name, kind), UnifiedConfig.from_pretrained(toy_checkpoint)
    load = load_encoded_rows if door == "sft" else load_pairs
    if is_pair(name) == (door == "dpo") and not has_pictures(name):
        (row,) = load([str(path)], config)
        answered = [*row["messages"], *row["chosen"], *row["rejected"]] if door == "dpo" else row["messages"]
        assert said(answered) == ROWS[name][1]
        return
    with pytest.raises(ValueError) as error:
        load([str(path)], config)
    line = str(path) if door == "sft" and is_pair(name) and kind == "parquet" else f"{path}:1: "
    remedy = {("sft", True): "recipes/dpo.py", ("dpo", False): "not a pair"}.get(
        (door, is_pair(name)), "encode_images"
    )
    assert line in str(error.value) and remedy in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"messages": turns("a", "b"), "mask": [0, 1]}, "the key 'mask' ([0, 1]) beside `messages`"),
        ({"messages": turns("a", "b"), "images": ["red.png"], "image": "red.png"}, "both `images` and `image`"),
        ({"messages": turns("a", "b"), "system": "s", "metadata": {}, "label": 1}, "the key 'label'"),
        ({"messages": [{"role": "system", "content": "s"}, *turns("a", "b")], "system": "s"}, "both a key `system`"),
        ({"conversations": [{"from": "robot", "value": "a"}]}, "a turn from 'robot'; choose from human"),
        ({"conversations": [{"from": "human", "value": "<image> a"}]}, "1 image parts in `messages` but 0 `images`"),
        ({"conversations": [{"from": "human", "value": "a", "note": 1}]}, "the key 'note', which nothing honours"),
        ({"conversations": [{"from": "gpt", "value": "a"}], "image": "red.png"}, "0 image parts"),
        ({"image": "red.png", "text": ["a", "b"]}, "several captions"),
        ({"image": "red.png", "text": " "}, "is no caption"),
        ({"image": "red.png"}, "no `messages`"),
        ({"image": "red.png", "text": "a", "caption": "b"}, "no `messages`"),
        ({"messages": turns([{**IMAGE, "index": 3}], "b"), "images": ["red.png"]}, "1 image parts"),
        ({"messages": turns([{**IMAGE, "image": "https://a.b/c.png"}], "b")}, "is on the web; download it"),
        ({"messages": turns([{**IMAGE, "image": 7}], "b")}, "image 7; give a path"),
        ({"messages": turns([{**IMAGE, "image": "a.png"}, IMAGE], "b"), "images": ["a", "b"]}, "1 pictures inside of"),
        ({"messages": turns("a", "b \ud83d")}, "half a surrogate pair in messages[1].content"),
        ({"messages": turns("a", "b"), "tools": [{"name": "f"}]}, "is no function"),
        ({"messages": turns("a", "b"), "tools": "f"}, "is not JSON"),
        ({"messages": turns("a", "b"), "prompt": "c"}, "the key 'prompt' ('c') beside `messages`"),
        ({"messages": turns("a", "b"), "images": 3}, "`images` 3; give a list of paths"),
        ({"conversations": [{"from": ["human"], "value": "a"}]}, "a turn from ['human']; choose from"),
        ({"messages": turns([{**IMAGE, "image": "data:image/png;base64,@"}], "b")}, "is no base64"),
    ],
)
def test_what_a_row_says_in_vain_is_named(record: dict, says: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"messages": turns("a", "b")}) + "\n" + json.dumps(record) + "\n")
    with pytest.raises(ValueError) as error:
        list(read_rows(path))
    assert f"{path}:2: " in str(error.value) and says in str(error.value) and "\n" not in str(error.value)


def test_malformed_rows_are_left_out_up_to_max_bad(
    run_script: Callable[..., int], toy_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "red.png").write_bytes(png(RED))
    good = json.dumps({"image": "red.png", "text": "a cat"})
    bad = [json.dumps({"image": "red.png", "text": " "}), "{", json.dumps({"image": "red.png", "text": "a", "x": 1})]
    path, out = tmp_path / "rows.jsonl", tmp_path / "out"
    path.write_text("\n".join([good, *bad, good, bad[0], good]))
    given = ["--vq", toy_checkpoint.parent / "vq", "--inputs", path, "--out", out]
    assert run_script("data_prep/encode_images.py", *given, "--max-bad", 3) == 2
    said = capsys.readouterr().err
    assert "4 bad rows: " in said and "; and 1 more" in said and all(f"{path}:{line}: " in said for line in (2, 3, 4))
    assert not out.exists()
    assert run_script("data_prep/encode_images.py", *given, "--max-bad", 4) == 0
    assert f"bad row {path}:3: not JSON" in capsys.readouterr().out
    assert len(read_encoded_rows(out / "00000.parquet")) == 3
    left_out = [json.loads(line)["row"] for line in (out / "00000.bad.jsonl").read_text().splitlines()]
    assert left_out == [f"{path}:{line}" for line in (2, 3, 4, 6)]


def test_pairs_and_rows_are_not_encoded_together(
    run_script: Callable[..., int], toy_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    for name in ("ShareGPT", "TRL, text"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(ROWS[name][0]) + "\n")
    files = sorted(tmp_path.glob("*.jsonl"))
    given = ["--vq", toy_checkpoint.parent / "vq", "--inputs", *files, "--out", tmp_path / "out"]
    assert run_script("data_prep/encode_images.py", *given) == 2
    assert "--inputs hold pairs and rows (" in capsys.readouterr().err


def test_notes_of_data_sets_go_along_in_metadata() -> None:
    record = {"messages": turns("a", "b"), "id": 3, "model": "m", "metadata": {"seed": 1}}
    assert json.loads(as_row(record)["metadata"]) == {"id": 3, "model": "m", "seed": 1}
    assert as_row({"messages": turns("a", "b"), "metadata": "free"})["metadata"] == "free"
    noted = as_row({"messages": turns("a", "b"), "metadata": "{free", "id": 1})["metadata"]
    assert json.loads(noted) == {"id": 1, "metadata": "{free"}
