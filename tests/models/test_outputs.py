"""Outputs of `forward` as HF's models give them, and matrices whose rows are the codes' own."""

import pytest
import torch
from test_generation import MODES
from toy_models import BOI, OFFSET, output_image, random_codes, toy_model

from unified import UnifiedForCausalLM


@pytest.fixture(params=MODES, ids=lambda mode: "-".join(mode.values()))
def model(request: pytest.FixtureRequest) -> UnifiedForCausalLM:
    return toy_model(**request.param)


def ids_of(model: UnifiedForCausalLM) -> torch.Tensor:
    return torch.tensor([[5, 6, *output_image(random_codes(model, 1)[0]), 7]])


def test_hidden_states_of_every_layer(model: UnifiedForCausalLM) -> None:
    ids = ids_of(model)
    plain = model(ids)
    assert plain.hidden_states is None and plain.attentions is None
    for found in (model(ids, output_hidden_states=True), model.model(ids, output_hidden_states=True)):
        assert len(found.hidden_states) == model.config.text_config.num_hidden_layers + 1
        assert {tuple(states.shape) for states in found.hidden_states} == {(1, ids.shape[1], 32)}
    assert torch.equal(found.hidden_states[-1], found.last_hidden_state)
    with_loss = model(ids, labels=ids, output_hidden_states=True)
    assert torch.equal(with_loss.hidden_states[-1], found.last_hidden_state) and with_loss.loss > 0
    model.config.output_hidden_states = True
    assert torch.equal(model(ids).hidden_states[-1], found.last_hidden_state)
    assert model(ids, output_hidden_states=False).hidden_states is None


def test_every_layers_states_are_where_the_last_ones_are() -> None:
    """The state of the position that scores an image id is, in all layers, that of the image's position."""
    model = toy_model()
    ids, caught = ids_of(model), []
    model.model.language_model.layers[0].register_forward_hook(lambda module, inputs, output: caught.append(output))
    found = model(ids, output_hidden_states=True).hidden_states[1]
    own = caught[0] if isinstance(caught[0], torch.Tensor) else caught[0][0]
    assert torch.equal(found[:, 2:23], own[:, 3:24]) and torch.equal(found[:, 24], own[:, 24])


def test_attentions_of_the_eager_implementation(model: UnifiedForCausalLM) -> None:
    ids = ids_of(model)
    model.set_attn_implementation("eager")
    found = model(ids, output_attentions=True).attentions
    assert {tuple(layer.shape) for layer in found} == {(1, 4, ids.shape[1], ids.shape[1])} and len(found) == 2
    for layer in found:
        torch.testing.assert_close(layer.sum(dim=-1), torch.ones_like(layer[..., 0]), rtol=1e-3, atol=1e-3)


def test_attentions_of_another_are_refused() -> None:
    model = toy_model()
    with pytest.raises(
        ValueError, match=r"attn_implementation sdpa computes none; .*set_attn_implementation\('eager'\)"
    ):
        model(ids_of(model), output_attentions=True)
    with pytest.raises(ValueError, match="sdpa computes none"):
        model.generate(torch.tensor([[5]]), max_new_tokens=2, output_attentions=True, return_dict_in_generate=True)


def test_tuples_hold_the_same(model: UnifiedForCausalLM) -> None:
    ids = ids_of(model)
    for part in (model, model.model):
        settings = {"output_hidden_states": True, "use_cache": False}
        expected = part(ids, **settings).to_tuple()
        found = part(ids, return_dict=False, **settings)
        assert isinstance(found, tuple) and len(found) == len(expected) == 2
        assert torch.equal(found[0], expected[0])
    loss = model(ids, labels=ids).loss
    assert torch.equal(model(ids, labels=ids, return_dict=False)[0], loss)
    model.config.return_dict = False
    assert isinstance(model(ids), tuple) and torch.equal(model(ids, labels=ids)[0], loss)
    assert model.generate(ids[:, :2], max_new_tokens=2, do_sample=False).shape[1] >= 3


def test_rows_of_codes_stay() -> None:
    model = toy_model()
    size, before = model.config.vocabulary.size, model.lm_head.weight.clone()
    for given in ({"new_num_tokens": 64}, {"new_num_tokens": size + 1}, {"pad_to_multiple_of": 64}):
        with pytest.raises(ValueError, match=f"the last 32 of the {size} are those of image codes"):
            model.resize_token_embeddings(**given)
    for same in ({}, {"new_num_tokens": size}, {"pad_to_multiple_of": 32}):
        assert model.resize_token_embeddings(**same) is model.get_input_embeddings()
    assert torch.equal(model.lm_head.weight, before) and model.config.text_config.vocab_size == size
    assert size == OFFSET + 32 and BOI < OFFSET
