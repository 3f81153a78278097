"""What `unified chat` does with a line: commands, questions, errors, and Ctrl-C, with a chat that needs no model."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_chat import conversation
from PIL import Image

from unified.cli.conversation import COMMANDS, Conversation, converse, typed_path
from unified.data.rows import read_rows


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (20, 16), (200, 30, 30)).save(tmp_path / "my cat's.png")
    return tmp_path / "my cat's.png"


def say(talk: Conversation, *lines: str, interactive: bool = True) -> None:
    rest: Iterator[str] = iter(lines)
    converse(talk, lambda: next(rest, None), interactive)


def test_every_command_is_listed_and_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = conversation(tmp_path)
    assert {*COMMANDS} == {*talk.commands, "/quit"}
    say(talk, "/help", "/quit", "hello")
    shown = capsys.readouterr().out
    assert all(f"{command} {given}" in shown for command, (given, _) in COMMANDS.items()) and "you said" not in shown


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/image", "/image without a file; give /image FILE, a PNG, JPEG or WebP"),
        ("/image  ", "/image without a file"),
        ("/image nowhere.png", "nowhere.png cannot be read (No such file or directory)"),
        ("/image .", "cannot be read (Is a directory)"),
        ("/save", "/save without a file"),
        ("/save x.png", "no image yet to save as x.png"),
        ("/save x.jsonl", "no answer yet to save as x.jsonl"),
        ("/save .", ". exists already; give another name"),
        ("/seed one", "/seed one: give a whole number"),
        ("/seed -1", "/seed -1: give a whole number"),
        (f"/seed {2**63}", "give a whole number from 0 to 2**63 - 1"),
        ("/imgae x.png", "unknown command '/imgae'; choose from /help, /image FILE, /seed [N], /save FILE, /reset"),
        ("full", "the prompt takes 600 positions; shorten it"),
    ],
)
def test_a_bad_line_is_one_line_and_ends_piped_input_only(
    line: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    say(conversation(tmp_path), line, "hello")
    shown = capsys.readouterr()
    assert said in shown.err and shown.err.startswith("error: ") and shown.err.count("\n") == 1
    assert "you said hello" in shown.out
    with pytest.raises(ValueError):
        say(conversation(tmp_path), line, "hello", interactive=False)
    assert "you said" not in capsys.readouterr().out


def test_a_dropped_path_is_no_command_and_the_error_says_what_it_may_be(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    say(conversation(tmp_path), str(picture))
    assert f"to show a picture: /image {picture}" in capsys.readouterr().err


def test_paths_are_read_as_typed_and_as_terminals_write_them(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    escaped = str(picture).replace(" ", "\\ ").replace("'", "\\'")
    written = [str(picture), escaped, f'"{picture}"', picture.as_uri()]
    assert [typed_path(text) for text in written] == [picture] * 4
    monkeypatch.setenv("HOME", str(picture.parent))
    assert typed_path(f"~/{picture.name}") == picture
    assert typed_path("not there's.png") == Path("not there's.png") and typed_path("a b.png") == Path("a b.png")


def test_ctrl_c_ends_the_answer_and_keeps_the_conversation(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupt)
    talk = conversation(tmp_path)
    say(talk, "one", f"/image {picture}", "long", "two", f"/save {tmp_path}/x.jsonl")
    shown = capsys.readouterr().out
    assert "once upon a time \n[stopped; question and answer are not part of the conversation]\nyou said two" in shown
    (row,) = read_rows(tmp_path / "x.jsonl")
    texts = [part["text"] for message in row.messages for part in message["content"] if part["type"] == "text"]
    assert texts == ["one", "you said one", "two", "you said two"] and len(row.images) == 1
    with pytest.raises(KeyboardInterrupt):
        say(talk, "long", interactive=False)


def test_a_saved_conversation_is_a_row_whose_images_are_found(
    picture: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    talk = conversation(Path("out/chat"))
    say(talk, "/image " + picture.name, "what is it?", "draw", f"/save {tmp_path}/deep/er/row.jsonl", "/save one.png")
    (row,) = read_rows(tmp_path / "deep/er/row.jsonl")
    kinds = [[part["type"] for part in message["content"]] for message in row.messages]
    assert kinds == [["image", "text"], ["text"], ["text"], ["image"]]
    shown, drawn = (Image.open(image) if isinstance(image, Path) else image for image in row.images[:2])
    assert json.loads((tmp_path / "deep/er/row.jsonl").read_text())["images"] == [
        "../../my cat's.png",
        "../../out/chat/000.png",
    ]
    assert Image.open("one.png").tobytes() == Image.open("out/chat/000.png").tobytes()
    for number, command in enumerate(("/reset", "/clear")):
        say(talk, "draw", command, "hello", f"/save again{number}.jsonl")
        assert json.loads(Path(f"again{number}.jsonl").read_text())["images"] == []


def test_an_answer_does_not_command_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Titles (OSC), colours (CSI), 8-bit CSI, bells, lines that are overwritten, and directions of writing."""
    talk = conversation(tmp_path)
    evil = "\x1b]0;title\x07 \x1b[2J\x9b31m \x90q\x9c \x08\x7f\x00 over\rwritten \u202egnp.exe \u2066a"
    say(talk, f"{evil}\n\tfine: née 🐈 \u200d", f"/{evil}")
    shown = capsys.readouterr()
    controls = [character for character in shown.out + shown.err if not character.isprintable()]
    assert set(controls) == {"\n", "\t", "\u200d"} and "fine: née 🐈" in shown.out and "␛]0;title␇" in shown.out
    assert talk.chat.messages[-1]["content"][0]["text"].startswith(f"you said {evil}")  # as it was, for /save


def test_seed_is_said_and_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    talk = conversation(tmp_path)
    say(talk, "/seed", "/seed 12", "/seed")
    assert capsys.readouterr().out.split("\n")[:3] == ["[seed 7]", "[seed 12]", "[seed 12]"] and talk.chat.seed == 12
