"""data_prep/convert_captions.py: the forms people have become rows, and whatever does not fit is named."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unified.data.rows import read_rows
from unified.image_tokenizer.image_dataset import held_out_split, open_images

SCRIPT = "data_prep/convert_captions.py"
Run = Callable[..., list]


def add_pictures(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (len(name), 0, 0)).save(folder / name)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return add_pictures(tmp_path / "mine", "a.png", "b.jpg")


@pytest.fixture
def convert(run_script: Callable[..., int], tmp_path: Path) -> Run:
    def run(images: Path, *flags: object, out: str = "rows.jsonl") -> list:
        assert run_script(SCRIPT, "--images", images, "--out", tmp_path / out, *flags) == 0
        return list(read_rows(tmp_path / out))

    return run


def texts(row) -> list[str]:
    return [part["text"] for message in row.messages for part in message["content"] if part["type"] == "text"]


def write_jsonl(images: Path, *records: dict) -> None:
    (images / "metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def test_imagefolder_jsonl_with_one_and_several_captions(images: Path, convert: Run) -> None:
    write_jsonl(
        images, {"file_name": "b.jpg", "text": "bee"}, {"file_name": "a.png", "text": ["ant", "an ant"], "x": 1}
    )
    rows = convert(images, "--kinds", "draw", "--wordings", "{}", "--repeat", 20)
    assert len(rows) == 40 and [row.images[0].name for row in rows[:2]] == ["mine/b.jpg", "mine/a.png"]
    assert {words for row in rows for words in texts(row)} == {"bee", "ant", "an ant"}
    assert all(row.images[0].read() == (images / Path(row.images[0].name).name).read_bytes() for row in rows)
    assert [message["role"] for message in rows[0].messages] == ["user", "assistant"]
    assert rows[0].messages[1]["content"] == [{"type": "image", "text": None}]


def test_imagefolder_csv_with_another_column_and_a_subfolder(images: Path, convert: Run) -> None:
    add_pictures(images, "sub/c.png")
    lines = ["\ufefffile_name,caption", 'a.png,"ant, a small one"', "b.jpg, bee ", "sub/c.png,cee"]
    (images / "metadata.csv").write_text("\r\n".join(lines) + "\r\n", encoding="utf-8")
    rows = convert(images, "--caption_column", "caption", "--kinds", "describe:1", out="deep/er/rows.jsonl")
    assert [texts(row)[1] for row in rows] == ["ant, a small one", "bee", "cee"]
    assert rows[2].images[0].name == "../../mine/sub/c.png" and rows[2].images[0].read()
    assert [part["type"] for part in rows[0].messages[0]["content"]] == ["image", "text"]


def test_txt_beside_each_picture(images: Path, convert: Run) -> None:
    (images / "a.txt").write_text("ant\n\n  an ant \n", encoding="utf-8")
    (images / "b.txt").write_text("bee")
    (images / ".DS_Store").write_text("no business of ours")
    add_pictures(images / ".thumbnails", "a.png")
    for place in (images, images / ".." / "mine"):
        rows = convert(place, "--kinds", "draw:1", "--wordings", "{}", "--repeat", 20)
        assert {words for row in rows for words in texts(row)} == {"ant", "an ant", "bee"}


def test_kinds_and_wordings_are_mixed_as_asked_and_depend_on_the_seed_alone(images: Path, convert: Run) -> None:
    write_jsonl(images, {"file_name": "a.png", "text": "an {odd} ant"}, {"file_name": "b.jpg", "text": "bee"})
    flags = ("--repeat", 200, "--wordings", "{}", "Paint {}!")
    rows = convert(images, *flags)
    kinds = Counter(json.loads(row.metadata)["kind"] for row in rows)
    assert 0.75 < kinds["draw"] / 400 < 0.85 and kinds["draw"] + kinds["describe"] == 400
    asked = Counter(texts(row)[0] for row in rows if json.loads(row.metadata)["kind"] == "draw")
    assert set(asked) == {"an {odd} ant", "Paint an {odd} ant!", "bee", "Paint bee!"} and min(asked.values()) > 50

    def said(*more: object) -> list[list[str]]:
        return [texts(row) for row in convert(images, *flags, *more)]

    assert said() == [texts(row) for row in rows] != said("--seed", 1)


def test_folders_of_classes_are_named_by_a_template(tmp_path: Path, convert: Run) -> None:
    folder = add_pictures(tmp_path / "classes", "train/red_panda/1.jpg", "train/red_panda/2.jpg")
    (folder / "train/cat").symlink_to(add_pictures(tmp_path / "elsewhere", "1.jpg"))
    rows = convert(folder, "--caption_template", "a photo of a {}", "--kinds", "draw", "--wordings", "{}")
    assert [texts(row) for row in rows] == [["a photo of a cat"], *[["a photo of a red panda"]] * 2]
    assert [Path(row.images[0].name).name for row in rows] == ["1.jpg", "1.jpg", "2.jpg"]


def test_held_out_pictures_are_the_tokenizers_and_nowhere_else(
    tmp_path: Path, convert: Run, toy_rows: Callable[[str], Path], run_script: Callable[..., int], capsys
) -> None:
    names = [f"{letter}/{number}.png" for letter in "ba" for number in (2, 1, 3)]
    images = add_pictures(tmp_path / "mine", *names)
    write_jsonl(images, *({"file_name": name, "text": [f"{name[0]} {name[2]}", "again"]} for name in names))
    flags = ("--eval_images", 2, "--eval_out", tmp_path / "deep/eval.jsonl", "--prompts", tmp_path / "prompts.jsonl")
    rows = convert(images, "--repeat", 3, "--wordings", "Draw {}.", "{}", *flags)
    source = open_images(str(images))
    wanted = [Path(source.name(index)) for index in held_out_split(6, 2, 0)[1].tolist()]
    shown = list(read_rows(tmp_path / "deep/eval.jsonl"))
    assert [(tmp_path / "deep" / row.images[0].name).resolve() for row in shown[::2]] == wanted
    assert [json.loads(row.metadata)["kind"] for row in shown] == ["draw", "describe"] * 2
    assert len(rows) == 12 and not {tmp_path / row.images[0].name for row in rows} & {*wanted}
    prompts = [json.loads(line) for line in (tmp_path / "prompts.jsonl").read_text().splitlines()]
    assert [record["held_out"] for record in prompts] == [True, True, False, False]
    pictures = [tmp_path / record["image"] for record in prompts]
    assert pictures[:2] == wanted and not {*pictures[2:]} & {*wanted} and pictures[2] != pictures[3]
    (images / "other.parquet").write_bytes((toy_rows("d")).read_bytes())  # codes alone
    assert len(convert(images, "--repeat", 3, *flags)) == 12
    pq.write_table(pa.table({"image": [{"bytes": b"x", "path": None}]}), images / "more.parquet")
    assert run_script(SCRIPT, "--images", images, "--out", tmp_path / "rows.jsonl", *flags) == 2
    assert "more.parquet holds images that recipes/train_vq.py counts" in capsys.readouterr().err
    assert [record["prompt"] for record in prompts] == [f"Draw {p.parent.name} {p.stem}." for p in pictures]


A, B = {"file_name": "a.png", "text": "ant"}, {"file_name": "b.jpg", "text": "bee"}


@pytest.mark.parametrize(
    ("files", "flags", "words"),
    [
        ({"metadata.jsonl": [A]}, (), "b.jpg has no caption; write one into metadata.jsonl"),
        ({"metadata.jsonl": [A, {**B, "text": " "}]}, (), "metadata.jsonl:2: text ' ' is no caption"),
        ({"metadata.jsonl": [A, {**B, "text": []}]}, (), "metadata.jsonl:2: text is an empty list"),
        ({"metadata.jsonl": [A, {**B, "text": None}]}, (), "metadata.jsonl:2: text None is no caption"),
        ({"metadata.jsonl": [A, B, {**A, "file_name": "c.png"}]}, (), "metadata.jsonl:3: there is no picture"),
        ({"metadata.jsonl": [A, B, {**A, "file_name": "./a.png"}]}, (), "metadata.jsonl:3: a.png was named in"),
        (
            {"metadata.jsonl": [A, {"file": "b.jpg", "text": "bee"}]},
            (),
            "metadata.jsonl:2: no column 'file_name'; nearest",
        ),
        ({"metadata.jsonl": [A, B]}, ("--caption_column", "txt"), "metadata.jsonl:1: no column 'txt'; nearest: text"),
        ({"metadata.jsonl": "{\n"}, (), "metadata.jsonl:1: not JSON"),
        ({"metadata.csv": "file_name,text\na.png,ant\nb.jpg,bee, busy\n"}, (), "metadata.csv:3: not 2 columns"),
        ({"metadata.csv": "file_name,text\na.png,ant\nb.jpg\n"}, (), "metadata.csv:3: not 2 columns"),
        ({"metadata.csv": 'file_name,text\na.png,"ant" x\n'}, (), "metadata.csv:2: not CSV"),
        ({"metadata.csv": b"file_name,text\na.png,\xe9\n"}, (), "metadata.csv: not UTF-8"),
        ({"a.txt": "ant"}, (), "b.jpg has no caption; write one into a .txt"),
        ({"a.txt": "ant", "b.txt": "\n"}, (), "b.txt:1: no caption"),
        ({"a.txt": "ant", "b.txt": "bee", "c.txt": "sea"}, (), "c.txt: no picture of that name"),
        ({"a.txt": "ant", "metadata.jsonl": [A, B]}, (), "more than one form (metadata.jsonl, a.txt)"),
        ({}, (), "has no captions: write metadata.jsonl"),
        ({"a.txt": "ant"}, ("--caption_template", "a {}"), "has captions (a.txt) beside --caption_template"),
        ({}, ("--caption_template", "a {}"), "a.png lies in no folder of a class"),
        ({}, ("--caption_template", "a cat"), "has not one {} for the class"),
        ({"train/metadata.jsonl": [A]}, (), "train/metadata.jsonl lies deeper; give --images"),
        ({"metadata.jsonl": [A, B]}, ("--kinds", "drew:1"), "nearest: draw"),
        ({"metadata.jsonl": [A, B]}, ("--kinds", "draw:x"), "'x' is not a number"),
        ({"metadata.jsonl": [A, B]}, ("--kinds", "draw:0"), "nor all 0"),
        ({"metadata.jsonl": [A, B]}, ("--wordings", "Draw it"), "has not one {} for the caption"),
        ({"metadata.jsonl": [A, B]}, ("--repeat", 0), "give at least 1"),
        ({"metadata.jsonl": [A, B]}, ("--out", "rows.json"), "no .jsonl"),
        ({"metadata.jsonl": [A, B]}, ("--eval_out", "eval.jsonl"), "--eval_out would be empty without --eval_images"),
        ({"metadata.jsonl": [A, B]}, ("--eval_images", 1), "--eval_images 1 would be lost"),
        ({"metadata.jsonl": [A, B]}, ("--eval_images", 2, "--prompts", "p.jsonl"), "eval_images 2 of 2 images"),
    ],
)
def test_what_does_not_fit_is_one_line(
    files: dict, flags: tuple, words: str, images: Path, tmp_path: Path, run_script: Callable[..., int], capsys
) -> None:
    for name, content in files.items():
        (images / name).parent.mkdir(exist_ok=True)
        text = "".join(json.dumps(record) + "\n" for record in content) if isinstance(content, list) else content
        (images / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert run_script(SCRIPT, "--images", images, "--out", tmp_path / "rows.jsonl", *flags) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert not list(tmp_path.glob("rows*"))


def test_two_pictures_of_one_name_and_folders_without_pictures(tmp_path: Path, run_script, capsys) -> None:
    folder = add_pictures(tmp_path / "twice", "a.png", "a.jpg")
    (folder / "a.txt").write_text("ant")
    (tmp_path / "none").mkdir()
    add_pictures(tmp_path / "classes", "ant/1.png", "bee/1.png")
    (tmp_path / "rows.jsonl").write_text("{}")
    for name, words in (
        ("twice", "would share their .txt"),
        ("none", "holds no pictures"),
        ("gone", "is not a folder"),
        ("classes", "are its folders classes? then give --caption_template 'a photo of a {}' (the first: 'ant')"),
        ("rows.jsonl", "a file of rows, which data_prep/encode_images.py reads"),
    ):
        assert run_script(SCRIPT, "--images", tmp_path / name, "--out", tmp_path / "out.jsonl") == 2
        assert words in capsys.readouterr().err
