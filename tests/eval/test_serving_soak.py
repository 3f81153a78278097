"""eval/serving_soak.py on a toy: all phases run against a real process, nothing fails, and failures are noticed."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import load_script

SCRIPT = "eval/serving_soak.py"


def test_a_server_survives(
    run_script: Callable[..., int], toy_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--model", toy_checkpoint, "--killed_clients", 12, "--overload_seconds", 2, "--killed_servers", 2]
    flags += ["--max_batch", 1, "--max_queue", 1, "--device", "cpu", "--precision", "float32", "--threads", 1]
    assert run_script(SCRIPT, *flags, "--out", tmp_path / "soak.json") == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "soak.json").read_text())
    assert (result["value"], result["failures"]) == (0, [])
    load = result["overload"]
    assert load["clients"] == 4 and load["pictures"] > 0 and load["refused"] > 0 and load["waiting"] <= 2
    assert result["killed_clients"] == {"clients": 12} and result["killed_servers"] == {"servers": 2}
    times = [seconds for seconds, _ in result["memory_mb"]]
    assert len(times) > 5 and times == sorted(times) and min(size for _, size in result["memory_mb"]) > 50


def test_failures_are_noted() -> None:
    soak = object.__new__(load_script(SCRIPT).Soak)
    soak.failures = []
    soak.check(True, "right")
    soak.check(False, "wrong")
    assert soak.failures == ["wrong"]
