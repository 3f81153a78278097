"""TRL's own `DPOTrainer`, not subclassed, on a toy that has painted both answers: the contract holds for it."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from unified import UnifiedForCausalLM, UnifiedProcessor
from unified.data.chat_dataset import PreferenceCollator
from unified.inference.text_to_image import draw_codes
from unified.models.generation import ImageSampling

IMAGE = {"type": "image", "text": None}
PAIRS = 4


@pytest.fixture
def model(toy_checkpoint: Path) -> UnifiedForCausalLM:
    return UnifiedForCausalLM.from_pretrained(toy_checkpoint)


@pytest.fixture
def processor(toy_checkpoint: Path) -> UnifiedProcessor:
    return UnifiedProcessor.from_pretrained(toy_checkpoint)


@pytest.fixture
def preferences(model: UnifiedForCausalLM, processor: UnifiedProcessor) -> Dataset:
    """Two pictures of each prompt as the model painted them; every other prompt shows a picture as well."""
    prompts = [f"a photo of {number} red cats" for number in range(PAIRS)]
    generator = torch.Generator().manual_seed(0)
    chosen, rejected, shown = (
        draw_codes(model, processor, prompts, ImageSampling(temperature=2.0), generator).tolist() for _ in range(3)
    )
    rows = []
    for number, prompt in enumerate(prompts):
        reads = number % 2
        content = [IMAGE] * reads + [{"type": "text", "text": prompt}]
        answer = {"role": "assistant", "content": [IMAGE]}
        rows.append(
            {
                "messages": [{"role": "user", "content": content}],
                "chosen": answer,
                "rejected": answer,
                "codes": [shown[number]] * reads,
                "chosen_codes": [chosen[number]],
                "rejected_codes": [rejected[number]],
                "images": [],  # a column of this name makes TRL leave the rows to the collator
            }
        )
    return Dataset.from_list(rows)


@pytest.fixture
def backbone_lora() -> LoraConfig:
    """Low-rank updates of the backbone alone: TRL reads `lm_head.bias`, which PEFT's trainable rows do not have."""
    projections = ["q_proj", "v_proj", "down_proj"]
    return LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=projections, task_type="CAUSAL_LM")


@pytest.fixture
def make_trainer(processor: UnifiedProcessor, preferences: Dataset, tmp_path: Path) -> Callable[..., DPOTrainer]:
    def make(model: Any, **settings: Any) -> DPOTrainer:
        args = DPOConfig(
            output_dir=str(tmp_path),
            per_device_train_batch_size=PAIRS,
            max_steps=settings.pop("max_steps", 2),
            learning_rate=2e-3,
            lr_scheduler_type="constant",
            beta=0.5,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        )
        collator = PreferenceCollator(processor, max_length=128)
        return DPOTrainer(
            model, args=args, train_dataset=preferences, data_collator=collator, processing_class=processor, **settings
        )

    return make


def assert_learns(trainer: DPOTrainer) -> None:
    """Two steps: the first loss is ln 2, as policy and reference agree, and the second one is less."""
    assert type(trainer) is DPOTrainer
    trainer.train()
    first, second = (entry for entry in trainer.state.log_history if "loss" in entry)
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    assert second["loss"] < first["loss"] - 1e-3 and second["rewards/margins"] > 0


def test_the_reference_may_be_a_copy(make_trainer: Callable[..., DPOTrainer], model: UnifiedForCausalLM) -> None:
    assert_learns(make_trainer(model, ref_model=copy.deepcopy(model)))


def test_the_reference_may_be_the_model_without_its_adapters(
    make_trainer: Callable[..., DPOTrainer], model: UnifiedForCausalLM, backbone_lora: LoraConfig
) -> None:
    trainer = make_trainer(model, peft_config=backbone_lora)
    assert trainer.ref_model is None
    assert_learns(trainer)


def test_an_adapter_is_trained_on_against_its_copy(
    make_trainer: Callable[..., DPOTrainer], model: UnifiedForCausalLM, backbone_lora: LoraConfig
) -> None:
    adapted = get_peft_model(model, backbone_lora)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    assert_learns(make_trainer(adapted))


def test_trls_log_probs_are_those_of_the_logits(
    make_trainer: Callable[..., DPOTrainer], model: UnifiedForCausalLM, preferences: Dataset
) -> None:
    trainer = make_trainer(model, ref_model=copy.deepcopy(model))
    batch = trainer.data_collator([preferences[index] for index in range(PAIRS)])
    mask = batch.pop("completion_mask")
    labels = batch["input_ids"].masked_fill(mask == 0, -100)
    with torch.no_grad():
        fused: Tensor = model(**batch, labels=labels, fused_lm_head=True).log_probs
        logits = model(**batch).logits[:, :-1]
    targets = labels[:, 1:]
    expected = logits.log_softmax(dim=-1).gather(2, targets.clamp(min=0)[..., None]).squeeze(2)
    expected = expected.masked_fill(targets < 0, 0)
    torch.testing.assert_close(fused[:, -expected.shape[1] :], expected, rtol=1e-5, atol=1e-5)
    is_code = model.config.vocabulary.is_image(targets.clamp(min=0)) & (targets >= 0)
    assert is_code.sum() == 2 * PAIRS * 5
