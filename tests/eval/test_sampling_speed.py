"""eval/sampling_speed.py on a toy: every way is timed, and the result is one like all others."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from unified import UnifiedConfig

SCRIPT = "eval/sampling_speed.py"


def test_every_way_is_timed(
    run_script: Callable[..., int], toy_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", toy_checkpoint, "--batch_sizes", 1, 2, "--repeats", 1, "--out", tmp_path / "speed.json"]
    assert run_script(SCRIPT, *flags) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "speed.json").read_text())
    assert (result["metric"], result["n"], result["model"]) == ("seconds_per_image", 1, str(toy_checkpoint))
    assert result["value"] == result["batch_1"]["scales"] and result["codes"] == 5
    assert set(result["batch_2"]) == {"scales", "scales_guided", "raster"} and min(result["batch_2"].values()) > 0
    assert result["tokenizer"] == UnifiedConfig.from_pretrained(toy_checkpoint).vq_fingerprint


@pytest.mark.parametrize("flag", ["--repeats", "--batch_sizes"])
def test_nothing_to_time_is_refused(
    run_script: Callable[..., int], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script(SCRIPT, flag, 0) == 2
    assert f"{flag} 0; give at least 1" in capsys.readouterr().err
