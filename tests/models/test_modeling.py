"""The contract of the model, with random backbones of five families: scored tokens, attention, padding, packing."""

import pytest
import torch
from tolerances import error_of
from torch import Tensor
from toy_models import BACKBONES, BOI, EOI, IMAGE_PAD, OFFSET, input_image, output_image, random_codes, toy_model
from transformers import LlamaForCausalLM

from unified import UnifiedForCausalLM
from unified.image_tokenizer.scales import scale_spans
from unified.models.image_embedding import grid_features
from unified.models.losses import soft_cap
from unified.models.sequence_layout import read_layout

MODES = [
    {"image_positions": "shared"},
    {"image_positions": "sequential"},
    {"image_order": "raster"},
]

SAME = error_of(1500)  # a toy's forward pass


def close(found: Tensor, expected: Tensor) -> bool:
    return torch.allclose(found, expected, atol=SAME)


def story(model: UnifiedForCausalLM, codes: Tensor | None = None) -> Tensor:
    """Ids (1, T): text, an output image, text, another output image, text."""
    codes = random_codes(model, 2) if codes is None else codes
    return torch.tensor([[5, 6, 7, *output_image(codes[0]), 8, 9, *output_image(codes[1]), 10, 11]])


@torch.no_grad()
def logits_of(model: UnifiedForCausalLM, input_ids: Tensor, **inputs: Tensor) -> Tensor:
    return model(input_ids, **inputs).logits


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_fused_log_probs_are_the_logits(backbone: str, tied: bool) -> None:
    """What TRL's trainers compute: `base_model`'s hidden states times the output matrix."""
    model = toy_model(backbone, tied)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied
    input_ids = story(model)
    with torch.no_grad():
        hidden = model.base_model(input_ids=input_ids).last_hidden_state[:, :-1]
        fused = soft_cap(hidden @ model.get_output_embeddings().weight.T, model.config.logit_cap).log_softmax(dim=-1)
    whole = logits_of(model, input_ids)[:, :-1].log_softmax(dim=-1)
    assert close(fused.gather(2, input_ids[:, 1:, None]), whole.gather(2, input_ids[:, 1:, None]))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_image_positions_score_their_own_token_and_text_the_next(backbone: str) -> None:
    model = toy_model(backbone)
    input_ids, body = story(model), model.model
    layout = read_layout(input_ids, model.config)
    with torch.no_grad():
        positions = layout.position_steps.cumsum(dim=1) - 1
        raw = body.run_backbone(body.embed(input_ids, layout), positions, layout.blocks, torch.ones_like(input_ids))
        rolled = body(input_ids).last_hidden_state[0]
    for index in range(1, input_ids.shape[1]):
        scoring = index if layout.is_output[0, index] else index - 1
        assert torch.equal(rolled[index - 1], raw.last_hidden_state[0, scoring]), index


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("mode", MODES[:2])
def test_a_scale_depends_on_the_scales_before_it_only(backbone: str, mode: dict) -> None:
    model = toy_model(backbone, **mode)
    codes, first = random_codes(model, 2), 4  # `first` is the index of the first image's first code
    before = logits_of(model, story(model, codes))[0]
    for start, stop in scale_spans(model.config.patch_nums):
        other = codes.clone()
        other[0, start:stop] = (other[0, start:stop] + 1) % 32
        after = logits_of(model, story(model, other))[0]
        scored = first + stop - 1  # logits before this score scales up to the changed one
        assert close(after[:scored], before[:scored])
        changed = (after - before).abs().amax(dim=-1)
        if stop < 21:  # no scale is predicted from the last one, so nothing depends on it
            assert (changed[scored : first + 21] > 1e-4).all() and changed[first + 21 :].max() > 1e-4
        else:
            assert changed.max() < 2e-5


def test_codes_in_raster_order_are_ordinary_tokens() -> None:
    model = toy_model(image_order="raster")
    codes = random_codes(model, 2)
    before = logits_of(model, story(model, codes))[0]
    for index in (0, 7, 15):
        other = codes.clone()
        other[0, index] = (other[0, index] + 1) % 32
        changed = (logits_of(model, story(model, other))[0] - before).abs().amax(dim=-1)
        assert changed[: 4 + index].max() < 1e-5 and (changed[4 + index :] > 1e-5).all()
    with torch.no_grad():
        rows = model.model.language_model(input_ids=story(model, codes)).last_hidden_state
    assert close(logits_of(model, story(model, codes)), rows @ model.lm_head.weight.T)


@pytest.mark.parametrize("mode", MODES[:2])
def test_positions_of_an_image_matter(mode: dict) -> None:
    """Equal codes everywhere still give different predictions at each position of a scale."""
    model = toy_model(**mode)
    codes = torch.full((2, model.config.image_length), 3)
    logits = logits_of(model, story(model, codes))[0, 3 : 3 + model.config.image_length]
    last = logits[-16:]
    assert torch.cdist(last, last)[~torch.eye(16, dtype=torch.bool)].min() > 1e-3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_packed_and_alone_are_the_same(backbone: str, mode: dict) -> None:
    model = toy_model(backbone, **mode)
    codes = random_codes(model, 2)
    documents = [[5, *output_image(codes[0]), 6], [7, 8, *output_image(codes[1]), 9, 10], [11, 12]]
    packed = torch.tensor([sum(documents, [0, 0])])
    ids = torch.tensor([[-1, -1] + [i for i, document in enumerate(documents) for _ in document]])
    found = logits_of(model, packed, attention_mask=(ids >= 0).long(), document_ids=ids)[0]
    for number, document in enumerate(documents):
        alone = logits_of(model, torch.tensor([document]))[0]
        assert close(found[ids[0] == number], alone), number


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_padding_changes_nothing(backbone: str, mode: dict) -> None:
    model = toy_model(backbone, **mode)
    input_ids = story(model)
    alone = logits_of(model, input_ids)[0]
    length = input_ids.shape[1]
    for left, right in ((3, 0), (0, 3), (2, 1)):
        padded = torch.nn.functional.pad(input_ids, (left, right), value=9)
        mask = torch.nn.functional.pad(torch.ones_like(input_ids), (left, right))
        assert close(logits_of(model, padded, attention_mask=mask)[0, left : left + length], alone)


@pytest.mark.parametrize("mode", MODES)
def test_input_images_as_pixels_equal_their_codes(mode: dict) -> None:
    model = toy_model(**mode)
    pixel_values = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    codes = model.model.vq_model.encode(pixel_values)
    assert len(codes.unique()) > 3
    row = torch.tensor([[5, *input_image(model), 6, *output_image(random_codes(model, 1)[0]), *input_image(model), 7]])
    found = logits_of(model, row, pixel_values=pixel_values)
    assert torch.equal(logits_of(model, row, image_codes=codes), found)
    swapped = logits_of(model, row, image_codes=codes.flip(0))
    assert not close(swapped[:, 2:], found[:, 2:]) and close(swapped[:, :1], found[:, :1])


def test_an_input_image_attends_to_itself_in_both_directions() -> None:
    model = toy_model()
    row = torch.tensor([[5, *input_image(model), 6]])
    codes = random_codes(model, 1)
    other = codes.clone()
    other[0, -1] = (other[0, -1] + 1) % 32  # a corner of the finest scale
    changed = logits_of(model, row, image_codes=other) - logits_of(model, row, image_codes=codes)
    assert (changed[0].abs().amax(dim=-1)[2:] > 1e-6).all() and changed[0, :2].abs().max() < 1e-6


@pytest.mark.parametrize("count", [0, 1, 3])
def test_placeholders_and_images_have_to_match(count: int) -> None:
    model = toy_model()
    row = torch.tensor([[5, *input_image(model), 6, *input_image(model)]])
    inputs = {"image_codes": random_codes(model, count)} if count else {}
    with pytest.raises(ValueError, match=f"32 image placeholders.*{count} images of 16 positions"):
        model(row, **inputs)
    with pytest.raises(ValueError, match="15 image placeholders"):
        model(torch.tensor([[5, *[IMAGE_PAD] * 15]]), image_codes=random_codes(model, 1))


def test_half_an_image_is_refused() -> None:
    with pytest.raises(ValueError, match="20 image ids are no multiple of the 21 codes of an image"):
        toy_model()(torch.tensor([[BOI, *[OFFSET] * 20, EOI]]))


@pytest.mark.parametrize("backbone", ["llama", "gemma3"])
def test_eager_attention_computes_what_sdpa_computes(backbone: str) -> None:
    model = toy_model(backbone)
    model.set_attn_implementation("sdpa")
    expected = logits_of(model, story(model))
    model.set_attn_implementation("eager")
    assert model.model.language_model.config._attn_implementation == "eager"
    assert close(logits_of(model, story(model)), expected)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("mode", MODES[::2])
def test_a_cache_continues_after_an_image(backbone: str, mode: dict) -> None:
    model = toy_model(backbone, **mode)
    input_ids = torch.cat([story(model), torch.arange(20, 32)[None]], dim=1)
    whole, prefix = logits_of(model, input_ids), story(model).shape[1]
    positions = read_layout(input_ids, model.config).position_steps.cumsum(dim=1) - 1
    with torch.no_grad():
        output = model(input_ids[:, :prefix], use_cache=True)
        for index in range(prefix, input_ids.shape[1]):
            now = slice(index, index + 1)
            cache = output.past_key_values
            output = model(input_ids[:, now], position_ids=positions[:, now], past_key_values=cache)
            assert close(output.logits[:, 0], whole[:, index]), index


def test_a_filled_cache_needs_positions() -> None:
    model = toy_model()
    cache = model(story(model), use_cache=True).past_key_values
    with pytest.raises(ValueError, match="with a filled cache position_ids cannot be derived"):
        model(torch.tensor([[5]]), past_key_values=cache)


def test_logits_can_be_computed_for_the_last_positions_only() -> None:
    model = toy_model()
    whole = logits_of(model, story(model))
    assert close(model(story(model), logits_to_keep=2).logits, whole[:, -2:])
    chosen = torch.tensor([3, 5])
    assert close(model(story(model), logits_to_keep=chosen).logits, whole[:, chosen])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_restarting_positions_keep_documents_apart(backbone: str) -> None:
    """The form of TRL's and HF's packing: no mask, and position ids that count every document's tokens from 0."""
    model = toy_model(backbone)
    codes = random_codes(model, 2)
    second = [9, *output_image(codes[1]), 7, 8]
    expected = logits_of(model, torch.tensor([second]))[0]
    for first in ([5], [5, 6, *output_image(codes[0]), 10], [5, 6, 7, 8]):
        counted = torch.cat([torch.arange(len(first)), torch.arange(len(second))])[None]
        packed = logits_of(model, torch.tensor([first + second]), position_ids=counted)[0]
        assert close(packed[len(first) :], expected)
        assert close(packed[: len(first)], logits_of(model, torch.tensor([first]))[0])


def test_packed_words_are_llamas() -> None:
    model = toy_model("llama", tied=False)
    llama = LlamaForCausalLM(model.config.text_config).eval()
    llama.model.load_state_dict(model.model.language_model.state_dict())
    llama.lm_head.load_state_dict(model.lm_head.state_dict())
    ids = torch.tensor([[5, 6, 7, 9, 8, 7, 6, 11]])
    positions = torch.tensor([[0, 1, 2, 0, 0, 1, 2, 3]])
    with torch.no_grad():
        expected = llama(input_ids=ids, position_ids=positions, use_cache=False).logits
        assert close(logits_of(model, ids, position_ids=positions), expected)
        assert not close(logits_of(model, ids), expected)


def test_numbered_masks_are_refused() -> None:
    ids = torch.tensor([[5, 6, 7, 8]])
    with pytest.raises(ValueError, match="attention_mask holds 2, but takes 0 and 1; .* document_ids"):
        toy_model()(ids, attention_mask=torch.tensor([[1, 1, 2, 2]]))


def test_a_model_that_has_drawn_in_inference_mode_trains() -> None:
    model = toy_model()
    grid_features.cache_clear()
    ids = story(model)
    with torch.inference_mode():
        model.generate(torch.tensor([[5, BOI]]), max_new_tokens=0)
        with torch.autocast("cpu", torch.bfloat16):
            model(ids, labels=ids)
    model.train()
    model(ids, labels=ids).loss.backward()
    assert model.model.image_embedding.grid_embedding.weight.grad.isfinite().all()
