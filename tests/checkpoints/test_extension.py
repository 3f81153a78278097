"""Vocabulary extension of a text LLM: text logits do not change, and the folder loads with the Auto classes."""

import datetime
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tolerances import assert_sums_agree, terms_of
from torch import Tensor
from toy_adapters import adapted
from toy_models import BACKBONES, make_lively, toy_backbone
from toys import CHAT_TEMPLATE, make_tokenizer, make_vq, save_llm
from transformers import (
    AutoModelForCausalLM,
    AutoProcessor,
    AutoTokenizer,
    LlamaConfig,
    PhiConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from unified import UnifiedConfig, UnifiedForCausalLM, UnifiedProcessor, VQConfig, VQModel
from unified.checkpoints.backbone_probe import check_backbone
from unified.checkpoints.extension import extend, join, template_findings
from unified.checkpoints.loading import load
from unified.models.vocabulary import SPECIAL_TOKENS

TEXT = torch.tensor([[5, 9, 30, 7, 7, 12, 41, 3, 25, 18, 33, 8, 50, 6]])  # longer than Gemma's window


def backbone_of(name: str, tokenizer: PreTrainedTokenizerFast, tied: bool) -> PreTrainedModel:
    torch.manual_seed(0)
    config = toy_backbone(name, vocab_size=len(tokenizer), tie_word_embeddings=tied)
    backbone = AutoModelForCausalLM.from_config(config).eval()
    make_lively(backbone)
    return backbone


@torch.no_grad()
def logits_of(model: PreTrainedModel, input_ids: Tensor = TEXT) -> Tensor:
    return model(input_ids).logits


def output_image(codes: Tensor, config: UnifiedConfig) -> list[int]:
    """Ids of an output image of `codes` (L,) after a text token."""
    return [5, config.boi_token_id, *(codes + config.image_token_offset).tolist(), config.eoi_token_id, 7]


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("backbone_name", BACKBONES)
def test_text_is_scored_as_before(
    backbone_name: str, tied: bool, tiny_tokenizer: PreTrainedTokenizerFast, tiny_vq: VQModel
) -> None:
    old_rows = len(tiny_tokenizer)
    backbone = backbone_of(backbone_name, tiny_tokenizer, tied)
    expected = logits_of(backbone)
    model = join(backbone, tiny_vq, tiny_tokenizer)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    found = logits_of(model)
    assert found.shape[-1] == model.config.vocabulary.size == model.config.text_config.vocab_size
    assert_sums_agree(found[..., :old_rows], expected, terms_of(backbone))


def test_extended_and_loaded_again(tiny_llm_dir: Path, vq_dir: Path, tmp_path: Path) -> None:
    expected = logits_of(AutoModelForCausalLM.from_pretrained(tiny_llm_dir))
    model = extend(tiny_llm_dir, vq_dir, tmp_path / "out", image_positions="sequential")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    processor = AutoProcessor.from_pretrained(tmp_path / "out")
    assert isinstance(loaded, UnifiedForCausalLM) and isinstance(processor, UnifiedProcessor)
    assert_sums_agree(logits_of(loaded)[..., : expected.shape[-1]], expected, terms_of(loaded))
    chat = [{"role": "user", "content": "Draw"}, {"role": "assistant", "content": [{"type": "image"}]}]
    ids = torch.tensor([processor.encode_chat(chat, [[1, 2, 3, 4, 5]]).input_ids])
    assert torch.equal(logits_of(loaded, ids), logits_of(model, ids))
    assert loaded.config.image_positions == "sequential"
    assert loaded.model.vq_model.fingerprint() == VQModel.from_pretrained(vq_dir).fingerprint()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "vq"]


@pytest.mark.parametrize("positions", ["image_tokens", "after_image", "split_ranks"])
def test_what_extend_returns_takes_an_image_lora(
    positions: str, tiny_llm_dir: Path, vq_dir: Path, tmp_path: Path
) -> None:
    """The returned model does under an adapter of image positions what the checkpoint does, once it is loaded."""
    returned = extend(tiny_llm_dir, vq_dir, tmp_path / "out")
    loaded = UnifiedForCausalLM.from_pretrained(tmp_path / "out")
    image = torch.tensor([output_image(torch.arange(5), loaded.config)])
    before = logits_of(loaded, image)
    scores = []
    for model in (returned, loaded):
        torch.manual_seed(0)  # of the adapter's start
        outputs = logits_of(adapted(model, lora_positions=positions), image)
        assert torch.isfinite(outputs).all()
        scores.append(outputs)
    assert torch.equal(*scores) and not torch.allclose(scores[0], before, atol=1e-3)


def test_the_tokenizer_gains_three_special_tokens(tiny_llm_dir: Path, vq_dir: Path, tmp_path: Path) -> None:
    config = extend(tiny_llm_dir, vq_dir, tmp_path / "out").config
    before, after = (AutoTokenizer.from_pretrained(folder) for folder in (tiny_llm_dir, tmp_path / "out"))
    ids = [config.boi_token_id, config.eoi_token_id, config.image_pad_token_id]
    assert after.convert_tokens_to_ids(list(SPECIAL_TOKENS)) == ids
    assert len(after) == len(before) + 3 <= config.image_token_offset and config.image_token_offset % 64 == 0
    words = "a red apple <|im_end|>"
    assert after(words)["input_ids"] == before(words)["input_ids"]


def test_new_rows_spread_as_the_old_ones_do(tiny_tokenizer: PreTrainedTokenizerFast, tiny_vq: VQModel) -> None:
    backbone = backbone_of("llama", tiny_tokenizer, tied=False)
    old_rows = len(tiny_tokenizer)
    model = join(backbone, tiny_vq, tiny_tokenizer)
    for matrix in (model.lm_head.weight, model.get_input_embeddings().weight):
        mean = matrix[:old_rows].mean(dim=0)
        radius = (matrix[:old_rows] - mean).norm(dim=-1).mean()
        codes = matrix[model.config.image_token_offset :] - mean
        torch.testing.assert_close(codes.norm(dim=-1), radius.expand(len(codes)), atol=1e-4, rtol=1e-4)
        added = matrix[old_rows : model.config.image_token_offset]
        torch.testing.assert_close(added, mean.expand_as(added))
        # codes that look alike begin alike
        book = tiny_vq.quantizer.embedding.weight
        directions = torch.nn.functional.normalize(book - book.mean(dim=0), dim=-1)
        torch.testing.assert_close(codes @ codes.T / radius**2, directions @ directions.T, atol=1e-4, rtol=0)


def test_the_seed_decides_the_new_weights(tiny_llm_dir: Path, vq_dir: Path, tmp_path: Path) -> None:
    models = [extend(tiny_llm_dir, vq_dir, tmp_path / f"{i}", seed=seed) for i, seed in enumerate((1, 1, 2))]
    states = [{name: t for name, t in model.state_dict().items() if "vq_model" not in name} for model in models]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not torch.equal(states[0]["lm_head.weight"], states[2]["lm_head.weight"])


def test_image_states_begin_as_large_as_text(tiny_llm_dir: Path, vq_dir: Path, tmp_path: Path) -> None:
    model = extend(tiny_llm_dir, vq_dir, tmp_path / "out")
    codes = torch.arange(5)[None]
    with torch.no_grad():
        text = model.get_input_embeddings().weight[: model.config.boi_token_id].norm(dim=-1).mean()
        f_hat, first = model.first_scale(len(codes))
        output_states = torch.cat([first, model.next_scale(f_hat, codes[:, :1], 0)[1]], dim=1)
    assert (0.3 * text < output_states.norm(dim=-1)).all() and (output_states.norm(dim=-1) < 3 * text).all()


def test_an_existing_folder_is_left_alone(tiny_llm_dir: Path, vq_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match="out exists already; give --out a new folder"):
        extend(tiny_llm_dir, vq_dir, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_folders_need_a_model(tiny_llm_dir: Path, vq_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "config.json").write_text("{}")
    for llm, vq, words in (
        (tmp_path / "none", vq_dir, "--llm .*none holds no causal LM of transformers \\(no config.json\\)"),
        (tmp_path / "empty", vq_dir, "--llm .*empty holds no .*a config.json without model_type"),
        (vq_dir, vq_dir, "--llm .*vq holds no .*a model of type 'unified_vq'.*; give the folder of a text model"),
        (tiny_llm_dir, tmp_path / "none", "none holds no tokenizer \\(no config.json\\)"),
        (tiny_llm_dir, tiny_llm_dir, "holds no tokenizer \\(a model of type 'llama'\\)"),
    ):
        with pytest.raises(ValueError, match=words):
            extend(llm, vq, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_factor_that_the_backbone_does_not_use_is_refused(tiny_llm_dir: Path, vq_dir: Path, tmp_path: Path) -> None:
    path = tiny_llm_dir / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"logit_scale": 0.0625}))
    with pytest.raises(ValueError, match="backbone llama scores text in another way"):
        extend(tiny_llm_dir, vq_dir, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"layer_types": ["full_attention", "indexed_attention"]}, "layers of type indexed_attention"),
        ({"num_attention_heads": 0, "num_key_value_heads": 0, "head_dim": 8}, "no layers with attention"),
    ],
)
def test_a_backbone_without_attention_everywhere_is_refused(settings: dict[str, Any], words: str) -> None:
    config = LlamaConfig(num_hidden_layers=2)
    for name, value in settings.items():
        setattr(config, name, value)
    with pytest.raises(ValueError, match=words):
        check_backbone(config)


def test_a_head_with_a_bias_is_refused(tiny_tokenizer: PreTrainedTokenizerFast, tiny_vq: VQModel) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    backbone = AutoModelForCausalLM.from_config(PhiConfig(vocab_size=len(tiny_tokenizer), **sizes))
    with pytest.raises(ValueError, match="phi has an output matrix with a bias"):
        join(backbone, tiny_vq, tiny_tokenizer)


def test_a_tokenizer_with_tokens_behind_the_special_ones_is_refused(
    tiny_tokenizer: PreTrainedTokenizerFast, tiny_vq: VQModel
) -> None:
    backbone = backbone_of("llama", tiny_tokenizer, tied=True)
    tiny_tokenizer.add_tokens([*SPECIAL_TOKENS, "behind"])
    with pytest.raises(ValueError, match=r"has id \d+ after those of .*; use the tokenizer of a model"):
        join(backbone, tiny_vq, tiny_tokenizer)


def test_a_codebook_wider_than_the_backbone_is_refused(tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    wide = VQModel(VQConfig(image_size=16, channels=(32, 32), patch_nums=(1, 2), codebook_size=8, code_dim=33))
    with pytest.raises(ValueError, match="code_dim 33 exceeds the backbone's hidden size 32"):
        join(backbone_of("llama", tiny_tokenizer, tied=True), wide, tiny_tokenizer)


@pytest.mark.parametrize("padding", [0, 2, 50])
def test_special_tokens_begin_as_the_mean_of_words_where_matrices_are_padded(
    padding: int, tiny_tokenizer: PreTrainedTokenizerFast, tiny_vq: VQModel
) -> None:
    words = len(tiny_tokenizer)
    backbone = backbone_of("llama", tiny_tokenizer, tied=False)
    backbone.resize_token_embeddings(words + padding, mean_resizing=False)
    before = [m.weight.detach().clone() for m in (backbone.get_input_embeddings(), backbone.get_output_embeddings())]
    model = join(backbone, tiny_vq, tiny_tokenizer)
    special = list(model.config.vocabulary.special_ids)
    assert special == [words, words + 1, words + 2]
    for matrix, old in zip((model.get_input_embeddings(), model.lm_head), before, strict=True):
        mean = old[:words].mean(dim=0)
        torch.testing.assert_close(matrix.weight[special], mean.expand(3, -1))
        assert torch.equal(matrix.weight[:words], old[:words])
        assert torch.equal(matrix.weight[words + 3 : words + padding], old[words + 3 :])


CHATML_OF_A_BASE = {"eos_token": "<|pad|>"}  # as Qwen2.5's base models: a chat template, and eos `<|endoftext|>`


def extended(folder: Path, template: str, **tokens: str) -> tuple[UnifiedForCausalLM, UnifiedProcessor]:
    tokenizer = make_tokenizer()
    tokenizer.chat_template = template
    for name, token in tokens.items():
        setattr(tokenizer, name, token)
    make_vq().save_pretrained(folder / "vq")
    extend(save_llm(folder / "llm", tokenizer), folder / "vq", folder / "model")
    return load(folder / "model", device="cpu")


@pytest.mark.parametrize("tokens", [{}, CHATML_OF_A_BASE], ids=["instruct", "base"])
def test_generation_stops_at_the_end_that_is_trained(tmp_path: Path, tokens: dict[str, str]) -> None:
    model, processor = extended(tmp_path, CHAT_TEMPLATE, **tokens)
    chat = [{"role": "user", "content": "a cat"}, {"role": "assistant", "content": "Paris"}]
    end = processor.encode_chat(chat).labels[-2]  # a line break follows, which is not trained
    assert end == processor.end_token_id == processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    ends = model.generation_config.eos_token_id
    assert {end, processor.tokenizer.eos_token_id} <= set([ends] if isinstance(ends, int) else ends)


def test_the_date_is_that_of_the_checkpoint(tmp_path: Path) -> None:
    """Frozen when it is made; and `unified extend` says what it mended."""
    dated = "{{ strftime_now('%d %b %Y') }} " + CHAT_TEMPLATE
    _, processor = extended(tmp_path, dated)
    today = datetime.date.today().strftime("%d %b %Y")
    assert "strftime_now" not in processor.chat_template and today in processor.chat_template
    assert [finding.kind for finding in template_findings(tmp_path / "llm")] == ["date"]
    asked = processor.tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert asked.startswith(f"{today} <|im_start|>user")


def test_a_template_that_cannot_be_mended_is_refused_in_time(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="writes 1 of 2 contents"):
        extended(tmp_path, "{{ messages[0].content }}<|im_end|>")
    assert not (tmp_path / "model").exists()
