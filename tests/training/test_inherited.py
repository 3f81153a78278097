"""Every key that recipes inherit is honoured or refused by name, and every number has its bounds."""

import math
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainingArguments
from trl import DPOConfig

from unified.arguments.fields import BOUNDS as METADATA
from unified.arguments.fields import check_fields, numbers
from unified.arguments.parser import parse
from unified.inference.arguments import SamplingArguments
from unified.scenes.detector_arguments import DetectorArguments, DetectorTrainingArguments
from unified.training.arguments import DataArguments, DpoArguments, ModelArguments, UnifiedTrainingArguments
from unified.training.inherited import BOUNDS, HONOURED, REFUSED
from unified.training.tokenizer_arguments import (
    TokenizerArguments,
    TokenizerLossArguments,
    TokenizerTrainingArguments,
)

RECIPES = (UnifiedTrainingArguments, DpoArguments)
OWN = (ModelArguments, DataArguments, TokenizerArguments, TokenizerLossArguments, TokenizerTrainingArguments)
ALL = (*RECIPES, *OWN, DetectorArguments, DetectorTrainingArguments)


def inherited(kind: type) -> set[str]:
    """Names of what a recipe's arguments have from HF or TRL."""
    parent = DPOConfig if issubclass(kind, DPOConfig) else TrainingArguments
    return {known.name for known in fields(parent)}


def test_every_inherited_key_is_decided_on_once() -> None:
    known = inherited(UnifiedTrainingArguments) | inherited(DpoArguments)
    assert len(HONOURED) == len(set(HONOURED))
    assert not {*HONOURED} & {*REFUSED}
    assert {*HONOURED} | {*REFUSED} == known


def another(kept: tuple[Any, ...]) -> Any:
    """A value that is not kept."""
    first = kept[0]
    if isinstance(first, bool):
        return not first
    return {float: 0.1, str: "other", list: ["inputs"]}.get(type(first), "x")


@pytest.mark.parametrize("kind", RECIPES)
@pytest.mark.parametrize("name", REFUSED)
def test_what_would_be_ignored_is_refused_by_name(kind: type, name: str) -> None:
    if name not in inherited(kind):
        pytest.skip("TRL's alone")
    with pytest.raises(ValueError, match=f"^{name} .+: .+"):
        kind(output_dir="x", use_cpu=True, **{name: another(REFUSED[name].kept)})


@pytest.mark.parametrize(
    "flags", [["--do_predict"], ["--resume_from_checkpoint", "/nowhere"], ["--push_to_hub", "True"], ["--do_eval"]]
)
@pytest.mark.parametrize("kind", RECIPES)
def test_the_command_line_refuses_them_too(kind: type, flags: list[str]) -> None:
    with pytest.raises(ValueError, match=flags[0].lstrip("-")):
        parse((kind,), [*flags, "--use_cpu", "True"])


def test_an_evaluation_that_is_due_may_be_asked_for() -> None:
    assert UnifiedTrainingArguments(output_dir="x", use_cpu=True, do_eval=True, eval_strategy="epoch", do_train=True)


@pytest.mark.parametrize("kind", ALL)
def test_every_number_but_few_has_bounds_of_its_own(kind: type) -> None:
    free = {"local_rank", "f_alpha_divergence_coef", "router_aux_loss_coef", "pad_to_multiple_of", "dataset_num_proc"}
    free |= {"neftune_noise_alpha", "label_smoothing_factor", "eval_accumulation_steps"}  # refused but for a default
    free |= {"sample_temperature", "sample_top_k", "sample_guidance_scale"}  # ImageSampling's
    for known in fields(kind):
        if re.search(r"\b(int|float)\b", str(known.type)):
            assert METADATA in known.metadata or known.name in BOUNDS or known.name in free, known.name


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("kind", ALL)
def test_no_number_may_be_infinite_or_nan(kind: type, value: float) -> None:
    given = {"output_dir": "x", "use_cpu": True} if kind in RECIPES else {}
    checked = 0
    for known in fields(kind):
        if known.init and "float" in str(known.type):
            one = [value] if "list" in str(known.type) else value
            with pytest.raises(ValueError, match=rf"{known.name} .*(give|:)"):
                kind(**given | {known.name: one})
            checked += 1
    assert checked or kind is DetectorArguments


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("learning_rate", -1e-4, "learning_rate -0.0001; give at least 0"),
        ("weight_decay", -1.0, "weight_decay -1; give at least 0"),
        ("max_grad_norm", -1.0, "max_grad_norm -1; give at least 0"),
        ("warmup_steps", -1, "warmup_steps -1; give at least 0"),
        ("adam_beta2", 1.0, r"adam_beta2 1 is not in \[0, 1\); give at least 0 and below 1"),
        ("max_steps", 0, "max_steps 0; give -1 or at least 1"),
        ("num_train_epochs", 0, "num_train_epochs 0; give above 0"),
        ("gradient_accumulation_steps", 0, "gradient_accumulation_steps 0; give at least 1"),
        ("per_device_train_batch_size", 0, "per_device_train_batch_size 0; give at least 1"),
        ("seed", -1, r"seed -1 is not in \[0, 4.29497e\+09\)"),
        ("lora_rank", 0, "lora_rank 0; give at least 1"),
        ("lora_dropout", 1.0, r"lora_dropout 1 is not in \[0, 1\)"),
        ("sample_temperature", -1.0, "--sample_temperature -1.0; give at least 0"),
        ("sample_guidance_scale", math.inf, "--sample_guidance_scale inf; give at least 0"),
    ],
)
@pytest.mark.parametrize("kind", RECIPES)
def test_numbers_out_of_bounds_are_refused_from_python_and_the_command_line(
    kind: type, name: str, value: float, rule: str
) -> None:
    with pytest.raises(ValueError, match=f"^{rule}"):
        kind(output_dir="x", use_cpu=True, **{name: value})
    with pytest.raises(ValueError, match=f"^{rule}"):
        parse((kind,), [f"--{name}", str(value), "--use_cpu", "True"])


@pytest.mark.parametrize(
    ("kind", "given", "rule"),
    [
        (DpoArguments, {"beta": 0.0}, "beta 0; give above 0"),
        (DpoArguments, {"loss_weights": [1.0, -1.0]}, "loss_weights -1; give at least 0"),
        (ModelArguments, {"scale_loss_weights": [1.0, math.nan]}, "scale_loss_weights nan; give at least 0"),
        (DataArguments, {"caption_dropout": 1.0}, r"caption_dropout 1 is not in \[0, 1\)"),
        (DataArguments, {"last_scale_fraction": 0.0}, r"last_scale_fraction 0 is not in \(0, 1\]"),
        (TokenizerTrainingArguments, {"ema_decay": 1.0}, r"ema_decay 1 is not in \[0, 1\)"),
        (TokenizerTrainingArguments, {"max_steps": 0}, "max_steps 0; give at least 1"),
        (TokenizerTrainingArguments, {"save_steps": 0}, "save_steps 0; give at least 1"),
        (TokenizerLossArguments, {"gan_weight": -0.1}, "gan_weight -0.1; give at least 0"),
        (DetectorTrainingArguments, {"torn_share": 1.5}, r"torn_share 1.5 is not in \[0, 1\]"),
        (DetectorTrainingArguments, {"learning_rate": -1.0}, "learning_rate -1; give at least 0"),
    ],
)
def test_our_own_numbers_too(kind: type, given: dict[str, Any], rule: str) -> None:
    base = {"output_dir": "x", "use_cpu": True} if kind in RECIPES else {}
    with pytest.raises(ValueError, match=f"^{rule}"):
        kind(**base | given)


@pytest.mark.parametrize("kind", ALL)
def test_defaults_are_within_bounds(kind: type) -> None:
    settings = kind(output_dir="x", use_cpu=True) if kind in RECIPES else kind()
    check_fields(settings, BOUNDS)
    assert list(numbers([1, [2.5, True], "x", None])) == [1, 2.5]


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "guidance_scale"])
def test_sampling_refuses_what_is_not_finite(name: str) -> None:
    for value in (math.nan, math.inf, -1):
        with pytest.raises(ValueError, match=f"^--{name} "):
            SamplingArguments(**{name: value})


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        (["--text_loss_weight", "0", "--scale_loss_weights", "0", "0"], "are all 0, so nothing would be trained"),
        (["--text_loss_weight", "nan"], "text_loss_weight nan"),
        (["--scale_loss_weights", "1", "-1"], "scale_loss_weights -1"),
        (["--max_steps", "-1", "--num_train_epochs", "0"], "num_train_epochs 0"),
    ],
)
def test_a_run_of_weights_that_mean_nothing_is_refused(
    run_script: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    toy_checkpoint: Path,
    toy_rows: Callable[[str], Path],
    tmp_path: Path,
    weights: list[str],
    words: str,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    config = Path(__file__).parents[2] / "recipes/configs/tiny.yaml"
    given = ["--config", config, "--model", toy_checkpoint, "--train_files", toy_rows("dt")]
    assert run_script("recipes/sft.py", *given, "--output_dir", tmp_path / "out", *weights) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("error: ") and words in line, line
    assert not (tmp_path / "out").exists()
