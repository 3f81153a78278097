"""Weights that a folder lacks: every way of loading names them instead of leaving layers random."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import error_of
from conftest import load_script
from safetensors.torch import load_file, save_file
from toy_models import toy_model
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPConfig,
    CLIPModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from unified import UnifiedForCausalLM, UnifiedModel, VQModel
from unified.checkpoints.extension import extend
from unified.checkpoints.loading import load
from unified.evaluation.detector import DetectorConfig, SceneDetector
from unified.evaluation.preference_scorers import ClipScorer
from unified.image_tokenizer.loading import load_vq
from unified.training.arguments import UnifiedTrainingArguments
from unified.training.tuning import continue_lora


def drop(folder: Path, word: str, file: str = "model.safetensors") -> int:
    """Take the weights with `word` in their names out of a folder's file; returns how many there were."""
    weights = load_file(folder / file)
    gone = [name for name in weights if word in name]
    save_file({n: w for n, w in weights.items() if n not in gone}, folder / file, {"format": "pt"})
    assert gone
    return len(gone)


@pytest.mark.parametrize("word", ["language_model", "image_embedding", "vq_model.decoder"])
@pytest.mark.parametrize("kind", [UnifiedForCausalLM, UnifiedModel, AutoModelForCausalLM, AutoModel])
def test_a_checkpoint_without_some_of_its_weights(kind: type[PreTrainedModel], word: str, tmp_path: Path) -> None:
    toy_model(tied=False).save_pretrained(tmp_path)
    count = drop(tmp_path, word)
    with pytest.raises(ValueError, match=rf"{tmp_path} lacks {count} of the model's weights, .*{word}"):
        kind.from_pretrained(tmp_path)


def test_an_output_matrix_of_its_own_may_not_be_missing(tmp_path: Path) -> None:
    """Where it is tied the file never has it; where it is not, the model would answer with random rows."""
    toy_model(tied=True).save_pretrained(tmp_path / "tied")
    assert "lm_head.weight" not in load_file(tmp_path / "tied" / "model.safetensors")
    UnifiedForCausalLM.from_pretrained(tmp_path / "tied")
    toy_model(tied=False).save_pretrained(tmp_path / "untied")
    drop(tmp_path / "untied", "lm_head")
    with pytest.raises(ValueError, match="lacks 1 of the model's weights, lm_head.weight"):
        UnifiedForCausalLM.from_pretrained(tmp_path / "untied")


def test_shards_are_looked_through(tmp_path: Path) -> None:
    toy_model().save_pretrained(tmp_path, max_shard_size="100KB")
    shard = next(path for path in sorted(tmp_path.glob("model-*")) if any("layers.1" in n for n in load_file(path)))
    count = drop(tmp_path, "layers.1", shard.name)
    with pytest.raises(ValueError, match=f"lacks {count} of the model's weights"):
        UnifiedForCausalLM.from_pretrained(tmp_path)


def test_draw_fails_in_one_line(tiny_llm_dir: Path, vq_dir: Path, tmp_path: Path) -> None:
    extend(tiny_llm_dir, vq_dir, tmp_path / "model")
    drop(tmp_path / "model", "language_model")
    said = error_of("draw", "a cat", "--model", tmp_path / "model", "--out", tmp_path / "x.png")
    assert "of the model's weights, " in said and not (tmp_path / "x.png").exists()


def test_a_tokenizer_and_a_detector(vq_dir: Path, tmp_path: Path) -> None:
    drop(vq_dir, "decoder")
    for load_it in (VQModel.from_pretrained, load_vq):
        with pytest.raises(ValueError, match=f"{vq_dir} lacks .* of the model's weights, decoder"):
            load_it(vq_dir)
    config = DetectorConfig(class_names=["cat"], colour_names=["red"], channels=[32, 32], num_blocks=[1, 1])
    SceneDetector(config).save_pretrained(tmp_path / "detector")
    drop(tmp_path / "detector", "head")
    with pytest.raises(ValueError, match="lacks .* of the model's weights, head"):
        SceneDetector.from_pretrained(tmp_path / "detector")


def test_a_text_model(tiny_llm_dir: Path, vq_dir: Path, tmp_path: Path) -> None:
    drop(tiny_llm_dir, "layers.1")
    with pytest.raises(ValueError, match=f"{tiny_llm_dir} lacks 9 of the model's weights, model.layers.1"):
        extend(tiny_llm_dir, vq_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="lacks 9 of the model's weights"):
        load_script("data_prep/replay_text.py").load(str(tiny_llm_dir), torch.float32)


def test_a_base_that_language_is_compared_with(
    tiny_llm_dir: Path, toy_checkpoint: Path, tmp_path: Path, run_script: Callable, capsys: pytest.CaptureFixture[str]
) -> None:
    drop(tiny_llm_dir, "layers.1")
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}\n')
    flags = ["--model", toy_checkpoint, "--llm", tiny_llm_dir, "--chats", chats]
    assert run_script("eval/language.py", *flags) == 2
    assert "lacks 9 of the model's weights" in capsys.readouterr().err


def test_a_clip_model(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    layers = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    texts, pictures = {**layers, "vocab_size": 400}, {**layers, "image_size": 8, "patch_size": 4}
    CLIPModel(CLIPConfig(text_config=texts, vision_config=pictures, projection_dim=8)).save_pretrained(tmp_path)
    drop(tmp_path, "visual_projection")
    with pytest.raises(ValueError, match="lacks 1 of the model's weights, visual_projection"):
        ClipScorer(str(tmp_path))


@pytest.mark.parametrize("word", ["layers.1", "lora_B", "image_embedding", "trainable_tokens"])
def test_an_adapter(word: str, image_adapter: Path, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for path in image_adapter.glob("adapter_*"):
        (adapter / path.name).write_bytes(path.read_bytes())
    base = load(adapter)[0]
    count = drop(adapter, word, "adapter_model.safetensors")
    whole = word in ("image_embedding", "trainable_tokens")  # PEFT stops at the first
    lacks = "lacks the adapter's weight" if whole else f"lacks {count} of the adapter's weights,"
    with pytest.raises(ValueError, match=rf"{adapter} {lacks} .*{word}"):
        load(adapter)
    arguments = UnifiedTrainingArguments("unused", tuning="lora", use_cpu=True, report_to="none")
    model = UnifiedForCausalLM(base.config)
    with pytest.raises(ValueError, match=lacks):
        continue_lora(model, arguments, adapter)
