"""eval/dpo_memory.py on a toy: both ways compute the same loss, each in its own process."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import load_script
from tolerances import near

SCRIPT = "eval/dpo_memory.py"


def test_both_ways_are_one_loss(
    run_script: Callable[..., int], toy_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", toy_checkpoint, "--pairs", 3, "--bf16", "False", "--out", tmp_path / "memory.json"]
    assert run_script(SCRIPT, *flags) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result == json.loads((tmp_path / "memory.json").read_text())
    assert result["losses"][0] == near(result["losses"][1], 1500)
    assert abs(result["losses"][0] - 0.6931) > 1e-4  # not the same pictures twice
    assert result["rows"] == 6 and result["logits_alone"] > 0 and result["config"]["pairs"] == 3
    assert min(result["value"], result["logits"]) >= 0


def test_no_pairs_are_refused(run_script: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert run_script(SCRIPT, "--pairs", 0) == 2
    assert "pairs" in capsys.readouterr().err


def test_a_system_that_does_not_tell_its_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script(SCRIPT)
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ValueError, match="memory of cpu on win32 is not known here; run it on Linux or with CUDA"):
        script.measure(script.MemoryArguments(model="."), "fused")
