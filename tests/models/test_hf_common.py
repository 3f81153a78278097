"""What HF's common suites of models, generation and configurations assert, in tests of our own.

The table in docs/python.md says which of the suites' properties hold, and which are refused by design.
"""

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_models import EOS, OFFSET, input_image, output_image, random_codes, toy_model
from transformers import AutoConfig, DynamicCache, GenerationConfig

from unified import UnifiedConfig, UnifiedForCausalLM, UnifiedModel

TEXT = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
GREEDY: dict[str, Any] = {"do_sample": False, "max_new_tokens": 6, "generation_mode": "text", "eos_token_id": None}


@pytest.fixture(scope="module")
def model() -> UnifiedForCausalLM:
    return toy_model()


# --- configurations


def test_a_configuration_goes_through_json_files_and_dicts(tmp_path: Path) -> None:
    config = toy_model().config
    config.save_pretrained(tmp_path)
    again = UnifiedConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict() and again.to_json_string() == config.to_json_string()
    config.to_json_file(tmp_path / "one.json")
    assert UnifiedConfig.from_json_file(tmp_path / "one.json").to_dict() == config.to_dict()
    assert type(AutoConfig.from_pretrained(tmp_path)) is UnifiedConfig
    assert copy.deepcopy(config).to_dict() == config.to_dict()


def test_a_configuration_has_parts_that_load_alone(tmp_path: Path) -> None:
    config = toy_model().config
    config.save_pretrained(tmp_path)
    text = type(config.text_config).from_pretrained(tmp_path)
    assert text.hidden_size == config.text_config.hidden_size == config.get_text_config().hidden_size
    assert config.get_text_config(decoder=True) is config.text_config


def test_a_configuration_without_arguments() -> None:
    config = UnifiedConfig()
    assert config.text_config.model_type == "llama" and config.vocabulary.size > config.image_token_offset
    assert len(UnifiedConfig(num_labels=3).id2label) == 3
    assert UnifiedConfig.from_dict(config.to_dict(), modality_stride=2).modality_stride == 2


# --- models


@pytest.mark.parametrize("kind", [UnifiedForCausalLM, UnifiedModel])
def test_a_model_made_of_a_configuration_alone_is_saved_and_opened(
    kind: type[UnifiedForCausalLM], tmp_path: Path
) -> None:
    """Its tokenizer's fingerprint is recorded as it is saved; another tokenizer is refused by both classes."""
    config = toy_model().config
    config.vq_fingerprint = ""
    model = kind(config).eval()
    model.save_pretrained(tmp_path)
    again = kind.from_pretrained(tmp_path)
    assert torch.equal(again(TEXT)[0], model(TEXT)[0]) and again.config.vq_fingerprint == config.vq_fingerprint != ""
    config.vq_fingerprint = "beef"
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="the image tokenizer's fingerprint is .* but the checkpoint was made with"):
        kind.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="tp_plan: tensor parallelism is not supported, as images need whole"):
        kind.from_pretrained(tmp_path, tp_plan="auto")


@pytest.mark.parametrize("tied", [True, False])
def test_saved_and_loaded_it_is_the_same(tied: bool, tmp_path: Path) -> None:
    model = toy_model(tied=tied)
    expected = model(TEXT).logits
    model.save_pretrained(tmp_path)
    again = UnifiedForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(again(TEXT).logits, expected) and not again.training
    assert again.state_dict().keys() == model.state_dict().keys()
    base = UnifiedModel.from_pretrained(tmp_path).eval()
    assert torch.equal(base(TEXT).last_hidden_state, model.model(TEXT).last_hidden_state)
    assert again.generation_config.eos_token_id == EOS


def test_one_computation_is_as_the_next(model: UnifiedForCausalLM) -> None:
    assert torch.equal(model(TEXT).logits, model(TEXT).logits)
    assert next(iter(inspect.signature(model.forward).parameters)) == "input_ids" == model.main_input_name


def test_padding_on_the_left_changes_nothing(model: UnifiedForCausalLM) -> None:
    padded = torch.nn.functional.pad(TEXT, (3, 0))
    mask = torch.nn.functional.pad(torch.ones_like(TEXT), (3, 0))
    found = model(padded, attention_mask=mask).logits[:, 3:]
    torch.testing.assert_close(found, model(TEXT).logits, rtol=1e-4, atol=1e-3)


def test_a_batch_is_its_rows(model: UnifiedForCausalLM) -> None:
    rows = torch.cat([model(row[None]).logits for row in TEXT])
    torch.testing.assert_close(model(TEXT).logits, rows, rtol=1e-4, atol=1e-3)


def test_fewer_logits_are_the_last_ones(model: UnifiedForCausalLM) -> None:
    whole = model(TEXT).logits
    torch.testing.assert_close(model(TEXT, logits_to_keep=1).logits, whole[:, -1:], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(model(TEXT, logits_to_keep=torch.tensor([0, 2])).logits, whole[:, [0, 2]])


def test_matrices_can_be_read_and_replaced(model: UnifiedForCausalLM) -> None:
    model = copy.deepcopy(model)
    table = model.get_input_embeddings()
    assert model.get_output_embeddings().weight is table.weight
    other = torch.nn.Embedding(*table.weight.shape)
    model.set_input_embeddings(other)
    assert model.get_input_embeddings() is other
    model.tie_weights()
    assert model.lm_head.weight is other.weight


def test_all_that_trains_has_a_gradient_checkpointed_too() -> None:
    model = toy_model().train()
    ids = torch.tensor([[5, *output_image(random_codes(model, 1)[0]), 6]])
    found = []
    for checkpointed in (False, True):
        if checkpointed:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad})
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-4, msg=name)


def test_what_forward_cannot_honour_is_refused(model: UnifiedForCausalLM) -> None:
    with pytest.raises(ValueError, match=r"attention_mask is \(2, 1, 4, 4\); give \(batch, sequence\)"):
        model(TEXT, attention_mask=torch.ones(2, 1, 4, 4))
    with pytest.raises(ValueError, match="shift_labels: labels are shifted here; pass labels"):
        model(TEXT, labels=TEXT, shift_labels=TEXT)
    codes, pixels = random_codes(model, 1), torch.zeros(1, 3, 32, 32)
    with pytest.raises(ValueError, match="pixel_values and image_codes are both given"):
        model(torch.tensor([input_image(model)]), image_codes=codes, pixel_values=pixels)


# --- generation


def test_a_cached_step_is_the_uncached_one(model: UnifiedForCausalLM) -> None:
    cached = model.generate(TEXT, use_cache=True, **GREEDY)
    assert torch.equal(cached, model.generate(TEXT, use_cache=False, **GREEDY))
    assert cached.shape == (2, 10) and torch.equal(cached[:, :4], TEXT)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}, {"do_sample": True, "seed": 1}], ids=str)
def test_outputs_of_generation(settings: dict[str, Any]) -> None:
    model = toy_model()
    model.set_attn_implementation("eager")
    asked = {f"output_{name}": True for name in ("scores", "logits", "hidden_states", "attentions")}
    found = model.generate(TEXT, **GREEDY | settings, **asked, return_dict_in_generate=True)
    assert found.sequences.shape == (2, 10) and isinstance(found.past_key_values, DynamicCache)
    rows = 2 * settings.get("num_beams", 1)
    assert [step.shape for step in found.scores] == [(rows, OFFSET + 32)] * 6 == [step.shape for step in found.logits]
    assert len(found.hidden_states) == len(found.attentions) == 6
    assert found.hidden_states[0][-1].shape == (rows, 4, 32) and found.hidden_states[1][-1].shape == (rows, 1, 32)
    assert found.attentions[0][0].shape == (rows, 4, 4, 4) and found.attentions[1][0].shape == (rows, 4, 1, 5)
    plain = model.generate(TEXT, **GREEDY | settings)
    assert torch.equal(plain, found.sequences)
    scores = model.compute_transition_scores(
        found.sequences, found.scores, found.get("beam_indices"), normalize_logits=False
    )
    assert scores.shape == (2, 6) and scores.isfinite().all()


def test_from_a_cache_generation_goes_on(model: UnifiedForCausalLM) -> None:
    """HF's: 3 tokens, then 3 more from the returned cache, are 6 at once."""
    once = model.generate(TEXT, **GREEDY)
    first = model.generate(TEXT, **GREEDY | {"max_new_tokens": 3}, return_dict_in_generate=True)
    more = GREEDY | {"max_new_tokens": 3, "past_key_values": first.past_key_values}
    assert torch.equal(model.generate(first.sequences, **more), once)


def test_padded_prompts_are_answered_as_without(model: UnifiedForCausalLM) -> None:
    padded, mask = torch.nn.functional.pad(TEXT, (2, 0)), torch.nn.functional.pad(torch.ones_like(TEXT), (2, 0))
    found = model.generate(padded, attention_mask=mask, **GREEDY)
    assert torch.equal(found[:, 2:], model.generate(TEXT, **GREEDY))


def test_a_generation_configuration_is_saved_and_not_changed(model: UnifiedForCausalLM, tmp_path: Path) -> None:
    given = GenerationConfig(max_new_tokens=3, do_sample=False, pad_token_id=0)
    before, own = given.to_dict(), model.generation_config.to_dict()
    model.generate(TEXT, generation_config=given, generation_mode="image", seed=0)
    assert model.generate(TEXT, generation_config=given, generation_mode="text").shape[1] <= 7
    assert given.to_dict() == before and model.generation_config.to_dict() == own
    model.save_pretrained(tmp_path)
    stored = GenerationConfig.from_pretrained(tmp_path)
    assert stored.eos_token_id == model.generation_config.eos_token_id


def test_without_a_prompt_it_begins_with_the_bos_token(model: UnifiedForCausalLM) -> None:
    found = model.generate(bos_token_id=1, **GREEDY)
    assert found.shape == (1, 7) and found[0, 0] == 1
