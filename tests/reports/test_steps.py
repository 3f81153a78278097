"""unified/reports/steps.py: what a job does once, what it says of it, and what its trainings have logged."""

import json
from pathlib import Path

import pytest
from fake_steps import World

from unified.reports.steps import Job, fine_tune, render_and_encode


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()
    made.take_over(monkeypatch)
    return made


def test_a_step_is_run_once_and_recorded_as_it_can_be_typed(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = Job(tmp_path)
    assert job.steps() == []
    for _ in range(2):
        job.run("say it", ["x.py", "--words", "a red car"])
    assert len(world.commands) == 1
    assert capsys.readouterr().out == "[say it] x.py --words 'a red car'\n[say it] done before\n"
    (entry,) = job.steps()
    assert (entry["step"], entry["command"]) == ("say it", "python x.py --words 'a red car'")
    job.run("say it", ["x.py"], again=True)
    assert len(world.commands) == 2


def test_a_step_that_was_stopped_is_not_done_and_its_time_counts(world: World, tmp_path: Path) -> None:
    job, world.fails_at = Job(tmp_path), "x"
    with pytest.raises(SystemExit) as stop:
        job.run("train", ["x.py"])
    world.fails_at = ""
    job.run("train", ["x.py"])
    assert stop.value.code == 3 and [entry["step"] for entry in job.steps()] == ["train", "train"]


def test_trainings_follow_each_other_in_one_log(tmp_path: Path) -> None:
    logs = {"1_a": [{"images_seen": 5.0}, {"images_seen": 10.0}], "2_b/checkpoint-7": [{"images_seen": 3.0}]}
    for folder, log in logs.items():
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    (tmp_path / "0_other").mkdir()
    assert [entry["images_seen"] for entry in Job(tmp_path).log()] == [5, 10, 13]


def test_scenes_are_rendered_encoded_and_trained_on(world: World, tmp_path: Path) -> None:
    job = Job(tmp_path)
    (tmp_path / "scenes_train").mkdir()
    (tmp_path / "scenes_train/00000.parquet").touch()
    rows = render_and_encode(job, "train", "VQ", ["--count", "5"])
    out = fine_tune(job, "tune", "run.yaml", "MODEL", tmp_path / "tuned", [str(rows), "text.jsonl"], ["--seed", "1"])
    render, encode, train = (words for *_, words in world.commands)
    assert render[-2:] == ["--count", "5"] and encode[-1] == str(tmp_path / "scenes_train/00000.parquet")
    assert encode[encode.index("--out") + 1] == str(rows) and out == tmp_path / "tuned"
    files = train.index("--train_files")
    assert train[files : files + 3] == ["--train_files", str(rows), "text.jsonl"] and "--resume" in train
