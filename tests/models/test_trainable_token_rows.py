"""Trainable rows kept separate from their matrix, against PEFT's full copy of it."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils.other import TrainableTokensWrapper
from tolerances import error_of
from toy_adapters import MODELS, adapted, rows_of
from toy_models import BOI, OFFSET, toy_model

from unified.checkpoints.loading import merge_new_modules
from unified.models import modeling
from unified.models.trainable_token_rows import TrainableRows, look_up, split_rows


@pytest.fixture(params=MODELS, ids=lambda settings: settings["backbone"])
def model(request: pytest.FixtureRequest) -> PeftModel:
    return adapted(toy_model(**request.param))


def test_rows_and_matrix_are_peft_s_merged_matrix(model: PeftModel) -> None:
    core = model.get_base_model()
    for layer in (core.get_input_embeddings(), core.lm_head):
        table, rows = split_rows(layer)
        assert isinstance(layer, TrainableTokensWrapper) and rows is not None
        assert torch.equal(rows.merge_into(table), layer.weight) and not torch.equal(table, layer.weight)
        assert torch.equal(rows.merge_into_slice(OFFSET, table[OFFSET:]), layer.weight[OFFSET:])
        assert torch.equal(rows.merge_into_slice(BOI, table[BOI : BOI + 2]), layer.weight[BOI : BOI + 2])


def test_look_up_is_the_layer(model: PeftModel) -> None:
    layer = model.get_base_model().get_input_embeddings()
    ids = torch.tensor([[3, BOI, OFFSET + 5], [BOI, 7, 7]])
    assert torch.equal(look_up(layer, ids), layer(ids))


@pytest.mark.parametrize("off", ["disabled", "merged", "plain"])
def test_without_an_adapter_there_is_one_matrix(model: PeftModel, off: str) -> None:
    core, ids = model.get_base_model(), torch.tensor([[3, BOI, OFFSET + 5]])
    if off == "merged":
        for layer in (core.get_input_embeddings(), core.lm_head):
            layer.token_adapter.merge()
    elif off == "plain":
        core = toy_model()
    with model.disable_adapter() if off == "disabled" else torch.no_grad():
        for layer in (core.get_input_embeddings(), core.lm_head):
            table, rows = split_rows(layer)
            assert rows is None and table.shape == (core.config.vocabulary.size, core.config.text_config.hidden_size)
        layer = core.get_input_embeddings()
        assert torch.equal(look_up(layer, ids), layer(ids))


@pytest.mark.parametrize("stride", [1, 3])
def test_a_step_is_the_one_with_peft_s_matrix(model: PeftModel, stride: int, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = rows_of(model.get_base_model())
    model.get_base_model().config.modality_stride = stride
    model.train()
    found = []
    for _ in range(2):
        model.zero_grad()
        loss = model(**batch, labels=batch["input_ids"].where(batch["attention_mask"] == 1, -100)).loss
        loss.backward()
        found.append((loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
        monkeypatch.setattr(modeling, "look_up", lambda layer, ids: layer(ids))
        monkeypatch.setattr(modeling, "split_rows", lambda layer: (layer.weight, None))
    assert any("trainable_tokens_delta" in name for name in found[0][1])
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=error_of(3000))


@pytest.mark.parametrize("made", ["plain", "new", "loaded", "merged"])
@pytest.mark.parametrize("tied", [True, False])
def test_asking_for_the_output_matrix_changes_nothing(made: str, tied: bool, tmp_path: Path) -> None:
    """TRL asks for the matrix and reads that it has no bias; nothing of the module is written meanwhile."""
    model = toy_model(tied=tied)
    if made != "plain":
        model = adapted(model)
    if made == "loaded":
        model.save_pretrained(tmp_path)
        model = PeftModel.from_pretrained(toy_model(tied=tied), tmp_path)
    core = model.get_base_model() if isinstance(model, PeftModel) else model
    if made == "merged":
        core = merge_new_modules(model)
    before = dict(vars(core.lm_head))
    matrix = core.get_output_embeddings()
    assert matrix is core.lm_head and vars(matrix) == before
    assert matrix.bias is None and isinstance(matrix, TrainableTokensWrapper) == (made in ("new", "loaded"))
    assert not [name for name in core.state_dict() if name.endswith("bias") and "lm_head" in name]


def test_rows_of_another_dtype_take_the_matrix_s() -> None:
    rows = TrainableRows(torch.tensor([1]), torch.ones(1, 2))
    assert rows.merge_into(torch.zeros(3, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")  # PEFT's, before it is refused
@pytest.mark.parametrize("tied", [True, False])
def test_a_lora_of_the_output_matrix_is_refused(tied: bool) -> None:
    """Losses multiply by the matrix itself: its update would get no gradient."""
    config = LoraConfig(r=4, target_modules=["q_proj", "lm_head"], task_type="CAUSAL_LM")
    with pytest.raises(ValueError, match="of lm_head would not be trained.* leave lm_head out of target_modules"):
        get_peft_model(toy_model(tied=tied), config)
