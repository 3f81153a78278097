"""What goes to the hub and comes back: a hub of one folder in the cache's own layout, which takes commits."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import pytest
import torch
from commands import error_of, logits, run
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import LocalTokenNotFoundError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoProcessor, AutoTokenizer

from unified import UnifiedConfig, UnifiedForCausalLM, UnifiedProcessor
from unified.checkpoints.loading import load
from unified.files.hub import upload

Names = list[str]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Names]:
    """`hub(name, revision)`: what lies there. Uploads are new snapshots of an offline cache."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)

    def repository(name: str) -> Path:
        return cache / f"models--{name.replace('/', '--')}"

    def commit(name: str, files: dict[str, bytes], revision: str) -> Any:
        place, number = repository(name), len(list((repository(name) / "snapshots").glob("*")))
        snapshot = place / "snapshots" / f"{number:040x}"
        for path, content in files.items():
            (snapshot / path).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / path).write_bytes(content)
        (place / "refs").mkdir(exist_ok=True)
        (place / "refs" / revision).write_text(snapshot.name)
        return SimpleNamespace(commit_url=f"https://hub/{name}/commit/{snapshot.name}")

    def create_commit(self: HfApi, repo_id: str, operations: list[CommitOperationAdd], **kwargs: Any) -> Any:
        files = {}
        for operation in operations:
            with operation.as_file() as file:
                files[operation.path_in_repo] = file.read()
        return commit(repo_id, files, kwargs.get("revision") or "main")

    def upload_folder(self: HfApi, repo_id: str, folder_path: str) -> Any:
        paths = [path for path in Path(folder_path).rglob("*") if path.is_file()]
        files = {path.relative_to(folder_path).as_posix(): path.read_bytes() for path in paths}
        return commit(repo_id, files, "main")

    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo_id, **kwargs: SimpleNamespace(repo_id=repo_id))
    monkeypatch.setattr(HfApi, "create_commit", create_commit)
    monkeypatch.setattr(HfApi, "upload_folder", upload_folder)

    def listed(name: str, revision: str = "main") -> Names:
        snapshot = repository(name) / "snapshots" / (repository(name) / "refs" / revision).read_text()
        return sorted(path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())

    listed.commit = commit  # type: ignore[attr-defined]
    return listed


def test_hfs_push_carries_all_that_auto_classes_need(hub: Callable[..., Names], toy_checkpoint: Path) -> None:
    model, processor = load(toy_checkpoint, "cpu")
    model.push_to_hub("me/model")
    assert {"config.json", "model.safetensors", "unified_checkpoint.py"} <= {*hub("me/model")}
    model.config.push_to_hub("me/config")
    assert {"config.json", "unified_checkpoint.py"} <= {*hub("me/config")}
    processor.push_to_hub("me/processor")
    assert {"processor_config.json", "tokenizer.json"} <= {*hub("me/processor")}
    again = UnifiedForCausalLM.from_pretrained("me/model")
    assert torch.equal(logits(again.eval(), processor), logits(model, processor))


def files_of(folder: Path, under: str = "") -> dict[str, bytes]:
    return {f"{under}{path.name}": path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_a_subfolder_and_a_revision(hub: Callable[..., Names], toy_checkpoint: Path) -> None:
    """By every class, as transformers' docs show it."""
    hub.commit("me/many", files_of(toy_checkpoint, "one/"), "v1")  # type: ignore[attr-defined]
    hub.commit("me/many", {"README.md": b"later"}, "main")  # type: ignore[attr-defined]
    model, processor = load(toy_checkpoint, "cpu")
    where = {"subfolder": "one", "revision": "v1"}
    for kind in (UnifiedConfig, AutoConfig):
        assert kind.from_pretrained("me/many", **where).vq_fingerprint == model.config.vq_fingerprint
    for kind in (UnifiedForCausalLM, AutoModelForCausalLM):
        found = kind.from_pretrained("me/many", **where).eval()
        assert torch.equal(logits(found, processor), logits(model, processor))
    AutoModel.from_pretrained("me/many", **where)
    for kind in (UnifiedProcessor, AutoProcessor):
        found = kind.from_pretrained("me/many", **where)
        assert isinstance(found, UnifiedProcessor) and found.vocabulary == processor.vocabulary
        assert found.chat_template == processor.chat_template
    assert len(AutoTokenizer.from_pretrained("me/many", **where)) == len(processor.tokenizer)
    with pytest.raises(OSError, match="couldn't find them"):
        UnifiedForCausalLM.from_pretrained("me/many", subfolder="one")  # not in the revision main


@pytest.mark.parametrize("model", ["checkpoint", "adapter"])
def test_publish_pushes_what_others_open_by_name(
    model: str, hub: Callable[..., Names], toy_checkpoint: Path, image_adapter: Path
) -> None:
    words = [
        "publish",
        "--model",
        toy_checkpoint,
        "--out",
        "base",
        "--name",
        "me/base",
        "--dtype",
        "float32",
        "--push",
    ]
    assert "https://hub/me/base/commit/" in run(*words).stdout
    assert {"README.md", "model.safetensors", "processor_config.json", "unified_checkpoint.py"} <= {*hub("me/base")}
    found, processor = load("me/base", "cpu")
    assert torch.equal(logits(found, processor), logits(*load(toy_checkpoint, "cpu")))
    if model == "adapter":
        words = ["publish", "--model", image_adapter, "--out", "mine", "--base", "me/base", "--name", "me/mine"]
        assert run(*words, "--dtype", "float32", "--push").exit_code == 0
        expected = logits(*load(image_adapter, "cpu"))
        assert torch.equal(logits(*load("me/mine", "cpu")), expected)


def test_what_cannot_be_pushed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_checkpoint: Path
) -> None:
    words = ["publish", "--model", toy_checkpoint, "--out", tmp_path / "x", "--push"]
    assert "--push needs a name of the hub" in error_of(*words)

    def refuse(self: HfApi, *args: Any, **kwargs: Any) -> None:
        raise LocalTokenNotFoundError("Token is required, but no token found.")

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    with pytest.raises(ValueError, match="written but not on the hub .*: hf upload me/x") as error:
        upload(tmp_path, "me/x")
    assert "\n" not in str(error.value)
