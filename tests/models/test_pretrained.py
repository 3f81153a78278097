"""A model that is cast is the one that is loaded in that dtype."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from toy_models import BACKBONES, BOI, toy_model

from unified import ImageSampling, UnifiedForCausalLM

CASTS = {
    "to": lambda model: model.to(torch.bfloat16),
    "bfloat16": lambda model: model.bfloat16(),
    "of the body": lambda model: (model.model.bfloat16(), model.lm_head.bfloat16()),
}


def computed(model: nn.Module) -> dict[str, torch.Tensor]:
    """RoPE's frequencies, which no file stores."""
    return {name: value for name, value in model.named_buffers() if name.endswith("inv_freq")}


@pytest.mark.parametrize("cast", CASTS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_cast_model_is_the_one_loaded_in_that_dtype(backbone: str, cast: str, tmp_path: Path) -> None:
    toy_model(backbone).save_pretrained(tmp_path)
    expected = UnifiedForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    model = UnifiedForCausalLM.from_pretrained(tmp_path).eval()
    CASTS[cast](model)
    assert computed(model)
    for name, value in computed(expected).items():
        assert computed(model)[name].dtype == value.dtype and torch.equal(computed(model)[name], value), name
    ids = torch.randint(4, 60, (2, 300), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(input_ids=ids).logits, expected(input_ids=ids).logits)
    prompts, greedy = torch.tensor([[5, i, BOI] for i in range(3, 35)]), ImageSampling(temperature=0)
    drawn = [one.generate(prompts, max_new_tokens=0, image_sampling=greedy) for one in (model, expected)]
    assert torch.equal(*drawn)


def test_what_is_computed_moves_and_stays_inside_a_wrapper() -> None:
    model = toy_model()
    before = {name: value.clone() for name, value in computed(model).items()}
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM")).half()
    assert next(adapted.base_model.model.model.language_model.parameters()).dtype == torch.float16
    assert all(torch.equal(value, before[name]) for name, value in computed(model).items() if name in before)
    assert all(value.device.type == "meta" for value in computed(model.to("meta")).values())
