"""Processes of a run have the same settings where they step, evaluate and save together."""

import json
from pathlib import Path
from typing import Any

import pytest

from unified.training import run_record
from unified.training.arguments import DataArguments, DpoArguments, UnifiedTrainingArguments
from unified.training.run_record import OF_A_PROCESS, RunRecord, begin

EVALUATED = {"eval_strategy": "steps", "eval_steps": 7}


def record(tmp_path: Path, kind: Any = UnifiedTrainingArguments, eval_rows: str = "", **given: Any) -> RunRecord:
    settings = {"output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", **EVALUATED, **given}
    return RunRecord.of([kind(**settings), DataArguments()], "rows", "base", {}, eval_rows)


@pytest.mark.parametrize(
    ("kind", "given"),
    [
        (UnifiedTrainingArguments, {"max_steps": 7}),
        (UnifiedTrainingArguments, {"num_train_epochs": 7.0}),
        (UnifiedTrainingArguments, {"max_minutes": 7.0}),
        (UnifiedTrainingArguments, {"eval_steps": 9}),
        (UnifiedTrainingArguments, {"eval_strategy": "epoch", "eval_steps": None}),
        (UnifiedTrainingArguments, {"eval_on_start": True}),
        (UnifiedTrainingArguments, {"eval_rows": "others"}),
        (UnifiedTrainingArguments, {"save_steps": 3}),
        (UnifiedTrainingArguments, {"logging_steps": 3}),
        (UnifiedTrainingArguments, {"sample_prompts": ["a cat"]}),
        (UnifiedTrainingArguments, {"allow_changed": ["seed"]}),
        (UnifiedTrainingArguments, {"learning_rate": 1.0}),
        (DpoArguments, {"kl_pairs": 3}),
    ],
)
def test_processes_that_would_part_are_refused(
    kind: type, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first, other = record(tmp_path, kind), record(tmp_path, kind, **given)
    monkeypatch.setattr(run_record, "gather_object", lambda mine: [first.shared, *mine])
    with pytest.raises(
        ValueError, match=f"^process 1 has ({'|'.join(given).replace('_rows', '.rows')}) .* and process 0 "
    ):
        begin(other, tmp_path, None, [])


def test_what_lies_elsewhere_on_another_machine_may_differ(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    own = {"output_dir": "elsewhere", "dataloader_num_workers": 3, "disable_tqdm": True, "run_name": "other"}
    assert own.keys() <= OF_A_PROCESS
    first, other = record(tmp_path), record(tmp_path, **own)
    monkeypatch.setattr(run_record, "gather_object", lambda mine: [first.shared, *mine])
    other.agree()


def test_a_record_keeps_what_it_did(tmp_path: Path) -> None:
    one = record(tmp_path)
    one.write(tmp_path)
    kept = json.loads((tmp_path / "run.json").read_text())
    assert kept.keys() == {"made_of", "length", "changes", "named", "steps", "finished"}
    assert run_record.Recorder(one).state()["attributes"]["record"].keys() == kept.keys() - {"finished"}
