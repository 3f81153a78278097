"""The JSON an evaluation leaves: complete, atomic, and it knows the code it came from."""

import ast
import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from unified.files import results
from unified.files.results import code_version, prompts_digest, share_stderr, write_result

ROOT = Path(__file__).parents[2]
SHARED: dict[str, Any] = {"stderr": 0.1, "tokenizer": "feed", "prompts_sha256": None, "seed": 0, "seconds": 1.26}


def test_a_result_is_written_as_it_is_returned(tmp_path: Path) -> None:
    path = tmp_path / "new" / "score.json"
    config, per_task = {"guidance_scale": 2.0}, {"colors": 0.5}
    record = write_result(path, "geneval_overall", 0.5, 8, "out/model", config, **SHARED, per_task=per_task)
    assert json.loads(path.read_text()) == record
    names = "metric value n stderr model tokenizer config prompts_sha256 seed commit versions hardware seconds"
    assert list(record) == [*names.split(), "per_task"]
    assert (record["tokenizer"], record["prompts_sha256"], record["seconds"]) == ("feed", None, 1.3)
    assert record["versions"]["torch"] == torch.__version__
    assert [file.name for file in path.parent.iterdir()] == ["score.json"]


def test_without_a_path_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert write_result(None, "psnr", 30.0, 1, "vq", {}, **SHARED)["value"] == 30.0
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", SHARED)
def test_nobody_can_forget_what_all_results_say(name: str) -> None:
    with pytest.raises(TypeError, match=name):
        write_result(None, "psnr", 30.0, 1, "vq", {}, **{key: SHARED[key] for key in SHARED if key != name})


def test_all_results_of_scripts_are_written_here() -> None:
    for path in (ROOT / "eval").glob("*.py"):
        keys = [node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)]
        assert "metric" not in keys, f"{path}: a record of its own; let write_result make it"


def test_digest_and_error_are_what_they_say(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    digest = hashlib.sha256((tmp_path / "prompts.jsonl").read_bytes()).hexdigest()
    assert prompts_digest(['{"prompt": "a"}', '{"prompt": "b"}']) == digest
    assert share_stderr(0.5, 100) == 0.05 and share_stderr(1.0, 3) == 0


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
