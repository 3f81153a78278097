"""eval/serving_load.py on a toy: every number of clients is served, refusals are counted, nothing is lost."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = "eval/serving_load.py"


@pytest.mark.parametrize("answers", ["pictures", "words"])
def test_clients_are_served(
    run_script: Callable[..., int],
    drawing_checkpoint: Path,
    tmp_path: Path,
    answers: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--model", drawing_checkpoint, "--clients", 1, 5, "--seconds", 0.5, "--max_batch", 1, "--max_queue", 0]
    flags += ["--answers", answers]
    assert run_script(SCRIPT, *flags, "--out", tmp_path / "load.json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "load.json").read_text())
    assert result["value"] == result["clients_5"][f"{answers}_per_second"] > 0
    for name in ("clients_1", "clients_5", "one_at_a_time"):
        load = result[name]
        assert load["answered"] > 0 == load["failed"]
        assert 0 < load["seconds_to_first_partial"]["p50"] <= load["seconds_to_whole"]["p99"]


def test_no_clients_are_refused(run_script: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(SCRIPT, "--clients", 0) == 2
    assert "--clients [0]" in capsys.readouterr().err
