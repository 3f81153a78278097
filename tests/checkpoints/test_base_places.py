"""An adapter finds its base from any working folder: where it says, as the hub names it, or where it is told."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from commands import logits, run
from conftest import ROOT, load_script

from unified.checkpoints.adapters import base_checkpoint, read_base_record
from unified.checkpoints.load_options import LoadOptions
from unified.checkpoints.loading import load, weights_digest
from unified.checkpoints.publishing import publish

SCRIPTS = [path for folder in ("eval", "data_prep", "recipes") for path in sorted((ROOT / folder).glob("[a-z]*.py"))]


@pytest.fixture
def world(
    toy_checkpoint: Path, toy_rows: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A working folder with out/base, and out/mine, an adapter of it that the recipe trained by relative paths."""
    rows = toy_rows("dd")
    place = tmp_path / "work"
    shutil.copytree(toy_checkpoint, place / "out/base")
    monkeypatch.chdir(place)
    train(monkeypatch, "--model", "out/base", "--train_files", rows, "--output_dir", "out/mine", "--save_steps", 1)
    return place


def train(monkeypatch: pytest.MonkeyPatch, *flags: object) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    command = ["sft.py", "--config", ROOT / "recipes/configs/tiny.yaml", "--max_steps", 1, "--tuning", "lora", *flags]
    command += ["--eval_strategy", "no", "--learning_rate", 0.05]
    monkeypatch.setattr(sys, "argv", list(map(str, command)))
    load_script("recipes/sft.py").main()


def drawn(model: Path) -> torch.Tensor:
    return logits(*load(model, "cpu"))


def test_from_every_folder(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Adapters of a training, its checkpoints, and what is published of them; moved together, too."""
    publish("out/mine", "shared", torch.float32)
    expected = drawn(Path("out/mine"))
    adapters = ["out/mine", "out/mine/checkpoint-1", "shared"]
    assert json.loads(Path("out/mine/adapter_config.json").read_text())["base_model_name_or_path"] == "out/base"
    (tmp_path / "elsewhere").mkdir()
    for folder in (tmp_path / "elsewhere", world / "out", Path("/")):
        monkeypatch.chdir(folder)
        for adapter in adapters:
            assert torch.equal(drawn(world / adapter), expected), (folder, adapter)
    moved = world.rename(tmp_path / "moved")
    for adapter in adapters:
        assert torch.equal(drawn(moved / adapter), expected)
    monkeypatch.chdir(tmp_path / "elsewhere")
    out = tmp_path / "x.png"
    assert run("draw", "a cat", "--model", moved / "shared", "--out", out).exit_code == 0 and out.is_file()


def test_trained_from_another_folder(
    world: Path, toy_rows: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An output folder far from its base, which the current folder alone would not tell."""
    far = tmp_path / "far/away"
    rows = toy_rows("dd")
    train(monkeypatch, "--model", "out/base", "--train_files", rows, "--output_dir", far / "run/mine")
    monkeypatch.chdir("/")
    assert base_checkpoint(far / "run/mine").resolve() == (world / "out/base").resolve()
    load(far / "run/mine", "cpu")


def test_the_nearest_counts_and_another_is_refused(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The record of its training comes before a folder of that name where somebody works."""
    other = tmp_path / "other/out"
    other.mkdir(parents=True)
    shutil.copytree(world / "out/base", other / "base")
    monkeypatch.chdir(other.parent)
    assert base_checkpoint(world / "out/mine").resolve() == (world / "out/base").resolve()
    model, _ = load(other / "base", "cpu")
    with torch.no_grad():
        model.get_input_embeddings().weight[7] += 0.01  # a row of text
    model.save_pretrained(other / "base")
    with pytest.raises(ValueError, match="is not the base of the adapter"):
        load(world / "out/mine", "cpu", base=other / "base")
    publish(world / "out/mine", tmp_path / "shared", base="out/elsewhere")
    with pytest.raises(
        ValueError, match="'out/elsewhere', which is not a folder here;.*--base DIR, or UNIFIED_BASE=DIR"
    ):
        load(tmp_path / "shared", "cpu")


def test_pictures_of_a_card_are_drawn_with_the_base_that_is_told(
    image_adapter: Path, toy_checkpoint: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(image_adapter, adapter, ignore=shutil.ignore_patterns("checkpoint-*"))
    for path in adapter.glob("*.json"):
        path.write_text(path.read_text().replace(str(toy_checkpoint), "/nowhere/base"))
    (tmp_path / "prompts.txt").write_text("a red cat\n")
    told = ["--base", toy_checkpoint, "--prompts", tmp_path / "prompts.txt"]
    result = run("publish", "--model", adapter, "--out", tmp_path / "shared", *told)
    assert result.exit_code == 0, result.output
    assert list((tmp_path / "shared").rglob("*.png"))


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_every_script_that_loads_a_model_takes_its_base(path: Path) -> None:
    """A script that loads adapters has the flag of their base."""
    script, source = vars(load_script(str(path.relative_to(ROOT)))), path.read_text(encoding="utf-8")
    call = re.search(r"parse\(\s*\(([\w, ]+)\)", source)
    known = [field.name for word in re.findall(r"\w+", call[1] if call else "") for field in fields(script[word])]
    if re.search(r"\b(load|resolve_base_checkpoint)\(args\.model|args\.load\(", source):
        assert "base" in known


@pytest.mark.parametrize("how", ["flag", "variable", "python"])
def test_a_base_that_is_told(
    how: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_script: Callable[..., int]
) -> None:
    expected, digest = drawn(world / "out/mine"), weights_digest("out/mine")
    moved = (world / "out/base").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="which is not a folder here"):
        load("out/mine")
    if how == "flag":
        assert run("draw", "x", "--model", "out/mine", "--out", "x.png", "--base", moved).exit_code == 0
        assert run("merge", "--model", "out/mine", "--out", "merged", "--base", moved).exit_code == 0
        assert run("publish", "--model", "out/mine", "--out", "shared", "--base", moved).exit_code == 0
        assert (read_base_record(Path("shared")) or {})["base"] == str(moved)
        told = LoadOptions(base=str(moved))
        assert torch.equal(logits(*told.load("out/mine")), expected) and told.digest("out/mine") == digest
        Path("prompts.jsonl").write_text('{"prompt": "a cat"}\n')
        flags = ["--model", "out/mine", "--prompts", "prompts.jsonl", "--samples", 1, "--base", moved]
        assert run_script("eval/generate_images.py", *flags, "--out", "pictures") == 0
        assert json.loads(Path("pictures/settings.json").read_text())["model_sha256"] == digest
    elif how == "variable":
        monkeypatch.setenv("UNIFIED_BASE", str(moved))
        assert torch.equal(drawn(Path("out/mine")), expected)
    else:
        assert torch.equal(logits(*load("out/mine", "cpu", base=moved)), expected)
        with pytest.raises(ValueError, match="is for an adapter, which .* is not; leave it out"):
            load(moved, base="out/mine")


def test_a_base_of_the_hub_is_named_as_the_hub_does(
    toy_checkpoint: Path, toy_rows: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its revision, for PEFT as for us; no path of this machine is left in the adapter."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    commit = "a" * 40
    repository = tmp_path / "hub/models--org--toy"
    shutil.copytree(toy_checkpoint, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs/v1").write_text(commit)
    monkeypatch.chdir(tmp_path)
    train(monkeypatch, "--model", "org/toy@v1", "--train_files", toy_rows("dd"), "--output_dir", "mine")
    config = json.loads(Path("mine/adapter_config.json").read_text())
    assert (config["base_model_name_or_path"], config["revision"]) == ("org/toy", commit)
    publish("mine", "shared")
    for adapter in ("mine", "shared"):
        assert base_checkpoint(Path(adapter)) == repository / "snapshots" / commit
        load(adapter, "cpu")
        for name in ("adapter_config.json", "base.json", "README.md"):
            assert str(tmp_path) not in Path(adapter, name).read_text()
