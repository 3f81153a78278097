"""unified/steps.py: what a job does once, what it says of it, and what its trainings have logged."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from unified import steps
from unified.steps import Job, fine_tune, render_and_encode


class World:
    """Runs nothing; `status` is what commands end with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: list[list[str]] = []
        self.status = 0
        monkeypatch.setattr(steps, "subprocess", SimpleNamespace(run=self.run))

    def run(self, command: list[str], **_: object) -> SimpleNamespace:
        self.commands.append(command[1:])
        return SimpleNamespace(returncode=self.status)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


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
    job, world.status = Job(tmp_path), 3
    with pytest.raises(SystemExit) as stop:
        job.run("train", ["x.py"])
    world.status = 0
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
    render, encode, train = world.commands
    assert render[-2:] == ["--count", "5"] and encode[-1] == str(tmp_path / "scenes_train/00000.parquet")
    assert encode[encode.index("--out") + 1] == str(rows) and out == tmp_path / "tuned"
    files = train.index("--train_files")
    assert train[files : files + 3] == ["--train_files", str(rows), "text.jsonl"] and "--resume" in train
