"""Saved and loaded again: the same logits from one file or many, and never with another image tokenizer."""

from pathlib import Path

import pytest
import torch
from toy_models import BACKBONES, output_image, random_codes, toy_model
from transformers import AutoModel, AutoModelForCausalLM

from unified import UnifiedForCausalLM, UnifiedModel
from unified.image_tokenizer.loading import load_vq


def logits_of(model: UnifiedForCausalLM) -> torch.Tensor:
    codes = random_codes(model, 1)[0]
    with torch.no_grad():
        return model(torch.tensor([[5, 6, *output_image(codes), 7]])).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_loaded_model_is_the_saved_one(backbone: str, tied: bool, tmp_path: Path) -> None:
    model = toy_model(backbone, tied, scale_loss_weights=[1.0, 2.0, 3.0], modality_stride=2)
    model.save_pretrained(tmp_path)
    loaded, details = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not details["missing_keys"] and not details["unexpected_keys"]
    assert torch.equal(logits_of(loaded), logits_of(model))
    assert (loaded.lm_head.weight is loaded.get_input_embeddings().weight) == tied
    assert loaded.config.scale_loss_weights == [1.0, 2.0, 3.0] and loaded.config.modality_stride == 2
    assert loaded.generation_config.eos_token_id == model.generation_config.eos_token_id


def test_shards_hold_the_same_model(tmp_path: Path) -> None:
    model = toy_model("llama", tied=True)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 1
    assert torch.equal(logits_of(UnifiedForCausalLM.from_pretrained(tmp_path)), logits_of(model))


def test_the_body_loads_without_the_head(tmp_path: Path) -> None:
    model = toy_model("qwen3", tied=False)
    model.save_pretrained(tmp_path)
    body = AutoModel.from_pretrained(tmp_path)
    assert isinstance(body, UnifiedModel)
    ids = torch.tensor([[5, *output_image(random_codes(model, 1)[0]), 6]])
    with torch.no_grad():
        assert torch.equal(body(ids).last_hidden_state, model.model(ids).last_hidden_state)


def test_half_precision_leaves_the_image_tokenizer_whole(tmp_path: Path) -> None:
    model = toy_model()
    model.save_pretrained(tmp_path)
    loaded = UnifiedForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert loaded.lm_head.weight.dtype == torch.bfloat16
    assert {p.dtype for p in loaded.model.vq_model.buffers()} == {torch.float32}
    assert torch.nn.functional.cosine_similarity(logits_of(loaded).float(), logits_of(model), dim=-1).min() > 0.99
    loaded.save_pretrained(tmp_path / "half")
    again = UnifiedForCausalLM.from_pretrained(tmp_path / "half", dtype="auto")
    assert again.dtype == again.lm_head.weight.dtype == again.model.dtype == torch.bfloat16
    assert {p.dtype for p in again.model.vq_model.buffers()} == {torch.float32}
    assert torch.equal(logits_of(again), logits_of(loaded))


@pytest.mark.parametrize("part", ["quantizer.embedding", "decoder.0"])
def test_another_image_tokenizer_is_an_error(part: str, tmp_path: Path) -> None:
    model = toy_model()
    with torch.no_grad():
        model.model.vq_model.get_submodule(part).weight.view(-1)[0].add_(0.01)
    model.save_pretrained(tmp_path)
    for load in (UnifiedForCausalLM.from_pretrained, AutoModelForCausalLM.from_pretrained):
        with pytest.raises(ValueError, match="fingerprint is .* restore the tokenizer's weights"):
            load(tmp_path)


def test_a_damaged_image_tokenizer_is_named(vq_dir: Path) -> None:
    path = vq_dir / "model.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ValueError, match=f"{path} is truncated or damaged .*; copy it again"):
        load_vq(vq_dir)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"scale_loss_weights": [1.0, 2.0]}, "2 values for 3 scales"),
        ({"modality_stride": 0}, "modality_stride 0 is below 1"),
    ],
)
def test_impossible_configurations_are_refused(settings: dict, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        toy_model(**settings)
