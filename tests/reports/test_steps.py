"""unified/reports/steps.py: what a job does once, what it says of it, what it takes for done; commands as steps."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_steps import World

from unified.reports.commands import launch_words, run_step
from unified.reports.steps import Step, Steps


def nothing() -> None:
    return None


def test_a_step_is_done_once_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done: list[str] = []
    steps = Steps(tmp_path, "make it")
    assert steps.record() == []
    for _ in range(2):
        steps.run([Step("say it", lambda: done.append("said"))])
    assert done == ["said"]
    assert capsys.readouterr().out == "[say it]\n[say it] done before\n"
    (entry,) = steps.record()
    assert (entry["step"], entry["cut"]) == ("say it", None) and entry["seconds"] >= 0
    steps.run([Step("say it", lambda: done.append("again"), again=True)])
    assert done == ["said", "again"]
    steps.forget("say it")
    assert steps.record() == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_step_that_was_stopped_is_not_done_and_its_time_counts(
    tmp_path: Path, error: type[BaseException], capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    steps = Steps(tmp_path, "make it")
    with pytest.raises(error):
        steps.run([Step("first", nothing), Step("train", fail), Step("last", nothing)])
    assert steps.stopped == "train" and steps.to_come == ["train", "last"]
    assert re.search(r"\[train\] cut after \d+ s: stopped; to go on: make it", capsys.readouterr().out)
    again = Steps(tmp_path, "make it")
    again.run([Step("first", nothing), Step("train", nothing), Step("last", nothing)])
    assert [entry["step"] for entry in again.record()] == ["first", "train", "train", "last"]
    assert again.stopped is None and again.to_come == [] and again.done() == {"first", "train", "last"}


def test_a_step_that_was_cut_is_not_done_and_those_behind_it_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def steps_of(train: Callable[[], str | None]) -> list[Step]:
        return [Step("train", train), Step("last", nothing)]

    steps = Steps(tmp_path, "make it")
    steps.run(steps_of(lambda: "69 of 340 steps"))
    assert steps.done() == {"last"} and steps.last()["train"]["cut"] == "69 of 340 steps"
    assert re.search(r"\[train\] cut after \d+ s: 69 of 340 steps; to go on: make it", capsys.readouterr().out)
    steps.run(steps_of(nothing))
    assert steps.done() == {"train", "last"} and len(steps.record()) == 3


def test_a_page_can_say_what_is_still_to_come(tmp_path: Path) -> None:
    seen: list[list[str]] = []
    steps = Steps(tmp_path, "make it", lambda: seen.append(steps.to_come))
    steps.run([Step("a", nothing), Step("b", nothing)])
    steps.run([Step("a", nothing), Step("b", nothing), Step("c", nothing)])
    assert seen == [["a", "b"], ["b"], [], ["c"], []]


def test_a_command_is_run_once_and_a_failure_ends_the_job(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World()
    world.take_over(monkeypatch)
    for _ in range(2):
        run_step(tmp_path / "done/say", "say it", ["x.py", "--words", "a red car"])
    assert len(world.commands) == 1
    assert capsys.readouterr().out == "[say it] x.py --words 'a red car'\n"
    assert run_step(tmp_path / "done/say", "say it", ["x.py"], again=True)
    world.fails_at = "x"
    with pytest.raises(SystemExit) as stop:
        run_step(tmp_path / "done/fail", "fail", ["x.py"])
    assert stop.value.code == 3 and not (tmp_path / "done/fail").exists()


def test_a_training_is_launched_on_what_there_is_unless_a_file_says() -> None:
    words = ["-m", "accelerate.commands.launch"]
    assert launch_words("recipes/sft.py") == [*words, "recipes/sft.py"]
    assert launch_words("recipes/sft.py", "a.yaml") == [*words, "--config_file", "a.yaml", "recipes/sft.py"]
