"""eval/generate_images.py on a toy: GenEval's layout, and pictures that depend on their seeds alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import load_script
from PIL import Image

from unified.evaluation.image_folder import GenerateArguments, read_prompts

SCRIPT = "eval/generate_images.py"
OFFICIAL = Path(__file__).parents[3] / "shared" / "geneval" / "evaluation_metadata.jsonl"
TEXTS = ["a photo of a cat", "red apple above a very long blue dog on a light background", "cats", "two books", "a"]
METADATA = [{"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": text} for text in TEXTS]
Draw = Callable[..., Path]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(metadata) + "\n" for metadata in METADATA))
    return path


@pytest.fixture
def draw(toy_checkpoint: Path, prompts: Path, tmp_path: Path, run_script: Callable[..., int]) -> Draw:
    """`draw("name", "--flag", value)` draws two pictures of every prompt into a folder and returns it."""

    def run(name: str, *arguments: object, status: int = 0) -> Path:
        common = ["--model", toy_checkpoint, "--prompts", prompts, "--out", tmp_path / name, "--samples", 2]
        assert run_script(SCRIPT, *common, "--guidance_scale", 2, "--batch_size", 4, *arguments) == status
        return tmp_path / name

    return run


def pictures(folder: Path) -> dict[str, np.ndarray]:
    paths = sorted(folder.rglob("*.png"))
    return {path.relative_to(folder).as_posix(): np.asarray(Image.open(path)) for path in paths}


def same(one: Path, other: Path) -> bool:
    a, b = pictures(one), pictures(other)
    return a.keys() == b.keys() and all((a[name] == b[name]).all() for name in a)


def test_the_folder_is_genevals(draw: Draw, toy_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = draw("out")
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"{i:05d}" for i in range(5)), "prompts.jsonl", "settings.json"
    ]  # fmt: skip
    for number, metadata in enumerate(METADATA):
        folder = out / f"{number:05d}"
        assert sorted(path.name for path in folder.iterdir()) == ["metadata.jsonl", "samples", "seeds.json"]
        assert [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()] == [metadata]
        assert sorted(path.name for path in (folder / "samples").iterdir()) == ["0000.png", "0001.png"]
    assert {image.shape for image in pictures(out).values()} == {(16, 16, 3)}
    seeds = [seed for path in out.glob("*/seeds.json") for seed in json.loads(path.read_text())]
    assert len(set(seeds)) == 10
    settings = json.loads((out / "settings.json").read_text())
    assert settings["model"] == str(toy_checkpoint) and settings["seed"] == 0 and settings["guidance_scale"] == 2
    assert len(settings["model_sha256"]) == 64 and settings["samples"] == 2 and settings["prompts"] == 5
    speed = json.loads(capsys.readouterr().out)
    assert speed["metric"] == "images_per_second" and speed["n"] == 10 and speed["value"] > 0
    assert speed["tokenizer"] == settings["vq_fingerprint"] and speed["seed"] == 0 and speed["stderr"] is None
    assert speed["prompts_sha256"] == settings["prompts_sha256"] and speed["seconds"] >= 0


def test_pictures_differ_by_seed_and_not_by_batch(draw: Draw) -> None:
    one = draw("one", "--batch_size", 1)
    assert same(one, draw("three", "--batch_size", 3)) and same(one, draw("ten", "--batch_size", 10))
    assert not same(one, draw("other", "--seed", 1))
    first = pictures(one)
    assert (first["00000/samples/0000.png"] != first["00000/samples/0001.png"]).any()


def test_processes_share_the_work_and_change_nothing(draw: Draw, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = draw("alone")
    for rank, mine in ((1, {"00002", "00003"}), (0, {f"{number:05d}" for number in range(5)})):
        state = SimpleNamespace(process_index=rank, num_processes=2, is_main_process=rank == 0)
        monkeypatch.setattr(load_script(SCRIPT), "set_up_processes", lambda hardware, state=state: state)
        shared = draw("shared")
        assert {path.name for path in shared.iterdir() if path.is_dir()} == mine
    assert same(alone, shared)


def test_a_stopped_run_goes_on(
    draw: Draw, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, save, saved = draw("whole"), Image.Image.save, []

    def stop_at_sixth(image: Image.Image, path: Path) -> None:
        saved.append(path)
        save(image, path)
        if len(saved) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", stop_at_sixth)
    with pytest.raises(KeyboardInterrupt):
        draw("stopped")
    monkeypatch.setattr(Image.Image, "save", save)
    stopped = saved[0].parents[2]
    assert not (stopped / "00002").exists() and (stopped / "00001" / "metadata.jsonl").exists()
    before = (stopped / "00000" / "samples" / "0000.png").stat().st_mtime_ns
    capsys.readouterr()
    assert same(whole, draw("stopped")) and not list(stopped.rglob("*.partial"))
    assert json.loads(capsys.readouterr().out)["n"] == 6
    assert (stopped / "00000" / "samples" / "0000.png").stat().st_mtime_ns == before
    draw("stopped")
    assert "nothing left to draw" in capsys.readouterr().out


def test_a_sheet_shows_the_first_pictures_below_the_originals(draw: Draw, prompts: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.jpg"
    draw("out", "--sheet", plain)
    cell, row = 96 + 8, 96 + 36 + 12
    assert np.asarray(Image.open(plain)).shape == (row + 8, 5 * cell + 8, 3)
    (tmp_path / "mine").mkdir()
    Image.new("RGB", (30, 20), (200, 0, 0)).save(tmp_path / "mine/red.png")
    records = [METADATA[0] | {"image": "mine/red.png"}, *METADATA[1:], *METADATA]
    prompts.write_text("".join(json.dumps(metadata) + "\n" for metadata in records))
    out = draw("originals", "--sheet", tmp_path / "sheet.png")
    sheet = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert sheet.shape == (4 * row + 8, 8 * cell + 8, 3)  # 8 and 2 of them, in two rows each
    assert sheet[56, 56].tolist() == [200, 0, 0] and sheet[56, 56 + cell].tolist() == [255] * 3
    for number in (0, 9):
        drawn = Image.open(out / f"{number:05d}/samples/0000.png").resize((96, 96), Image.Resampling.NEAREST)
        x, y = 8 + number % 8 * cell, 8 + (2 * (number // 8) + 1) * row
        assert (sheet[y : y + 96, x : x + 96] == np.asarray(drawn)).all()
    prompts.write_text(json.dumps(METADATA[0] | {"image": "mine/gone.png"}) + "\n")
    assert not draw("gone", "--sheet", tmp_path / "gone.png", status=2).exists()
    assert not draw("never", "--sheet", tmp_path / "sheet.xyz", status=2).exists()


def test_what_is_taken_out_is_drawn_again(draw: Draw) -> None:
    whole, mended = draw("whole"), draw("mended")
    shutil.rmtree(mended / "00004")
    (mended / "00001" / "samples" / "0001.png").unlink()
    (mended / "00002" / "metadata.jsonl").unlink()
    assert same(whole, draw("mended"))
    assert all((mended / f"{number:05d}" / "metadata.jsonl").exists() for number in range(5))


@pytest.mark.parametrize(
    "change", [("--seed", 1), ("--guidance_scale", 3), ("--top_k", 5), ("--samples", 3), ("--batch_size", 2)]
)
def test_other_settings_do_not_go_into_the_same_folder(
    draw: Draw, change: tuple[str, int], capsys: pytest.CaptureFixture[str]
) -> None:
    before = pictures(draw("out"))
    out = draw("out", *change, status=2)
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"was made with {change[0].strip('-')}" in line and "another --out" in line
    assert pictures(out).keys() == before.keys()


def test_a_foreign_folder_is_left_alone(draw: Draw, capsys: pytest.CaptureFixture[str]) -> None:
    (draw("out") / "settings.json").unlink()
    draw("out", status=2)
    assert "without a settings.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a cat"}\n{"prompt": \n', "prompts.jsonl:2: not JSON"),
        ('{"text": "a cat"}\n', "prompts.jsonl:1: no prompt"),
        ('["a cat"]\n', "prompts.jsonl:1: not an object"),
        ('{"prompt": " "}\n', "prompts.jsonl:1: no prompt"),
        ('{"prompt": "a \udce9"}\n', "prompts.jsonl:1: not UTF-8"),
        ("", "is empty"),
        (json.dumps({"prompt": "cat " * 2000}), "context"),
    ],
)
def test_a_bad_prompt_is_named(
    draw: Draw, prompts: Path, text: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts.write_text(text, encoding="utf-8", errors="surrogateescape")  # which stands for a byte of Latin-1
    out = draw("out", status=2)
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and message in line and not out.exists()


@pytest.mark.parametrize("flag", ["--samples", "--batch_size", "--top_p"])
def test_impossible_arguments_are_refused(draw: Draw, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert not draw("out", flag, 0, status=2).exists()
    assert f"{flag} 0" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(not OFFICIAL.exists(), reason="the official prompts are not part of the project")
def test_the_official_prompts_can_be_read() -> None:
    read = read_prompts(GenerateArguments(model="", prompts=str(OFFICIAL), out="out"))
    assert len(read) == 553 and len({seed for prompt in read for seed in prompt.seeds}) >= 4 * 553 - 1
    assert read[552].folder == Path("out/00552") and set(read[0].metadata) == {"tag", "include", "prompt"}
