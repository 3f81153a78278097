"""eval/machine.py on a toy: what its JSON holds, and what it does with processes that fail."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import load_script

PATH = "eval/machine.py"


def test_a_machine_is_described_in_a_file_of_its_name(
    run_script: Callable[..., int],
    toy_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(load_script(PATH).LOWERED, "ATEN_CPU_CAPABILITY", ("default",))  # one process instead of three
    flags = ["--model", toy_checkpoint, "--out", tmp_path, "--repeats", 2, "--minutes", 0, "--busy", 0, 1]
    assert run_script(PATH, *flags, "--variables", "ATEN_CPU_CAPABILITY") == 0
    (path,) = tmp_path.glob("*.json")
    told = json.loads(path.read_text(encoding="utf-8"))
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == told
    assert told["metric"] == "float32_gflops" and told["value"] == told["products"]["float32"] > 0
    assert told["products"]["choices"]["training"].startswith("hardware: ")
    lowered = told["emulated"]
    assert lowered.keys() == {"ATEN_CPU_CAPABILITY=default"}
    assert lowered["ATEN_CPU_CAPABILITY=default"]["capability"] == "DEFAULT"
    beside = told["beside"]
    assert beside.pop("left_out") == 18  # the second repeat: no time was given
    assert beside.keys() == {"drawing", "answer", "training_step"}
    for task in beside.values():
        assert task.keys() == {"system", "brief", "passive"}
        assert all(way.keys() == {"0 busy", "1 busy"} and min(way.values()) > 0 for way in task.values())


def test_a_process_that_fails_is_an_entry_and_not_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script(PATH)
    monkeypatch.setattr(script, "PRODUCTS", "raise SystemExit('no such instruction')")
    found = script.emulated(script.MachineArguments(variables=["ATEN_CPU_CAPABILITY"]), {"float32": 1.0})
    assert all(entry == {"error": "no such instruction", "fell": []} for entry in found.values()) and len(found) == 3
    monkeypatch.setattr(script, "PRODUCTS", "import time; time.sleep(60)")
    monkeypatch.setattr(script, "PRODUCTS_SECONDS", 0.1)
    assert script.products() == {"error": "took more than 0.1 s"}


def test_only_slower_products_have_fallen(monkeypatch: pytest.MonkeyPatch) -> None:
    script = load_script(PATH)
    monkeypatch.setattr(script, "products", lambda **variables: {"float32": 50.0, "bf16": 99.0, "fp16": 10.0})
    full = {"float32": 100.0, "bf16": 100.0, "fp16": 10.0}
    found = script.emulated(script.MachineArguments(variables=["MKL_ENABLE_INSTRUCTIONS"]), full)
    assert {tuple(entry["fell"]) for entry in found.values()} == {("float32",)}


def test_a_worker_that_ends_is_said_in_one_line(tmp_path: Path) -> None:
    script = load_script(PATH)
    worker = script.Worker(script.MachineArguments(model=str(tmp_path / "none")), "passive")
    with pytest.raises(ValueError, match="drawing ended its process with 2; try .*--serve True"):
        worker.seconds("drawing")
    worker.close()


@pytest.mark.parametrize(("flag", "known"), [("tasks", "drawing, answer"), ("variables", "ONEDNN_MAX_CPU_ISA")])
def test_unknown_words_are_refused(run_script: Callable[..., int], capfd, flag: str, known: str) -> None:
    assert run_script(PATH, f"--{flag}", "x") == 2
    assert known in capfd.readouterr().err
