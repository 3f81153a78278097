"""New rows as parameters of their own: the same model, the same step and the same files as with whole matrices."""

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tolerances import error_of
from torch import Tensor
from toy_adapters import rows_of
from toy_models import BOI, CODES, OFFSET, toy_model

from unified import UnifiedForCausalLM
from unified.models.new_rows import new_row_ids

MODELS = [
    {"backbone": "llama"},
    {"backbone": "qwen2", "tied": False},
    {"backbone": "llama", "tied": False, "image_order": "raster"},
    {"backbone": "gemma2"},
]
NEW = [BOI, BOI + 1, BOI + 2, *range(OFFSET, OFFSET + CODES)]


@pytest.fixture(params=MODELS, ids=lambda settings: "-".join(map(str, settings.values())))
def pair(request: pytest.FixtureRequest) -> tuple[UnifiedForCausalLM, UnifiedForCausalLM]:
    """A model, and the same one with new rows apart."""
    model = toy_model(**request.param)
    apart = copy.deepcopy(model)
    apart.separate_new_rows()
    return model, apart


def loss_of(model: UnifiedForCausalLM) -> Tensor:
    batch = rows_of(model)
    loss: Tensor = model(**batch, labels=batch["input_ids"].where(batch["attention_mask"] == 1, -100)).loss
    return loss


def test_what_learns_is_rows(pair: tuple[UnifiedForCausalLM, UnifiedForCausalLM]) -> None:
    model, apart = pair
    width, ids = model.config.text_config.hidden_size, new_row_ids(model.config)
    found = {name: tuple(p.shape) for name, p in apart.named_parameters() if "new_rows" in name}
    assert found == {f"model.new_rows.{matrix}.values": (len(rows), width) for matrix, rows in ids.items()}
    whole = {name for name, p in model.named_parameters() if len(p) == model.config.vocabulary.size}
    others = {name for name, _ in model.named_parameters()} - whole
    assert {name for name, _ in apart.named_parameters()} == others | set(found)
    assert len(whole) == len(ids)
    scales_untied = not model.config.tie_word_embeddings and model.config.image_order == "scales"
    assert len(ids["embed_tokens"]) == (3 if scales_untied else len(NEW))


def test_a_step_is_that_of_the_matrices(pair: tuple[UnifiedForCausalLM, UnifiedForCausalLM]) -> None:
    model, apart = (each.train() for each in pair)
    losses = [loss_of(each) for each in (model, apart)]
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(*losses, rtol=1e-5, atol=error_of(3000))
    matrices = {"embed_tokens": model.get_input_embeddings().weight, "lm_head": model.lm_head.weight}
    for matrix, ids in new_row_ids(model.config).items():
        found = apart.model.new_rows[matrix].values.grad
        assert found.shape[0] == len(ids) and found.any()
        torch.testing.assert_close(found, matrices[matrix].grad[ids], rtol=1e-3, atol=error_of(3000))
    expected = dict(model.named_parameters())
    for name, parameter in apart.named_parameters():
        if "new_rows" not in name:
            torch.testing.assert_close(parameter.grad, expected[name].grad, rtol=1e-3, atol=error_of(3000), msg=name)


def test_the_whole_matrix_is_current_shares_memory_and_leads_to_the_rows(
    pair: tuple[UnifiedForCausalLM, UnifiedForCausalLM],
) -> None:
    """TRL's trainers multiply by it; an engine may write parameters through `.data`, without a new version."""
    model, apart = pair
    for matrix, layer in (("embed_tokens", apart.get_input_embeddings()), ("lm_head", apart.get_output_embeddings())):
        before, rows = layer.weight.detach().clone(), apart.model.new_rows
        values = (rows[matrix] if matrix in rows else rows["embed_tokens"]).values
        values.data += 1
        weight = layer.weight
        ids = layer.token_rows.ids
        assert weight.data_ptr() == layer.table.data_ptr() and layer.bias is None
        assert torch.equal(weight[ids], before[ids] + 1)
        text = torch.ones(len(weight), dtype=torch.bool).index_fill(0, ids, False)
        assert torch.equal(weight[text], before[text])
        (gradient,) = torch.autograd.grad((weight * torch.arange(len(weight))[:, None]).sum(), values)
        assert torch.equal(gradient, ids[:, None].expand_as(gradient).to(gradient))
        assert not layer.table.requires_grad


def test_logits_and_states_are_the_model_s(pair: tuple[UnifiedForCausalLM, UnifiedForCausalLM]) -> None:
    model, apart = pair
    batch = rows_of(model)
    assert torch.equal(apart(**batch).logits, model(**batch).logits)


@pytest.mark.parametrize("inside", [torch.no_grad, torch.inference_mode])
def test_looking_on_changes_nothing_for_the_next_step(inside: type) -> None:
    model = toy_model().train()
    model.separate_new_rows()
    first = loss_of(model)
    with inside():
        model(**rows_of(model))  # between forward and backward
        assert model.get_output_embeddings().weight.shape[0] == OFFSET + CODES
    first.backward()
    assert model.model.new_rows["embed_tokens"].values.grad.any()


def test_files_are_those_of_whole_matrices(
    pair: tuple[UnifiedForCausalLM, UnifiedForCausalLM], tmp_path: Path
) -> None:
    model, apart = pair
    with torch.no_grad():
        for part in apart.model.new_rows.values():
            part.values += 1
    model.save_pretrained(tmp_path / "model")
    apart.save_pretrained(tmp_path / "apart")
    stored, expected = (load_file(tmp_path / name / "model.safetensors") for name in ("apart", "model"))
    assert stored.keys() == expected.keys()
    for matrix, ids in new_row_ids(model.config).items():
        name = model.embedding_name if matrix == "embed_tokens" else "lm_head.weight"
        changed = (stored.pop(name) != expected.pop(name)).all(dim=1)
        assert changed.nonzero().squeeze(1).tolist() == sorted(ids)
    assert all(torch.equal(value, expected[name]) for name, value in stored.items())
    loaded = UnifiedForCausalLM.from_pretrained(tmp_path / "apart")
    assert torch.equal(loaded(**rows_of(model)).logits, apart(**rows_of(model)).logits)
    assert torch.equal(apart.get_output_embeddings().weight, loaded.lm_head.weight)


@pytest.mark.parametrize("shards", [1, 3])
def test_files_load_into_rows_apart_as_a_resumed_run_loads_them(
    pair: tuple[UnifiedForCausalLM, UnifiedForCausalLM], shards: int, tmp_path: Path
) -> None:
    model, apart = pair
    with torch.no_grad():
        model.lm_head.weight += 1
        model.get_input_embeddings().weight += 0 if model.config.tie_word_embeddings else 1
    model.save_pretrained(tmp_path)
    state = list(load_file(tmp_path / "model.safetensors").items())
    for shard in range(shards):
        apart.load_state_dict(dict(state[shard::shards]), strict=shards == 1)
    assert torch.equal(apart(**rows_of(model)).logits, model(**rows_of(model)).logits)
    own = apart.state_dict()
    apart.load_state_dict(own)  # what DeepSpeed and FSDP keep of a model


def test_a_copy_has_rows_of_its_own(pair: tuple[UnifiedForCausalLM, UnifiedForCausalLM]) -> None:
    _, apart = pair
    twin = copy.deepcopy(apart)
    with torch.no_grad():
        for part in twin.model.new_rows.values():
            part.values += 1
    batch = rows_of(apart)
    assert not torch.allclose(twin(**batch).logits, apart(**batch).logits, atol=1e-3)
    layer = twin.get_output_embeddings()
    assert layer.token_rows in list(twin.model.new_rows.values()) and layer.weight.data_ptr() == layer.table.data_ptr()
    assert layer.table.data_ptr() != apart.get_output_embeddings().table.data_ptr()


def test_matrices_are_cast_with_the_model_and_ddp_skips_them() -> None:
    for tied in (True, False):
        model = toy_model(tied=tied)
        model.separate_new_rows()
        skipped = model._ddp_params_and_buffers_to_ignore
        buffers = {name for name, _ in model.named_buffers() if "vq_model" not in name and "rotary" not in name}
        assert buffers and buffers <= skipped
        model.to(torch.bfloat16)
        assert model.get_output_embeddings().weight.dtype == model.get_input_embeddings().table.dtype == torch.bfloat16
        assert model.dtype == torch.bfloat16
        model.tie_weights()
        assert model(input_ids=torch.tensor([[3, 5]])).logits.dtype == torch.bfloat16
