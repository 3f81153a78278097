"""A folder is one launch's: who looks and who writes take turns, and a lock is its owner's to remove."""

import json
import sys
import threading
from pathlib import Path

import pytest

from unified.training.run_folder import check_unused, checkpoints_of, give_back, holder_of, in_turn, locked, take


def test_one_looks_and_writes_at_a_time(tmp_path: Path) -> None:
    lock = tmp_path / "new/running.json"
    other = threading.Thread(target=take, args=(lock, True))
    with in_turn(lock.parent):
        other.start()
        other.join(0.2)
        assert other.is_alive() and not lock.exists()
    other.join(10)
    assert not other.is_alive() and lock.exists()
    give_back(lock)
    assert not lock.exists()


def test_without_locks_of_folders_a_run_is_claimed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.platform", "win32")
    monkeypatch.setitem(sys.modules, "fcntl", None)
    take(tmp_path / "running.json", True)
    assert (tmp_path / "running.json").exists()


def test_a_lock_of_another_process_stays(tmp_path: Path) -> None:
    with locked(tmp_path):
        lock = tmp_path / "running.json"
        mine = json.loads(lock.read_text())
        lock.write_text(json.dumps(mine | {"pid": 1}))
        assert holder_of(lock) is None  # another process by that number
    assert json.loads(lock.read_text())["pid"] == 1
    give_back(tmp_path / "nowhere/running.json")


def test_checkpoints_are_those_of_a_step(tmp_path: Path) -> None:
    for name in ("checkpoint-10", "checkpoint-9", "checkpoint-best", "checkpoint-9-keep", "checkpoint-", "tmp-11"):
        (tmp_path / name).mkdir()
    (tmp_path / "checkpoint-9/trainer_state.json").touch()
    assert [path.name for path in checkpoints_of(tmp_path)] == ["checkpoint-9", "checkpoint-10"]
    assert [path.name for path in checkpoints_of(tmp_path, "trainer_state.json")] == ["checkpoint-9"]
    with pytest.raises(ValueError, match="add --resume True"):
        check_unused(tmp_path)
