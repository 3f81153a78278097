"""Trainable parameters that cannot be honoured are refused."""

from pathlib import Path

import pytest
import torch
from toy_models import toy_model

from unified.training.arguments import UnifiedTrainingArguments
from unified.training.tuning import check_masters, prepare


def arguments(tmp_path: Path, **settings: object) -> UnifiedTrainingArguments:
    return UnifiedTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **settings)


@pytest.mark.parametrize("tuning", ["full", "align"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_training_half_precision_weights_is_refused(tuning: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = prepare(toy_model().to(dtype), arguments(tmp_path, tuning=tuning))
    with pytest.raises(
        ValueError, match=f"trainable weights in {str(dtype)[6:]} lose .* set dtype to float32 with bf16"
    ):
        check_masters(model)
    check_masters(prepare(toy_model(), arguments(tmp_path, tuning=tuning)))


def test_a_lora_of_half_precision_weights_trains_in_float32(tmp_path: Path) -> None:
    check_masters(prepare(toy_model().bfloat16(), arguments(tmp_path, tuning="lora")))


@pytest.mark.parametrize("targets", [["q_proj", "lm_head"], ["lm_head"], ["q_proj", "quest"]])
def test_every_target_of_a_lora_is_matched(targets: list[str], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"lora_target_modules \['{targets[-1]}'\] match nothing in the backbone"):
        prepare(toy_model(), arguments(tmp_path, tuning="lora", lora_target_modules=targets))
