"""data_prep/build_preferences.py as its users run it: a toy draws, a detector made up for it scores."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import load_script
from PIL import Image

from unified import UnifiedConfig
from unified.checkpoints.loading import load
from unified.data.preferences import load_pairs, modality
from unified.data.rows import write_encoded_shard
from unified.evaluation.preference_scorers import VerdictScorer
from unified.inference.text_to_image import generate_codes
from unified.models.image_sampling import ImageSampling

SCRIPT = "data_prep/build_preferences.py"
Build = Callable[..., dict[str, Any]]


class BrightDetector:
    """Sees a cat in every picture, the more surely the brighter it is."""

    name = "bright"

    def detect(self, images: Sequence[Image.Image]) -> list[dict[str, list[list[float]]]]:
        return [{"cat": [[0, 0, 8, 8, float(np.mean(image)) / 256, 0]]} for image in images]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    lines = [
        {"tag": "single_object", "include": [{"class": "cat", "count": 1}], "prompt": f"a photo of cat {n}"}
        for n in range(5)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def build(
    run_script: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    toy_checkpoint: Path,
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Build:
    """Run the script on 5 prompts with 3 pictures each; returns what it printed."""
    detection = load_script(SCRIPT).DetectionArguments
    monkeypatch.setattr(detection, "load", lambda self: BrightDetector())
    monkeypatch.setattr(detection, "identity", lambda self: {"detector": "bright"})
    monkeypatch.setattr(detection, "class_names", lambda self: ["cat"])

    def run(*changes: object) -> dict[str, Any]:
        arguments = ["--model", toy_checkpoint, "--prompts", prompts, "--out", tmp_path / "pairs", "--samples", 3]
        arguments += ["--shard_size", 2, "--batch_size", 6, *changes]
        assert run_script(SCRIPT, *arguments) == 0
        return json.loads(capsys.readouterr().out)

    return run


@pytest.fixture
def refuse(build: Build, run_script: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Run the script with these arguments alone, which must end with status 2 and one line with all `words`."""

    def run(*arguments: object, words: list[str]) -> None:
        assert run_script(SCRIPT, *arguments) == 2
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("error: ") and not [word for word in words if word not in line], line

    return run


def stamps(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in sorted(folder.rglob("*.parquet"))}


def test_pairs_are_the_best_and_the_worst_picture_of_each_prompt(
    build: Build, toy_checkpoint: Path, tmp_path: Path
) -> None:
    report = build()
    assert {name: report[name] for name in ("prompts", "pairs", "dropped", "drawn")} == {
        "prompts": 5, "pairs": 5, "dropped": 0, "drawn": 15
    }  # fmt: skip
    assert list(stamps(tmp_path / "pairs")) == [f"{n:05d}.parquet" for n in range(3)] + [
        f"samples/{n:05d}.parquet" for n in range(3)
    ]
    pairs = load_pairs([str(tmp_path / "pairs")], UnifiedConfig.from_pretrained(toy_checkpoint))
    drawn = [row for n in range(3) for row in pq.read_table(tmp_path / f"pairs/samples/{n:05d}.parquet").to_pylist()]
    for number, (pair, row) in enumerate(zip(pairs, drawn, strict=True)):
        assert modality(pair) == "image" and pair["source"] == "samples margin"
        assert pair["messages"][0]["content"][0]["text"] == f"a photo of cat {number}"
        assert json.loads(pair["metadata"])["tag"] == "single_object" and pair["score_chosen"] > pair["score_rejected"]
        for kind, seed in zip(("chosen", "rejected"), pair["seeds"], strict=True):
            assert row["codes"][row["seeds"].index(seed)] == pair[f"{kind}_codes"][0]


def test_a_picture_is_drawn_again_from_its_seed(build: Build, toy_checkpoint: Path, tmp_path: Path) -> None:
    build("--guidance_scale", 2, "--top_k", 8)
    pair = load_pairs([str(tmp_path / "pairs")], UnifiedConfig.from_pretrained(toy_checkpoint))[3]
    model, processor = load(toy_checkpoint, device="cpu")
    generator = torch.Generator().manual_seed(pair["seeds"][0])
    text = pair["messages"][0]["content"][0]["text"]
    codes = generate_codes(model, processor, [text], ImageSampling(top_k=8, guidance_scale=2), generator)
    assert codes.tolist() == pair["chosen_codes"]


def test_a_stopped_run_goes_on_with_what_is_missing(build: Build, tmp_path: Path) -> None:
    out = tmp_path / "pairs"
    build()
    before, whole = stamps(out), pq.read_table(out / "00001.parquet")
    again = build()
    assert stamps(out) == before and again["drawn"] == 0 and again["pairs"] == 5
    for name in ("00001.parquet", "samples/00001.parquet"):
        (out / name).unlink()
    assert build()["drawn"] == 6
    changed = [name for name, time in stamps(out).items() if time != before[name]]
    assert changed == ["00001.parquet", "samples/00001.parquet"] and pq.read_table(out / "00001.parquet") == whole


def test_another_scorer_takes_the_same_samples(build: Build, tmp_path: Path) -> None:
    build()
    samples = tmp_path / "pairs/samples"
    before = stamps(samples)
    report = build("--out", tmp_path / "verdicts", "--sampled", samples, "--scorer", "verdict", "--max_pairs", 2)
    assert report["drawn"] == 0 and stamps(samples) == before
    assert report["pairs"] + report["dropped"] == 5 and 0 <= report["mean_score"] <= 1


def test_ties_are_dropped_and_counted(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(VerdictScorer, "score_detections", lambda *_: 1.0)
    report = build("--scorer", "verdict")
    assert (report["pairs"], report["dropped"], report["mean_score"]) == (0, 5, 1.0)


def test_people_choose_from_numbered_sheets(
    build: Build,
    run_script: Callable[..., int],
    toy_checkpoint: Path,
    prompts: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, choices = tmp_path / "human", tmp_path / "choices.jsonl"
    arguments = ["--model", toy_checkpoint, "--prompts", prompts, "--out", out, "--samples", 3, "--scorer", "human"]
    assert run_script(SCRIPT, *arguments) == 0
    assert "run again with --choices" in capsys.readouterr().out
    assert [path.name for path in sorted((out / "sheets").iterdir())] == [f"{n:05d}.png" for n in range(5)]
    choices.write_text(json.dumps({"prompt": "a photo of cat 3", "chosen": 2, "rejected": 1}) + "\n")
    assert run_script(SCRIPT, *arguments, "--choices", choices) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["drawn"], report["pairs"], report["dropped"]) == (0, 1, 0)
    (pair,) = load_pairs([str(out)], UnifiedConfig.from_pretrained(toy_checkpoint))
    row = pq.read_table(out / "samples/00000.parquet").to_pylist()[3]
    assert pair["chosen_codes"] == [row["codes"][2]] and pair["seeds"] == [row["seeds"][2], row["seeds"][1]]


def test_questions_become_pairs_without_a_model(
    run_script: Callable[..., int], toy_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = UnifiedConfig.from_pretrained(toy_checkpoint)
    ask = [{"type": "image", "text": None}, {"type": "text", "text": "How many?"}]
    rows = [
        {
            "messages": [
                {"role": "user", "content": ask},
                {"role": "assistant", "content": [{"type": "text", "text": answer}]},
            ],
            "codes": [[1, 2, 3, 4, 5]],
            "metadata": "{}",
            "source": "scenes",
        }
        for answer in ("Two.", "A cat.", "Yes.")
    ]
    write_encoded_shard(tmp_path / "ask.parquet", rows, config.vq_fingerprint, config.patch_nums)
    for _ in range(2):
        assert run_script(SCRIPT, "--questions", tmp_path / "ask.parquet", "--out", tmp_path / "asked") == 0
        assert json.loads(capsys.readouterr().out) == {"prompts": 3, "pairs": 2, "dropped": 1}
    pairs = load_pairs([str(tmp_path / "asked")], config)
    assert [modality(pair) for pair in pairs] == ["understanding"] * 2
    assert pairs[1]["rejected"][0]["content"][0]["text"] == "No."


def test_what_cannot_be_done_is_refused(
    refuse: Callable[..., None], toy_checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    given = ["--model", toy_checkpoint, "--prompts", prompts, "--out", tmp_path / "out"]
    dogs = tmp_path / "dogs.jsonl"
    dogs.write_text('{"tag": "single_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog"}\n')
    refuse("--out", tmp_path, words=["--questions alone"])
    refuse(*given, "--questions", "a.parquet", words=["--questions alone"])
    refuse(*given, "--samples", 1, words=["--samples 1", "at least 2"])
    refuse(*given, "--temperature", 0, words=["all pictures are the same"])
    refuse(*given, "--scorer", "clip", words=["--clip belongs to clip"])
    refuse(*given, "--choices", prompts, words=["--choices to human"])
    refuse(*given, "--prompts", dogs, words=["dogs.jsonl:1", "does not know 'dog'"])
    refuse(*given, "--prompts", tmp_path / "none", words=["is not a file"])
    (tmp_path / "empty.jsonl").write_text("{}\n")
    refuse(*given, "--prompts", tmp_path / "empty.jsonl", words=["empty.jsonl:1", "no prompt"])
    assert not (tmp_path / "out").exists()


def test_another_run_in_the_same_folder_is_refused(
    build: Build, refuse: Callable[..., None], toy_checkpoint: Path, prompts: Path, tmp_path: Path
) -> None:
    build()
    given = ["--model", toy_checkpoint, "--prompts", prompts, "--out", tmp_path / "pairs", "--samples", 3]
    given += ["--shard_size", 2]
    refuse(*given, "--seed", 1, words=["was made with seed 0, not 1"])
    refuse(*given, "--scorer", "verdict", words=["was made with scorer 'margin', not 'verdict'"])
