"""eval/language.py: a model compared with itself has not moved; one whose rows were disturbed has."""

from pathlib import Path
from types import ModuleType

import pytest
import torch
from conftest import load_script
from transformers import AutoModelForCausalLM, AutoTokenizer

from unified.extension import join
from unified.processing import UnifiedProcessor
from unified.vq_model import VQModel

CHAT = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello to you."}]


@pytest.fixture(scope="module")
def language() -> ModuleType:
    return load_script("eval/language.py")


def test_kl_is_zero_until_the_language_moves(language: ModuleType, tiny_llm_dir: Path, tiny_vq: VQModel) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_llm_dir).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llm_dir)
    tuned = join(AutoModelForCausalLM.from_pretrained(tiny_llm_dir), tiny_vq, tokenizer)
    processor = UnifiedProcessor.from_config(tokenizer, tuned.config)
    before, _ = language.compare(base, tuned, processor, CHAT)
    # what is left is the probability that the union gives to the new rows
    assert (before >= -1e-5).all()
    with torch.no_grad():
        tuned.get_input_embeddings().weight.add_(torch.randn(tuned.get_input_embeddings().weight.shape) * 0.5)
    after, _ = language.compare(base, tuned, processor, CHAT)
    assert after.mean() > before.mean() + 1e-3
