"""The JSON an evaluation leaves: complete, atomic, and it knows the code it came from."""

import json
import subprocess
from pathlib import Path

import pytest
import torch

from unified import results
from unified.results import code_version, write_result


def test_a_result_is_written_as_it_is_returned(tmp_path: Path) -> None:
    path = tmp_path / "new" / "score.json"
    record = write_result(path, "geneval_overall", 0.5, 8, "out/model", {"guidance": 2.0}, per_task={"colors": 0.5})
    assert json.loads(path.read_text()) == record
    assert list(record) == ["metric", "value", "n", "model", "config", "commit", "versions", "per_task"]
    assert record["versions"]["torch"] == torch.__version__
    assert [file.name for file in path.parent.iterdir()] == ["score.json"]


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert write_result(None, "psnr", 30.0, 1, "vq", {})["value"] == 30.0
    assert not list(tmp_path.iterdir())


def test_the_commit_is_git_s_own_and_nothing_outside_of_a_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results, "__file__", str(tmp_path / "results.py"))
    assert code_version() is None
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout
    version = code_version()
    assert version is not None and len(version) >= 12 and head.startswith(version)
