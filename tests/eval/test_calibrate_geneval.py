"""eval/calibrate_geneval.py: thresholds that are known are found again, on halves that share no prompt."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from conftest import load_script
from toy_coco import noise, save_tiny_clip, save_tiny_mask2former

from unified.arguments.parser import parse
from unified.evaluation.metrics import GenevalRules, geneval_objects, geneval_verdict

CLASSES = ("cat", "dog", "bus", "cup", "tv remote")
TRUE = GenevalRules(score_threshold=0.42, counting_threshold=0.71)  # the rules of the images below


@pytest.fixture(scope="module")
def calibrate() -> ModuleType:
    return load_script("eval/calibrate_geneval.py")


def boxes(rng: np.random.Generator, count: int) -> list[list[float]]:
    return [[8.0, 8.0, 40.0, 40.0, round(float(rng.uniform(0.05, 1)), 5), int(rng.integers(10))] for _ in range(count)]


def write_files(folder: Path, prompts: int = 40, samples: int = 2) -> tuple[Path, Path]:
    """Random detections of single objects and of counting, and what a tool with the thresholds TRUE says of them."""
    rng = np.random.default_rng(0)
    ours, theirs = [{"detector": "coco"}], []
    for number in range(prompts):
        name, count = CLASSES[number % len(CLASSES)], 2 + number % 3
        tag = ("single_object", "counting")[number % 2]
        include = {"class": name, "count": 1 if tag == "single_object" else count}
        metadata: dict[str, Any] = {"tag": tag, "include": [include], "prompt": f"{number} {name}"}
        if tag == "counting":
            metadata["exclude"] = [{"class": name, "count": count + 1}]
        for sample in range(samples):
            place = f"{number:05d}/samples/{sample:04d}.png"
            found = {name: boxes(rng, int(rng.integers(1, 7)) if tag == "counting" else 1), "couch": boxes(rng, 3)}
            correct, reason = geneval_verdict(metadata, found, TRUE)
            details = {key: [box[:5] for box in kept] for key, kept in geneval_objects(tag, found, TRUE).items()}
            line = {"filename": f"/data/images/{place}", "tag": tag, "prompt": metadata["prompt"], "correct": correct}
            line |= {"reason": reason, "metadata": json.dumps(metadata), "details": json.dumps(details)}
            theirs.append(line)
            ours.append({"filename": place, "sha256": "", "detections": found})
    paths = folder / "detections.jsonl", folder / "results.jsonl"
    for path, lines in zip(paths, (ours, theirs[::-1]), strict=True):  # the original tool's order is any
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return paths


def flags(folder: Path, ours: Path, theirs: Path, *more: object) -> list[object]:
    outs = ["--rules", folder / "rules.json", "--out", folder / "out" / "agreement.json"]
    return ["--detections", ours, "--original", theirs, *outs, *more]


@pytest.mark.parametrize("against", ["verdicts", "detections"])
def test_thresholds_are_found_again(
    tmp_path: Path, run_script: Callable, against: str, capsys: pytest.CaptureFixture
) -> None:
    arguments = flags(tmp_path, *write_files(tmp_path), "--against", against)
    assert run_script("eval/calibrate_geneval.py", *arguments) == 0
    (rules,) = parse((GenevalRules,), ["--config", str(tmp_path / "rules.json")])
    # 40 images say of a threshold only between which scores it lies; every box counts for `detections`
    slack = 0.08 if against == "verdicts" else 0.02
    assert rules.score_threshold == pytest.approx(TRUE.score_threshold, abs=slack)
    assert rules.counting_threshold == pytest.approx(TRUE.counting_threshold, abs=slack)
    assert rules.max_objects == GenevalRules().max_objects
    record = json.loads(capsys.readouterr().out)
    assert record == json.loads((tmp_path / "out" / "agreement.json").read_text())
    assert record["metric"] == f"geneval_agreement_{against}" and record["n"] == record["fitted_images"] == 40
    assert record["config"]["before"]["counting_threshold"] == 0.9
    assert record["stderr"] == record["held_out"][against]["after"]["stderr"] and record["seed"] == 0
    assert len(record["prompts_sha256"]) == 64 and record["tokenizer"] is None and record["seconds"] >= 0
    assert set(record["tasks"]) == {"single_object", "counting"}
    whole = record["held_out"][against]
    assert record["value"] == whole["after"]["value"] > max(0.9, whole["before"]["value"])
    assert whole["gain"]["value"] == pytest.approx(whole["after"]["value"] - whole["before"]["value"], abs=2e-4)
    assert whole["after"]["stderr"] < whole["before"]["stderr"]
    correct = record["tasks"]["counting"]["correct_images"]
    assert abs(correct["after"]["value"] - correct["original"]["value"]) < 0.1


def test_a_tool_that_agrees_already_keeps_the_published_thresholds(calibrate: ModuleType, tmp_path: Path) -> None:
    cases = calibrate.read_cases(*map(str, write_files(tmp_path)))
    published = GenevalRules()
    cases = [c._replace(correct=geneval_verdict(c.metadata, c.detections, published)[0]) for c in cases]
    assert calibrate.fit(cases, [0.1, 0.3001, 0.5, 0.8999], calibrate.same_verdict) == published
    # without counting prompts that threshold stays
    rest = [c for c in cases if c.metadata["tag"] != "counting"]
    assert calibrate.fit(rest, [0.9999], calibrate.same_verdict).counting_threshold == 0.9


def test_halves_share_no_prompt_and_follow_the_seed(calibrate: ModuleType, tmp_path: Path) -> None:
    cases = calibrate.read_cases(*map(str, write_files(tmp_path)))
    fitted, held_out = calibrate.split(cases, 0)
    assert len(fitted) == len(held_out) == 40
    assert not {case.prompt for case in fitted} & {case.prompt for case in held_out}
    for half in (fitted, held_out):
        assert sum(case.metadata["tag"] == "counting" for case in half) == 20
    assert calibrate.split(cases, 0) == (fitted, held_out) and calibrate.split(cases, 1) != (fitted, held_out)
    with pytest.raises(ValueError, match="has one prompt; calibration needs two"):
        calibrate.split(cases[:2], 0)


def test_overlap_of_counts(calibrate: ModuleType) -> None:
    found = {"cat": [[0, 0, 1, 1, 0.9, 0], [0, 0, 1, 1, 0.5, 0]], "dog": [[0, 0, 1, 1, 0.2, 0]]}
    metadata = {"tag": "colors", "include": [{"class": "cat", "count": 1}]}
    case = calibrate.Case(metadata, found, True, calibrate.Counter({"cat": 1, "bus": 1}))
    # at .3: two cats against one cat and a bus: one of three
    assert calibrate.same_objects(case, GenevalRules()) == pytest.approx(1 / 3)
    assert calibrate.same_objects(case, GenevalRules(score_threshold=0.6)) == pytest.approx(1 / 2)
    nothing = case._replace(counts=calibrate.Counter())
    assert calibrate.same_objects(nothing, GenevalRules(score_threshold=0.95)) == 1


def test_what_does_not_fit_is_one_line(tmp_path: Path, run_script: Callable, capsys: pytest.CaptureFixture) -> None:
    ours, theirs = write_files(tmp_path, prompts=8)

    def error(*more: object, first: Path = ours, second: Path = theirs) -> str:
        assert run_script("eval/calibrate_geneval.py", *flags(tmp_path, first, second, *more)) == 2
        return capsys.readouterr().err

    short, double, torn = tmp_path / "short.jsonl", tmp_path / "double.jsonl", tmp_path / "torn.jsonl"
    lines = theirs.read_text().splitlines(keepends=True)
    short.write_text("".join(lines[1:]))
    double.write_text("".join([*lines, lines[0]]))
    torn.write_text("".join(lines)[:-9])
    assert "short.jsonl lacks 00007/samples/0001.png; run both tools" in error(second=short)
    assert "double.jsonl has 00007/samples/0001.png twice" in error(second=double)
    assert "torn.jsonl:16: not JSON" in error(second=torn)
    torn.write_bytes(b'{"filename": "\xe9"}\n')
    assert "torn.jsonl:1: not UTF-8" in error(second=torn)
    assert "detections.jsonl has a line without `filename`" in error(second=ours)
    assert "nowhere.jsonl is not a file" in error(first=tmp_path / "nowhere.jsonl")
    assert "give 0 <= lowest <= highest" in error("--lowest", 0.9, "--highest", 0.1)
    short.write_text(json.dumps({**json.loads(lines[0]), "details": None}))
    assert "00007/samples/0001.png has no usable metadata, correct and details" in error(second=short)
    short.write_text("".join(ours.read_text().splitlines(keepends=True)[:-1]))
    assert "short.jsonl lacks 00007/samples/0001.png" in error(first=short)
    assert not (tmp_path / "rules.json").exists() and not (tmp_path / "out").exists()


def test_from_pictures_to_rules_and_back(tmp_path: Path, run_script: Callable, capsys: pytest.CaptureFixture) -> None:
    detector, clip = save_tiny_mask2former(tmp_path / "mask2former"), save_tiny_clip(tmp_path / "clip")
    images = tmp_path / "images"
    for number in range(4):
        (images / f"{number:05d}" / "samples").mkdir(parents=True)
        noise(64, 64, seed=number).save(images / f"{number:05d}" / "samples" / "0000.png")
        metadata = {
            "tag": "single_object",
            "include": [{"class": "cat", "count": 1}],
            "prompt": f"a cat, number {number}",
        }
        (images / f"{number:05d}" / "metadata.jsonl").write_text(json.dumps(metadata))
    score = ["--images", images, "--detector", "coco", "--coco_model", detector, "--clip_model", clip]
    score += ["--out", tmp_path / "geneval.json"]
    assert run_script("eval/geneval.py", *score) == 0
    # our own results stand for the original tool's, whose keys they have
    files = flags(tmp_path, images / "detections.jsonl", images / "results.jsonl", "--against", "detections")
    assert run_script("eval/calibrate_geneval.py", *files) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["value"] == 1
    assert json.loads((tmp_path / "rules.json").read_text()) == {"score_threshold": 0.3, "counting_threshold": 0.9}
    assert run_script("eval/geneval.py", "--config", tmp_path / "rules.json", *score) == 0
