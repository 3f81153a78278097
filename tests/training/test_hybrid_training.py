"""Hybrid backbones through the recipes: what they are told, resumed runs, LoRA, DPO, 12 drawings by heart, ZeRO-3.

`qwen3_5_text` runs every time, the other families, drawings and ZeRO-3 by `-m families`.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import tiny_llm
from pairs import toy_pairs
from safetensors.torch import load_file
from toys import make_tokenizer, make_vq, toy_row
from transformers import TrainerState
from two_ranks import CONFIG, ROOT, train, zero

from unified import UnifiedConfig, UnifiedForCausalLM
from unified.checkpoints.extension import extend
from unified.checkpoints.loading import load
from unified.data.preferences import write_pairs
from unified.data.rows import write_encoded_shard
from unified.inference.text_to_image import generate_codes
from unified.models.image_sampling import ImageSampling
from unified.training.finite import FiniteTrainer

FIRST, *OTHERS = "qwen3_5_text", "granitemoehybrid", "lfm2", "nemotron_h"
FAMILIES = [FIRST, *(pytest.param(name, marks=pytest.mark.families) for name in OTHERS)]
EXPERTS = "nemotron_h"  # files hold each expert by itself, the model all in one tensor
RESUMED = [FIRST, EXPERTS, *(pytest.param(name, marks=pytest.mark.families) for name in OTHERS if name != EXPERTS)]
ALL = pytest.mark.parametrize("family", [FIRST, *OTHERS])
SHORT = ["--last_scale_fraction", 1, "--max_steps", 4, "--save_steps", 2]
CODES = torch.randint(32, (12, 5), generator=torch.Generator().manual_seed(1)).tolist()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a family's toy, extended on disk, with twelve drawings as `rows.parquet` beside it."""
    made: dict[str, Path] = {}

    def make(family: str) -> Path:
        if family not in made:
            folder, tokenizer = tmp_path_factory.mktemp(family), make_tokenizer()
            make_vq().save_pretrained(folder / "vq")
            backbone = tiny_llm(family, len(tokenizer), tie_word_embeddings=False)
            backbone.save_pretrained(folder / "llm")
            tokenizer.save_pretrained(folder / "llm")
            model = extend(folder / "llm", folder / "vq", folder / "model")
            rows = [toy_row("draw", number, codes) for number, codes in enumerate(CODES)]
            write_encoded_shard(folder / "rows.parquet", rows, model.config.vq_fingerprint, (1, 2))
            made[family] = folder / "model"
        return made[family]

    return make


@pytest.fixture
def sft(
    run_script: Callable[..., int],
    checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> Callable[..., tuple[Path, str]]:
    """Train a family's toy on its drawings; the output folder and what was said."""

    def run(family: str, name: str, *arguments: object, status: int = 0) -> tuple[Path, str]:
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        model, out = checkpoint(family), tmp_path / name
        given = ["--model", model, "--train_files", model.parent / "rows.parquet", "--output_dir", out, *arguments]
        assert run_script("recipes/sft.py", "--config", CONFIG, *given) == status
        return out, capfd.readouterr().err

    return run


def losses(out: Path) -> list[float]:
    entries = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in entries if "loss" in entry]


def test_positions_are_not_left_out(sft: Callable[..., Any]) -> None:
    _, said = sft(FIRST, "out", status=2)
    assert f"last_scale_fraction 0.5, but recurrent layers of the backbone {FIRST}" in said.splitlines()[-1]


@pytest.mark.parametrize("family", RESUMED)
def test_a_run_that_goes_on_ends_where_the_whole_one_does(family: str, sft: Callable[..., Any]) -> None:
    whole, said = sft(family, "whole", *SHORT)
    assert f"backbone {family}: rows hold one example each (pack False)" in said
    half, _ = sft(family, "half", *SHORT, "--max_steps", 2)
    sft(family, "half", *SHORT, "--resume")
    found, expected = load_file(half / "model.safetensors"), load_file(whole / "model.safetensors")
    assert [name for name, value in expected.items() if not torch.equal(found[name], value)] == []


def test_the_best_checkpoint_has_its_experts(checkpoint: Callable[[str], Path]) -> None:
    model = UnifiedForCausalLM.from_pretrained(checkpoint(EXPERTS))
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1.0)
    trainer: Any = FiniteTrainer.__new__(FiniteTrainer)
    trainer.model, trainer.is_deepspeed_enabled, trainer.is_fsdp_enabled = model, False, False
    trainer.state = TrainerState(best_model_checkpoint=str(checkpoint(EXPERTS)))
    trainer._load_best_model()
    assert [name for name, value in model.state_dict().items() if not torch.equal(value, expected[name])] == []


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_is_trained_merged_and_draws(family: str, sft: Callable[..., Any]) -> None:
    out, _ = sft(family, "lora", *SHORT, "--tuning", "lora", "--lora_rank", 4)
    stored = load_file(out / "adapter_model.safetensors")
    updates = {name: value for name, value in stored.items() if ".lora_B." in name}
    assert updates and [name for name, value in updates.items() if not value.any()] == []
    model, processor = load(out, device="cpu")
    assert generate_codes(model, processor, ["a cat", "two red cats"]).shape == (2, 5)


@pytest.mark.parametrize("family", FAMILIES)
def test_preferences_are_trained(
    family: str, run_script: Callable[..., int], checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: Any
) -> None:
    """TRL's trainer starts at ln 2 and moves."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    config = UnifiedConfig.from_pretrained(checkpoint(family))
    write_pairs(tmp_path / "pairs.parquet", toy_pairs("imut"), config.vq_fingerprint, config.patch_nums)
    given = ["--model", checkpoint(family), "--train_files", tmp_path / "pairs.parquet"]
    recipe = ["--config", ROOT / "recipes/configs/tiny_dpo.yaml", "--output_dir", tmp_path / "dpo"]
    assert run_script("recipes/dpo.py", *recipe, *given, "--tuning", "lora", "--lora_rank", 4) == 0
    first, second = losses(tmp_path / "dpo")
    assert first == pytest.approx(math.log(2), abs=1e-4) and second != first


@pytest.mark.families
@ALL
def test_twelve_drawings_are_learnt_by_heart(family: str, sft: Callable[..., Any]) -> None:
    arguments = ["--last_scale_fraction", 1, "--caption_dropout", 0, "--per_device_train_batch_size", 12]
    arguments += ["--max_steps", 150, "--save_steps", 150, "--learning_rate", 3e-3]
    out, _ = sft(family, "out", *arguments)
    model, processor = load(out, device="cpu")
    prompts = [f"a photo of {number} red cats" for number in range(12)]
    drawn = generate_codes(model, processor, prompts, ImageSampling(guidance_scale=1.0, top_k=1))
    assert drawn.tolist() == CODES


@pytest.mark.families
def test_two_processes_under_zero_3_train_as_one(
    sft: Callable[..., Any], checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    model = checkpoint(FIRST)
    given = ["--model", model, "--train_files", model.parent / "rows.parquet", *SHORT]
    two = train(zero(3), tmp_path / "two", *given)  # first: afterwards the environment asks for CPUs without DeepSpeed
    one, _ = sft(FIRST, "one", *SHORT)
    assert list(two.glob("checkpoint-4/global_step4/*optim_states.pt")), "DeepSpeed was not used"
    assert losses(two) == pytest.approx(losses(one), rel=1e-4) and len(losses(one)) == 4
