"""eval/serving_equality.py on a toy: equal pictures are, what differs is traced to its margin, a cut run goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load_script
from torch import Tensor

from unified.checkpoints.loading import load

SCRIPT = "eval/serving_equality.py"


def test_pictures_are_compared_and_a_cut_run_goes_on(
    run_script: Callable[..., int],
    drawing_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    script, records = load_script(SCRIPT), tmp_path / "out" / "records.jsonl"
    flags = ["--model", drawing_checkpoint, "--chunk", 5, "--max_batch", 3, "--records", records]
    assert run_script(SCRIPT, *flags, "--count", 7, "--out", tmp_path / "r.json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "r.json").read_text())
    assert (result["metric"], result["value"], result["n"]) == ("pictures_equal", 1.0, 7)
    assert result["codes_compared"] == 7 * 5 and result["largest_margin"] is None
    lines = records.read_text().splitlines()
    assert len(lines) == 8 and [json.loads(line)["number"] for line in lines[1:]] == list(range(7))

    drawn: list[int] = []
    alone = script.alone
    monkeypatch.setattr(script, "alone", lambda m, p, picture: drawn.append(picture.number) or alone(m, p, picture))
    assert run_script(SCRIPT, *flags, "--count", 10) == 0
    assert drawn == [7, 8, 9] and json.loads(capsys.readouterr().out)["n"] == 10
    assert run_script(SCRIPT, *flags, "--count", 10, "--seed", 1) == 2
    assert "give another file" in capsys.readouterr().err


def test_a_code_that_differs_is_traced_to_its_margin(
    drawing_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores made again choose the codes that were drawn; another code's margin is what it falls behind by."""
    script: Any = load_script(SCRIPT)
    model, processor = load(drawing_checkpoint, device="cpu")
    for number, sampling in enumerate(script.SETTINGS):
        picture = script.Picture(number, 10 + number, "a photo of a red cat", sampling)
        codes: Tensor = script.alone(model, processor, picture)
        for scale, (start, stop) in enumerate(((0, 1), (1, 5))):
            scores = script.sampled_scores(model, processor, picture, codes, scale)
            assert torch.equal(scores.argmax(-1), codes[start:stop])
            best, second = scores[-1].topk(2).values
            other = codes.clone()
            other[stop - 1] = scores[-1].topk(2).indices[1]
            record = script.compared(model, processor, picture, codes, other)
            assert (record["scale"], record["compared"], record["differing"]) == (scale, stop, 1)
            assert record["margins"] == [pytest.approx(float(best - second), abs=1e-5)]


def test_no_pictures_are_refused(run_script: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(SCRIPT, "--count", 0) == 2
    assert "--count 0; give at least 1" in capsys.readouterr().err
