"""QLoRA on bitsandbytes' CPU backend: it trains what LoRA trains, draws meanwhile, its adapter fits the whole base."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import ROOT, load_script
from safetensors.torch import load_file
from toy_models import input_image, output_image, random_codes, toy_model
from toys import make_tokenizer, make_vq, write_toy_rows
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from unified import ImageSampling, UnifiedConfig, UnifiedForCausalLM, draw
from unified.checkpoints.extension import extend
from unified.checkpoints.loading import load
from unified.checkpoints.quantization import quantization
from unified.training.arguments import UnifiedTrainingArguments
from unified.training.quantized import check_quantized
from unified.training.tuning import prepare

pytest.importorskip("bitsandbytes", reason="the extra quantized is not installed")
pytestmark = pytest.mark.filterwarnings("ignore:MatMul8bitLt:UserWarning", "ignore:_check_is_size:FutureWarning")


def arguments(tmp_path: Path, positions: str, **more: object) -> UnifiedTrainingArguments:
    return UnifiedTrainingArguments(
        output_dir=str(tmp_path), tuning="lora", lora_positions=positions, lora_rank=4, use_cpu=True, **more
    )


@pytest.mark.parametrize("positions", ["all", "image_tokens", "split_ranks"])
@pytest.mark.parametrize("bits", ["4bit", "8bit"])
def test_gradients_are_those_of_rounded_layers(bits: str, positions: str, tmp_path: Path) -> None:
    """Of 4 bit those of a whole model with the rounded values; of 8 bit near them, as inputs are rounded too."""
    toy_model(hidden_size=64, tied=True).save_pretrained(tmp_path)
    small = UnifiedForCausalLM.from_pretrained(tmp_path, **quantization(bits, torch.device("cpu")))
    whole = UnifiedForCausalLM.from_pretrained(tmp_path)
    if bits == "4bit":
        import bitsandbytes

        for name, layer in small.named_modules():
            if type(layer).__module__.startswith("bitsandbytes"):
                exact = bitsandbytes.functional.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
                whole.get_submodule(name).weight.data = exact.float()
    ids = torch.tensor([[5, 6, *output_image(random_codes(whole, 1)[0]), 7, *input_image(whole), 8]])
    gradients = []
    for model in (small, whole):
        torch.manual_seed(0)
        adapted = prepare(model, arguments(tmp_path, positions)).train()
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02)
        adapted(ids, labels=ids, image_codes=random_codes(whole, 1, 1)).loss.backward()
        gradients.append({n: p.grad for n, p in adapted.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys() and len(gradients[0]) > 20
    scale = max(float(g.abs().max()) for g in gradients[1].values())
    for name, gradient in gradients[1].items():
        difference = float((gradients[0][name] - gradient).abs().max()) / scale
        assert difference < (1e-3 if bits == "4bit" else 0.2), name


@pytest.mark.parametrize("positions", ["all", "image_tokens"])
def test_two_steps_of_the_recipe(
    positions: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_base: Callable[[Path], Path]
) -> None:
    base = make_base(tmp_path)
    rows = write_toy_rows(tmp_path / "rows.parquet", "ddat", UnifiedConfig.from_pretrained(base).vq_fingerprint)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    out = tmp_path / "out"
    command = ["sft.py", "--config", ROOT / "recipes/configs/tiny.yaml", "--model", base, "--train_files", rows]
    command += ["--eval_files", rows, "--eval_strategy", "steps", "--eval_steps", 1, "--sample_prompts", "a cat"]
    command += ["--tuning", "lora", "--quantize", "4bit", "--lora_positions", positions, "--output_dir", out]
    monkeypatch.setattr(sys, "argv", list(map(str, [*command, "--learning_rate", 0.01])))
    load_script("recipes/sft.py").main()
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    assert len([entry for entry in history if "image_loss" in entry]) == 2
    assert any(bool(v.any()) for k, v in load_file(out / "adapter_model.safetensors").items() if "lora_B" in k)
    assert len(list((out / "samples").glob("*.png"))) == 2 and "| quantize | 4bit |" in (out / "README.md").read_text()
    model, _ = load(out, "cpu")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    small, processor = load(out, "cpu", quantize="4bit")  # and in use, too: layers in 4 bit, LoRA beside them
    kept = {name for name, layer in small.named_modules() if type(layer).__module__.startswith("bitsandbytes")}
    assert kept and all("language_model.layers" in name for name in kept)
    loras = [value for name, value in small.named_parameters() if "lora_" in name]
    assert loras and {value.dtype for value in loras} == {torch.float32}
    assert draw(small, processor, ["a cat"], ImageSampling(), seed=0)[0].size == (16, 16)
    with pytest.raises(ValueError, match="quantize '2bit'; choose from 4bit, 8bit"):
        load(out, "cpu", quantize="2bit")


@pytest.fixture
def make_base() -> Callable[[Path], Path]:
    """A checkpoint whose layers are wide enough for a block of 4 bit."""

    def make(folder: Path) -> Path:
        tokenizer = make_tokenizer()
        sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
        ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
        config = LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **sizes, **ids)
        LlamaForCausalLM(config).save_pretrained(folder / "llm")
        tokenizer.save_pretrained(folder / "llm")
        make_vq().save_pretrained(folder / "vq")
        extend(folder / "llm", folder / "vq", folder / "base")
        return folder / "base"

    return make


def test_what_cannot_be_quantized_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="tuning full trains them; use lora"):
        check_quantized("4bit", UnifiedTrainingArguments(output_dir=str(tmp_path), use_cpu=True))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="ZeRO-3 and FSDP part the layers"):
        check_quantized("4bit", arguments(tmp_path, "all"))
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    monkeypatch.setattr("unified.checkpoints.quantization.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'unified-ar\[quantized\]'"):
        check_quantized("8bit", arguments(tmp_path, "all"))
    monkeypatch.undo()
    assert isinstance(quantization("8bit", torch.device("cpu"))["quantization_config"], BitsAndBytesConfig)
