"""The mean of adapters: weights between theirs, models of one start alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import error_of, logits, run
from safetensors.torch import load_file
from toy_adapters import arguments

from unified import UnifiedForCausalLM, UnifiedProcessor, load
from unified.checkpoints.publishing import publish
from unified.training.tuning import prepare

Make = Callable[..., Path]


@pytest.fixture(scope="module")
def make(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """`make(seed, **settings)`: a random adapter of the toy checkpoint on disk."""

    def adapter(seed: int, **settings: object) -> Path:
        folder = tmp_path_factory.mktemp("adapter")
        model = prepare(UnifiedForCausalLM.from_pretrained(toy_checkpoint), arguments(**settings))
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(folder)
        UnifiedProcessor.from_pretrained(toy_checkpoint).save_pretrained(folder)
        return folder

    return adapter


@pytest.fixture(scope="module")
def pair(make: Make) -> tuple[Path, Path]:
    return make(0), make(1)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def test_weights_lie_where_the_shares_say(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert run("average", *pair, "--shares", "0.25,0.75", "--out", tmp_path / "out").exit_code == 0
    first, second, mean = *map(weights, pair), weights(tmp_path / "out")
    assert mean.keys() == first.keys()
    assert all(torch.allclose(mean[name], 0.25 * first[name] + 0.75 * second[name]) for name in mean)
    assert logits(*load(tmp_path / "out", "cpu")).isfinite().all()


def test_all_of_one_is_that_one(pair: tuple[Path, Path], tmp_path: Path) -> None:
    assert run("average", *pair, "--shares", "0,1", "--out", tmp_path / "out").exit_code == 0
    assert torch.equal(logits(*load(tmp_path / "out", "cpu")), logits(*load(pair[1], "cpu")))


def test_shares_are_equal_by_default_and_the_form_is_the_last_ones(pair: tuple[Path, Path], tmp_path: Path) -> None:
    small = tmp_path / "small"
    assert run("publish", "--model", pair[1], "--out", small).exit_code == 0  # in bfloat16
    assert run("average", *pair, small, "--out", tmp_path / "out").exit_code == 0
    found, parts = weights(tmp_path / "out"), [weights(folder) for folder in (*pair, small)]
    assert {value.dtype for value in found.values()} == {torch.bfloat16}
    for name, value in found.items():
        mean = sum(part[name].float() for part in parts) / 3
        assert torch.allclose(value.float(), mean, rtol=2**-7, atol=1e-6), name
    assert (tmp_path / "out" / "base.json").is_file()


@pytest.mark.parametrize(
    ("shares", "wrong"),
    [
        ("0.5", "2 models and 1 shares"),
        ("0.5,0.6", "sum to 1.1"),
        ("half,half", "list of numbers"),
        ("nan,1", "sum to"),
    ],
)
def test_shares_that_make_no_mean(pair: tuple[Path, Path], tmp_path: Path, shares: str, wrong: str) -> None:
    assert wrong in error_of("average", *pair, "--shares", shares, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_adapters_of_two_kinds_have_no_mean(pair: tuple[Path, Path], make: Make, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for other in (make(2, lora_rank=8), make(2, lora_positions="all"), make(2, lora_target_modules=["q_proj"])):
        assert "give adapters" in error_of("average", pair[0], other, "--out", out)
    moved = shutil.copytree(pair[1], tmp_path / "moved")
    config = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "elsewhere"}))
    assert "base_model_name_or_path" in error_of("average", pair[0], moved, "--out", out)
    assert not out.exists()


def test_a_checkpoint_and_a_folder_that_is_there_are_refused(
    pair: tuple[Path, Path], toy_checkpoint: Path, tmp_path: Path
) -> None:
    assert "no" in error_of("average", pair[0], toy_checkpoint, "--out", tmp_path / "out")
    assert "exists already" in error_of("average", *pair, "--out", tmp_path)


def test_every_adapter_is_read_once(pair: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be large, and lie on a slow disk."""
    read: list[Path] = []

    def load_and_count(path: Path) -> dict[str, torch.Tensor]:
        read.append(Path(path).parent)
        return load_file(path)

    monkeypatch.setattr("unified.checkpoints.averaging.load_file", load_and_count)
    assert run("average", *pair, "--out", tmp_path / "mean").exit_code == 0
    assert read == [*pair]
    monkeypatch.setattr("unified.checkpoints.publishing.load_file", load_and_count)
    publish(pair[0], tmp_path / "published")
    assert read == [*pair, pair[0]]
