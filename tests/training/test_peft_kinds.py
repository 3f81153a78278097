"""Every kind of PEFT on a unified model: it trains text and images and opens as saved, or is refused by name."""

from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PEFT_TYPE_TO_CONFIG_MAPPING, AutoPeftModelForCausalLM, PeftType, XLoraConfig, get_peft_model
from toy_models import EOS, output_image, random_codes, toy_model

from unified.models.adapter_kinds import TRAINED

# what a toy of 32 wide layers needs
SIZES: dict[str, dict[str, Any]] = {
    "ADALORA": {"total_step": 10},
    "C3A": {"block_size": 16},
    "FOURIERFT": {"n_frequency": 16},
    "IA3": {"target_modules": ["q_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "MISS": {"r": 4},
    "PSOFT": {"r": 4},
    "ROAD": {"group_size": 16},
    "SHIRA": {"r": 2},
    "VBLORA": {"vector_length": 16, "num_vectors": 8},
    "WAVEFT": {"n_frequency": 16},
}
# why there is no such adapter of a unified model
REFUSED = {
    "ADAPTION_PROMPT": (ValueError, "Unsupported model type for adaption prompt"),
    "CARTRIDGE": (ValueError, "pass them .LoRA, no prefixes"),
    "CPT": (ValueError, "pass input_ids .LoRA, no prompts"),
    "MULTITASK_PROMPT_TUNING": (ValueError, "pass input_ids .LoRA, no prompts"),
    "PREFIX_TUNING": (ValueError, "pass them .LoRA, no prefixes"),
    "PROMPT_TUNING": (ValueError, "pass input_ids .LoRA, no prompts"),
    "P_TUNING": (ValueError, "pass input_ids .LoRA, no prompts"),
    "SHADOW": (ValueError, "num_hidden_layers 1: .* as ShadowPEFT's, .* use LoRA"),
    "TRAINABLE_TOKENS": (ValueError, "train rows of it with trainable_token_indices"),
}
# what PEFT's forward of such a kind asks for
FORWARD = {kind: {"task_ids": torch.tensor([0])} for kind in ("POLY", "MULTITASK_PROMPT_TUNING")}


def config_of(kind: PeftType) -> Any:
    config = PEFT_TYPE_TO_CONFIG_MAPPING[kind]
    names, given = {field.name for field in fields(config)}, dict(SIZES.get(kind.value, {}))
    if "target_modules" in names:
        rows = kind.value == "TRAINABLE_TOKENS"
        given.setdefault("target_modules", ["embed_tokens"] if rows else ["q_proj", "o_proj"])
    if "num_virtual_tokens" in names:
        given["num_virtual_tokens"] = 3
    if kind.value == "TRAINABLE_TOKENS":
        given["token_indices"] = [5, 6]
    return config(task_type="CAUSAL_LM", **given)


def losses(model: Any, ids: torch.Tensor, steps: int, **more: torch.Tensor) -> list[float]:
    """Of some steps of AdamW on one row of text and an image."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    found = []
    for _ in range(steps):
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids, **more).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(float(loss))
    return found


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", [kind for kind in PeftType if kind.value != "XLORA"], ids=lambda kind: kind.value)
def test_it_trains_or_is_refused(kind: PeftType, tmp_path: Path) -> None:
    toy_model().save_pretrained(tmp_path / "base")
    model = toy_model()
    model.name_or_path = str(tmp_path / "base")
    ids = torch.tensor([[5, 6, 7, *output_image(random_codes(model, 1)[0]), 8, 9, EOS]])
    torch.manual_seed(0)
    more = FORWARD.get(kind.value, {})
    if kind.value in REFUSED:
        error, words = REFUSED[kind.value]
        with pytest.raises(error, match=words):
            losses(get_peft_model(model, config_of(kind)).train(), ids, 1, **more)
        return
    adapted = get_peft_model(model, config_of(kind)).train()
    tokenizer = {name: value.clone() for name, value in model.model.vq_model.state_dict().items()}
    found = losses(adapted, ids, 4, **more)
    assert found[-1] < found[0]
    assert all(torch.equal(value, tokenizer[name]) for name, value in model.model.vq_model.state_dict().items())
    adapted.save_pretrained(tmp_path / "adapter")
    again = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()
    with torch.no_grad():
        expected = adapted.eval()(ids, **more).logits
        assert torch.allclose(again(ids, **more).logits, expected, atol=1e-4)


def test_kinds_are_trained_or_refused_those_to_come_too() -> None:
    """A kind that PEFT adds is refused by its name until it has been tried."""
    known = {kind.value for kind in PeftType}
    assert known == TRAINED | REFUSED.keys() and TRAINED & REFUSED.keys() == {"TRAINABLE_TOKENS"}
    model = toy_model()
    with pytest.raises(ValueError, match="PEFT's HYPERLORA has not been tried .* use one of ADALORA, .*, LORA, "):
        model.peft_config = {"default": SimpleNamespace(peft_type="HYPERLORA")}
    model.add_adapter(config_of(PeftType.LORA))  # transformers' own door
    assert set(model.peft_config) == {"default"}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["LORA", "LOHA", "LOKR", "IA3", "OFT", "BOFT"])
def test_it_merges(kind: str) -> None:
    model = toy_model()
    ids = torch.tensor([[5, 6, 7, *output_image(random_codes(model, 1)[0]), 8, 9, EOS]])
    torch.manual_seed(0)
    adapted = get_peft_model(model, config_of(PeftType(kind))).train()
    losses(adapted, ids, 2)
    with torch.no_grad():
        expected = adapted.eval()(ids).logits
        assert torch.allclose(adapted.merge_and_unload()(ids).logits, expected, atol=1e-3)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_mixture_of_trained_adapters(tmp_path: Path) -> None:
    """X-LoRA is a classifier that mixes adapters there are already."""
    for seed, name in enumerate("ab"):
        lora = get_peft_model(toy_model(), config_of(PeftType.LORA))
        torch.manual_seed(seed)
        for parameter in (value for name, value in lora.named_parameters() if "lora_" in name):
            torch.nn.init.normal_(parameter, std=0.6)
        lora.save_pretrained(tmp_path / name)
    model, adapters = toy_model(), {str(number): str(tmp_path / name) for number, name in enumerate("ab")}
    model.config.use_cache = False  # PEFT asks for it
    ids = torch.tensor([[5, 6, 7, *output_image(random_codes(model, 1)[0]), 8, 9, EOS]])
    torch.manual_seed(0)
    mixed = get_peft_model(model, XLoraConfig(task_type="CAUSAL_LM", hidden_size=32, adapters=adapters)).train()
    found = losses(mixed, ids, 4)
    assert found[-1] < found[0] - 0.01
