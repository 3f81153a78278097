"""Multimodal models of the hub as LLMs: the language model is taken out of them, and what is left behind is said."""

from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from families import tiny_config
from tolerances import assert_sums_agree, terms_of
from toys import make_tokenizer
from transformers import CONFIG_MAPPING, AutoModelForMultimodalLM

from unified.checkpoints.language_models import left_behind, load_llm
from unified.checkpoints.loading import load

SECTIONS = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
# model type: that of its text model, settings of it, of its vision model
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2_5_vl": ("qwen2_5_vl_text", {"rope_parameters": SECTIONS}, {"depth": 1, "num_heads": 4}),
    "gemma3": ("gemma3_text", {}, {"num_hidden_layers": 1, "image_size": 28, "patch_size": 14}),
    "qwen3_5": ("qwen3_5_text", {}, {"depth": 1, "num_heads": 4}),
    "llava": ("llama", {}, {"num_hidden_layers": 1, "image_size": 28, "patch_size": 14}),
}
PARTS = {"qwen2_5_vl": "visual", "gemma3": "vision_tower", "qwen3_5": "visual", "llava": "multi_modal_projector"}


def save_multimodal(folder: Path, kind: str, tied: bool) -> Path:
    """Write a tiny random multimodal model and a tokenizer."""
    tokenizer = make_tokenizer()
    text_type, text, vision = MODELS[kind]
    made = CONFIG_MAPPING[kind]
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "out_hidden_size": 32}
    vision_type = type(made().vision_config)
    known = set(vision_type.__dataclass_fields__)
    config = made(
        text_config=tiny_config(text_type, len(tokenizer), tie_word_embeddings=tied, **text).to_dict(),
        vision_config={name: value for name, value in (sizes | vision).items() if name in known}
        | {"model_type": vision_type.model_type},
        tie_word_embeddings=tied,
    )
    torch.manual_seed(0)
    AutoModelForMultimodalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", MODELS)
def test_the_language_model_is_taken(kind: str, tied: bool, vq_dir: Path, tmp_path: Path) -> None:
    llm = save_multimodal(tmp_path / "llm", kind, tied)
    result = run("extend", "--llm", llm, "--vq", vq_dir, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert f"of {kind} the language model is taken; left behind: " in result.output and PARTS[kind] in result.output
    model, _ = load(tmp_path / "out", device="cpu")
    assert model.config.text_config.model_type == MODELS[kind][0]
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    ids = torch.tensor([[5, 9, 30, 7, 7, 12, 41, 3, 25, 18, 33, 8, 50, 6]])
    with torch.no_grad():
        expected = load_llm(llm).eval()(input_ids=ids).logits
        found = model(ids).logits[..., : expected.shape[-1]]
    assert_sums_agree(found, expected, terms_of(model))


def test_nothing_is_left_of_a_text_model(tiny_llm_dir: Path) -> None:
    assert left_behind(tiny_llm_dir) == ""
