"""Nothing done is no success: no rows, no steps, nothing trained, and it is said in one line."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import error_of, run
from safetensors.torch import load_file, save_file

from unified.data.rows import write_encoded_shard

ROOT = Path(__file__).parents[2]
Refuse = Callable[..., str]


@pytest.fixture
def refuse(
    run_script: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Refuse:
    """The one line of a script that must end with status 2."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def run(path: str, *arguments: object) -> str:
        assert run_script(path, *arguments) == 2
        said = capfd.readouterr().err
        assert "Traceback" not in said and said.splitlines()[-1].startswith("error: "), said
        return said.splitlines()[-1]

    return run


@pytest.mark.parametrize("flag", ["--train_files", "--eval_files"])
@pytest.mark.parametrize("form", ["parquet", "jsonl"])
def test_rows_of_an_empty_file(
    refuse: Refuse, toy_checkpoint: Path, toy_rows: Callable[[str], Path], tmp_path: Path, flag: str, form: str
) -> None:
    empty = tmp_path / f"empty.{form}"
    if form == "jsonl":
        empty.write_text("\n")
    else:
        write_encoded_shard(empty, [], "", ())
    given = ["--config", ROOT / "recipes/configs/tiny.yaml", "--model", toy_checkpoint]
    given += ["--train_files", toy_rows("dt"), "--output_dir", tmp_path / "out", flag, empty]
    given += ["--eval_strategy", "steps", "--eval_steps", 1] if flag == "--eval_files" else []
    assert f"{empty}: not one row" in refuse("recipes/sft.py", *given)
    assert not (tmp_path / "out").exists()


def test_fewer_rows_than_a_batch_that_are_dropped(
    refuse: Refuse, toy_checkpoint: Path, toy_rows: Callable[[str], Path], tmp_path: Path
) -> None:
    given = ["--config", ROOT / "recipes/configs/tiny.yaml", "--model", toy_checkpoint, "--output_dir", tmp_path / "o"]
    given += ["--train_files", toy_rows("dt"), "--dataloader_drop_last", "True"]
    for length in (["--max_steps", 2], ["--max_steps", -1, "--num_train_epochs", 1]):
        assert "not one step" in refuse("recipes/sft.py", *given, *length)
        assert not list(tmp_path.rglob("*.safetensors"))


def test_nothing_to_encode(refuse: Refuse, vq_dir: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("")
    given = ["--vq", vq_dir, "--out", tmp_path / "out", "--inputs", rows]
    assert "hold no rows" in refuse("data_prep/encode_images.py", *given)
    row = {"messages": [{"role": "user", "content": [{"type": "image"}]}, {"role": "assistant", "content": "a"}]}
    rows.write_text(json.dumps({**row, "images": ["gone.png"]}) + "\n")
    assert "not one of 1 rows can be read with its images" in refuse(
        "data_prep/encode_images.py", *given, "--max_bad", 5
    )
    assert "--max_bad -1; give at least 0" in refuse("data_prep/encode_images.py", *given, "--max_bad", -1)


@pytest.mark.parametrize(
    ("script", "given", "said"),
    [
        ("data_prep/render_scenes.py", ["--count", 0], "count=0 must be at least 1"),
        ("data_prep/render_scenes.py", ["--shard_size", 0], "shard_size=0 must be at least 1"),
        ("eval/write_prompts.py", ["--count", 0], "--count 0; give at least"),
        ("eval/write_prompts.py", ["--seed", -1], "--seed -1; give at least"),
    ],
)
def test_nothing_asked_for(refuse: Refuse, tmp_path: Path, script: str, given: list[object], said: str) -> None:
    assert said in refuse(script, "--out", tmp_path / "out", *given)
    assert not (tmp_path / "out").exists()


def change(adapter: Path, out: Path, value: float) -> Path:
    """A copy of an adapter whose updates are `value`."""
    shutil.copytree(adapter, out)
    weights = load_file(out / "adapter_model.safetensors")
    changed = {name: torch.full_like(v, value) if ".lora_B." in name else v for name, v in weights.items()}
    save_file(changed, out / "adapter_model.safetensors", {"format": "pt"})
    return out


@pytest.mark.parametrize("command", ["publish", "merge"])
def test_an_adapter_that_was_not_trained_or_diverged(image_adapter: Path, tmp_path: Path, command: str) -> None:
    config = tmp_path / "all"
    shutil.copytree(image_adapter, config)
    settings = json.loads((config / "adapter_config.json").read_text())
    settings["positions"] = "all"
    (config / "adapter_config.json").write_text(json.dumps(settings))
    for value, words in ((0.0, "was never trained: its updates are all zero"), (torch.nan, "not finite")):
        folder = change(config, tmp_path / f"adapter{value}", value)
        assert words in error_of(command, "--model", folder, "--out", tmp_path / "made")
        assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_picture_of_weights_that_are_nan(toy_checkpoint: Path, tmp_path: Path, temperature: float) -> None:
    shutil.copytree(toy_checkpoint, tmp_path / "model")
    path = tmp_path / "model/model.safetensors"
    weights = load_file(path)
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    save_file(weights | {name: weights[name] * torch.nan}, path, {"format": "pt"})
    out = tmp_path / "a.png"
    result = run("draw", "a cat", "--model", tmp_path / "model", "--out", out, "--temperature", temperature)
    assert result.exit_code == 1 and "error: the model's logits are nan" in result.stderr, result.output
    assert not out.exists()


def test_an_image_tokenizer_of_weights_that_are_nan(refuse: Refuse, vq_dir: Path, tmp_path: Path) -> None:
    path = vq_dir / "model.safetensors"
    weights = load_file(path)
    name = next(iter(weights))
    save_file(weights | {name: weights[name] * torch.nan}, path, {"format": "pt"})
    given = ["--vq", vq_dir, "--out", tmp_path / "out", "--inputs", tmp_path / "rows.jsonl"]
    assert "has weights that are not finite" in refuse("data_prep/encode_images.py", *given)


def test_the_mean_of_one_adapter(image_adapter: Path, tmp_path: Path) -> None:
    shutil.copytree(image_adapter, tmp_path / "copy")
    assert "have the same weights" in error_of("average", image_adapter, tmp_path / "copy", "--out", tmp_path / "made")
    bad = change(image_adapter, tmp_path / "bad", torch.inf)
    assert "not finite" in error_of("average", image_adapter, bad, "--out", tmp_path / "made")
