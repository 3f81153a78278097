"""eval/learning_curve.py: runs one behind the other, finished or not, scores beside them, and what it refuses."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SCRIPT = "eval/learning_curve.py"


def write_run(folder: Path, start: int, count: int, finished: bool) -> Path:
    """A run whose pictures, counted from `start`, follow a law without floor; two pictures a second."""
    place = folder if finished else folder / "checkpoint-10"
    place.mkdir(parents=True)
    log: list[dict[str, Any]] = [
        {"images_seen": seen, "image_loss": 40 * (start + seen) ** -0.5, "images_per_second": 2.0}
        for seen in range(50, count + 1, 50)
    ]
    (place / "trainer_state.json").write_text(json.dumps({"log_history": [*log, {"eval_loss": 3.0}]}))
    return folder


def write_score(path: Path, value: float) -> Path:
    record = {"metric": "geneval", "value": value, "n": 240, "stderr": 0.02, "model": "out/a", "config": {}}
    path.write_text(json.dumps(record))
    return path


@pytest.fixture
def curve(run_script: Callable[..., int], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def run(*arguments: object) -> dict[str, Any]:
        assert run_script(SCRIPT, "--out", tmp_path / "curve.json", *arguments) == 0
        assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
        return json.loads((tmp_path / "curve.json").read_text())

    return run


def test_runs_go_on_from_each_other(curve: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", 0, 1000, True), write_run(tmp_path / "b", 1000, 600, False)]
    found = curve("--runs", *runs, "--goal", 0.5)
    assert found["images_seen"] == 1600 and found["images_per_second"] == 2.0
    law = found["law"]
    assert law["exponent"] == pytest.approx(0.5, rel=0.02) and law["points"][-1] == [1600, pytest.approx(1.0)]
    assert law["images_at_goal"] == pytest.approx(6400, rel=0.05)
    assert law["hours_to_goal"] == pytest.approx((law["images_at_goal"] - 1600) / 2 / 3600)


def test_a_decay_can_be_left_out(curve: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", 0, 1000, True)
    state = json.loads((run / "trainer_state.json").read_text())
    state["log_history"] += [{"images_seen": 1100, "image_loss": 0.1, "images_per_second": 2.0}]
    (run / "trainer_state.json").write_text(json.dumps(state))
    assert curve("--runs", run, "--until", 1000)["law"]["exponent"] == pytest.approx(0.5, rel=0.02)
    assert curve("--runs", run)["law"]["exponent"] > 0.55


def test_scores_have_their_own_law(curve: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    run = write_run(tmp_path / "a", 0, 1000, True)
    scores = [f"{n}={write_score(tmp_path / f'{n}.json', v)}" for n, v in ((1000, 0.6), (250, 0.2))]
    found = curve("--runs", run, "--scores", *scores)["geneval"]
    assert [point[0] for point in found["points"]] == [250, 1000]
    assert found["exponent"] == pytest.approx(0.5) and found["goal"] == 0.9
    assert found["images_at_goal"] == pytest.approx(16_000)
    assert "exponent" not in curve("--runs", run, "--scores", scores[0])["geneval"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--runs", "/nowhere"], "/nowhere has no trainer_state.json"),
        (["--scores", f"10={__file__}"], "test_learning_curve.py is not JSON"),
        (["--scores", "many=x.json"], "many=x.json: give PICTURES=RESULT.json"),
        (["--out", "curve.txt"], "end it with .json"),
        (["--skip", "1.5"], "too few for a power law"),
    ],
)
def test_bad_input_is_one_line(
    run_script: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: list[str], words: str
) -> None:
    run = write_run(tmp_path / "a", 0, 1000, True)
    assert run_script(SCRIPT, "--runs", run, "--out", tmp_path / "c.json", *changes) == 2
    assert words in capsys.readouterr().err
