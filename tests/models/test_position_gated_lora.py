"""LoRA at image positions: text without images equals the base's bit for bit, in training, generation and TRL."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM, PeftConfig, PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from test_generation import answer_uncached, generate, without_padding
from tolerances import error_of
from torch import Tensor
from toy_adapters import MODELS, adapted, arguments, gradients, rows_of
from toy_models import BOI, EOI, EOS, input_image, output_image, random_codes, toy_model
from trl.trainer.utils import add_fused_lm_head

from unified import UnifiedForCausalLM
from unified.checkpoints.loading import load
from unified.checkpoints.publishing import merge
from unified.models.position_gated_lora import IMAGE_LORA, POSITIONS, ImageLoraConfig, after_image, split_ranks
from unified.training.tuning import prepare

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=POSITIONS)
def positions(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=MODELS, ids=lambda settings: settings["backbone"])
def pair(request: pytest.FixtureRequest, positions: str) -> tuple[UnifiedForCausalLM, PeftModel]:
    """A model, and the same with an adapter for each value of `positions`."""
    return toy_model(**request.param), adapted(toy_model(**request.param), lora_positions=positions)


@torch.no_grad()
def logits_of(model: Any, **inputs: Tensor) -> Tensor:
    return model(**inputs).logits


def before_images(batch: dict[str, Tensor]) -> Tensor:
    """Positions (B, T) of text before any image."""
    return ((batch["input_ids"] == BOI).cumsum(dim=1) == 0) & (batch["attention_mask"] == 1)


def difference(found: Tensor, expected: Tensor) -> Tensor:
    """Largest difference (B, T) of the logits of text, whose rows no adapter trains."""
    return (found - expected).abs()[..., :BOI].amax(dim=-1)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_text_is_exactly_the_bases(pair: tuple[UnifiedForCausalLM, PeftModel], training: bool, autocast: bool) -> None:
    base, model = (part.train(training) for part in pair)
    batch = rows_of(base)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        changed = difference(logits_of(model, **batch), logits_of(base, **batch))
    text = before_images(batch)
    assert text.sum(dim=1).tolist() == [4, 2, 1]
    assert changed[text].max() == 0
    assert changed[batch["attention_mask"].bool() & ~text].min() > 0.01


@pytest.mark.parametrize(
    ("positions", "silent"),
    [*((at, slice(0)) for at in POSITIONS), ("split_ranks", slice(3, 4)), ("split_ranks", slice(3))],
)
def test_updates_are_applied_at_the_adapter_s_positions(positions: str, silent: slice) -> None:
    """In the first layer, whose input no update has changed yet, with documents packed into one row.

    Of four split ranks the last is applied after images and the others inside; `silent` ones have an update of zero.
    """
    model = adapted(toy_model(), lora_positions=positions)
    codes = random_codes(model, 1)[0]
    documents = [[5, *output_image(codes), 6, 7], [8, 9], [10, *input_image(model), 11]]
    batch = {
        "input_ids": torch.tensor([sum(documents, [])]),
        "document_ids": torch.tensor([[n for n, document in enumerate(documents) for _ in document]]),
        "image_codes": codes[None],
    }
    layer = model.get_base_model().model.language_model.layers[0].self_attn.q_proj
    layer.lora_B["default"].weight.data[:, silent] = 0
    outputs: list[Tensor] = []
    layer.register_forward_hook(lambda module, inputs, output: outputs.append(output[0]))
    with torch.no_grad():
        model.get_base_model().model.image_embedding.requires_grad_(False)
        model(**batch)
        layer.enable_adapters(False)
        model(**batch)
    changed = (outputs[0] != outputs[1]).any(dim=-1).tolist()
    after, inside = positions != "image_tokens" and silent != slice(3, 4), silent != slice(3)
    image, text = [False] * 2 + [inside] * len(codes), [after]
    shown = [False] * 2 + [inside] * model.get_base_model().config.input_image_length
    assert changed == image + text * 3 + [False] * 2 + shown + text * 2


def test_split_ranks_keep_all_but_the_smallest_singular_value() -> None:
    layer = (
        adapted(toy_model(), lora_positions="image_tokens").get_base_model().model.language_model.layers[0].mlp.up_proj
    )
    down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    before = (up @ down).detach()
    smallest = torch.linalg.svdvals(before)[3].item()
    split_ranks(layer, "default")
    assert (up @ down - before).norm().item() == pytest.approx(smallest, rel=1e-3) and smallest > 0.01
    assert not up[:, 3].any() and down[3].abs().min() > 0


def test_after_image_within_documents_and_rows() -> None:
    inside = torch.tensor([[0, 0, 1, 0, 0, 0, 1, 0], [0] * 8, [1, 0, 0, 0, 0, 0, 0, 0]]).bool()
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, -1, -1, -1, -1], [0, 1, 1, 2, 2, 2, 3, 3]])
    rows = [[0, 0, 1, 1, 0, 0, 1, 1], [0] * 8, [1, 0, 0, 0, 0, 0, 0, 0]]
    assert after_image(inside, documents, None).int().tolist() == rows
    alone = [[0, 0, 1, 1, 1, 1, 1, 1], [0] * 8, [1] * 8]
    assert after_image(inside, None, None).int().tolist() == alone
    assert after_image(inside, None, torch.tensor([False, True, False])).int().tolist() == [
        alone[0],
        [1] * 8,
        alone[2],
    ]


def test_a_filled_cache_needs_image_seen(positions: str) -> None:
    model = adapted(toy_model(), lora_positions=positions).get_base_model()
    ids = torch.tensor([[5, *output_image(random_codes(model, 1)[0]), 6]])
    cache = model(input_ids=ids, use_cache=True).past_key_values
    later = {"input_ids": torch.tensor([[7]]), "position_ids": torch.tensor([[9]]), "past_key_values": cache}
    if positions != "image_tokens":
        with pytest.raises(ValueError, match="with a filled cache pass image_seen"):
            model(**later)
    else:
        model(**later)


def test_all_positions_are_not(pair: tuple[UnifiedForCausalLM, PeftModel]) -> None:
    base, _ = pair
    batch = rows_of(base)
    expected, text = logits_of(base, **batch), before_images(batch)
    assert difference(logits_of(adapted(base, lora_positions="all"), **batch), expected)[text].min() > 0.01


def test_what_trains_is_what_trains_everywhere() -> None:
    names = [
        {name for name, _ in adapted(toy_model(), lora_positions=at).named_parameters()}
        for at in ("all", "image_tokens")
    ]
    assert names[0] == names[1] and any("lora_A" in name for name in names[0])


def test_without_its_adapter_it_is_the_base(pair: tuple[UnifiedForCausalLM, PeftModel]) -> None:
    base, model = pair
    batch = rows_of(base)
    with model.disable_adapter():
        assert torch.equal(logits_of(model, **batch), logits_of(base, **batch))


def test_packed_kept_and_alone_are_the_same(pair: tuple[UnifiedForCausalLM, PeftModel]) -> None:
    model = pair[1]
    codes = random_codes(pair[0], 2)
    documents = [[5, *output_image(codes[0]), 6], [7, 8], [9, 10, *output_image(codes[1]), 11]]
    ids = torch.tensor([[number for number, document in enumerate(documents) for _ in document]])
    packed = {"input_ids": torch.tensor([sum(documents, [])]), "document_ids": ids}
    found = logits_of(model, **packed)[0]
    for number, document in enumerate(documents):
        alone = logits_of(model, input_ids=torch.tensor([document]))[0]
        torch.testing.assert_close(found[ids[0] == number], alone, rtol=1e-3, atol=1e-3)
    # without half of the first image's last scale, to which no earlier position attends
    keep = torch.tensor([[index for index in range(ids.shape[1]) if not 15 <= index < 23] + [-1]])
    kept = logits_of(model, **packed, keep_positions=keep)[0]
    untouched = torch.arange(6)
    torch.testing.assert_close(kept[untouched], found[untouched], rtol=1e-3, atol=1e-3)
    second = ids[0].nonzero().squeeze(1)
    torch.testing.assert_close(kept[second - 8], found[second], rtol=1e-3, atol=1e-3)


def test_cached_generation_is_uncached(pair: tuple[UnifiedForCausalLM, PeftModel]) -> None:
    """A batch whose rows start an image at once, after a token and never, with text after; then an input image."""
    model = pair[1].get_base_model()
    prompts = [[5, 6], [7, 8, 9, BOI], [10], [11, 12, 13]]
    nudges = {6: BOI, 10: 14, 14: BOI, 13: 15, 15: EOS, EOI: 16, 16: 17, 17: EOS}
    together = generate(model, prompts, nudges, max_new_tokens=30)
    for prompt, row in zip(prompts, together, strict=True):
        assert row == without_padding(answer_uncached(model, prompt, nudges, budget=30))
    assert [row.count(BOI) for row in together] == [1, 1, 1, 0]
    prompt, input_images = [5, *input_image(model), 10], {"image_codes": random_codes(model, 1)}
    (row,) = generate(model, [prompt], nudges, max_new_tokens=9, **input_images)
    assert (
        row == without_padding(answer_uncached(model, prompt, nudges, budget=9, **input_images))
        and row.count(BOI) == 2
    )


def test_checkpointed_layers_are_recomputed_with_their_own_masks(positions: str) -> None:
    """Two forward passes before the first one's backward pass recomputes its layers."""
    model = adapted(toy_model(), lora_positions=positions).train()
    codes = random_codes(model, 2)
    batches = [torch.tensor([[5, 6, *output_image(codes[0]), 7]]), torch.tensor([[*output_image(codes[1]), 8, 9, 10]])]

    def both(model: PeftModel) -> Tensor:
        return sum(model(input_ids=ids, labels=ids).loss for ids in batches)

    expected = gradients(model, both)
    model.get_base_model().activation_checkpointing_enable()
    found = gradients(model, both)
    assert found.keys() == expected.keys() and any("lora_A" in name for name in found)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=error_of(3000), msg=name)


@pytest.mark.parametrize("positions", ["all", *POSITIONS])
def test_trl_scores_through_the_adapter_and_trains_its_rows(positions: str) -> None:
    model = adapted(toy_model(), lora_positions=positions)
    ids = torch.tensor([[5, 6, *output_image(random_codes(model, 1)[0]), 7]])
    expected = logits_of(model, input_ids=ids)[:, :-1].log_softmax(dim=-1).gather(2, ids[:, 1:, None]).squeeze(2)
    add_fused_lm_head(model.get_base_model(), outputs=("log_probs",))
    with model.disable_adapter():  # as for the reference, which may be scored first
        model(input_ids=ids, labels=ids, fused_lm_head=True)
    log_probs = model(input_ids=ids, labels=ids, fused_lm_head=True).log_probs
    torch.testing.assert_close(log_probs, expected, rtol=1e-4, atol=1e-4)
    log_probs.sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    for part in ("trainable_tokens_delta", "lora_A", "lora_B", "image_embedding"):
        assert any(grad is not None and grad.abs().max() > 0 for name, grad in grads.items() if part in name), part


def test_a_trained_adapter_is_the_same_however_it_is_loaded(image_adapter: Path, toy_checkpoint: Path) -> None:
    base = UnifiedForCausalLM.from_pretrained(toy_checkpoint).eval()
    config = base.config
    image = torch.arange(config.image_length) + config.image_token_offset
    prompt = torch.tensor([4, 5, 6])
    ids = torch.cat([prompt, torch.tensor([config.boi_token_id]), image, torch.tensor([config.eoi_token_id])])[None]
    expected = logits_of(base, input_ids=ids)
    ours = load(image_adapter, device="cpu")[0]
    assert type(ours) is UnifiedForCausalLM
    stock = PeftModel.from_pretrained(UnifiedForCausalLM.from_pretrained(toy_checkpoint), image_adapter).eval()
    found = [
        logits_of(model, input_ids=ids)
        for model in (ours, stock, AutoPeftModelForCausalLM.from_pretrained(image_adapter))
    ]
    assert torch.equal(found[0], found[1]) and torch.equal(found[1], found[2])
    changed = (found[0] - expected).abs()[0, :, : config.boi_token_id].amax(dim=-1)
    assert changed[:3].max() == 0 and changed[3:].min() > 1e-3
    assert isinstance(stock.peft_config["default"], ImageLoraConfig)


def test_an_adapter_of_image_positions_cannot_be_merged(image_adapter: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lora_positions image_tokens: .* use the folder as it is"):
        merge(image_adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()
    with pytest.raises(ValueError, match="cannot be merged"):
        AutoPeftModelForCausalLM.from_pretrained(image_adapter).merge_and_unload()


def test_peft_alone_refuses_it(image_adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without this package it would update text as well, so it must not load at all."""
    assert json.loads((image_adapter / "adapter_config.json").read_text())["peft_type"] == IMAGE_LORA
    assert isinstance(PeftConfig.from_pretrained(image_adapter), ImageLoraConfig)
    monkeypatch.delitem(PEFT_TYPE_TO_CONFIG_MAPPING, IMAGE_LORA)
    with pytest.raises(KeyError, match=IMAGE_LORA):
        PeftConfig.from_pretrained(image_adapter)


def test_configurations_that_would_update_text_are_refused() -> None:
    with pytest.raises(
        ValueError, match="lora_positions image_tokens needs images in blocks, but image_order is raster"
    ):
        prepare(toy_model(image_order="raster"), arguments())
    with pytest.raises(ValueError, match="lora_bias True would change all positions"):
        ImageLoraConfig(lora_bias=True)
    with pytest.raises(
        ValueError, match="unknown positions 'text'; choose from image_tokens, after_image, split_ranks"
    ):
        ImageLoraConfig(positions="text")
    with pytest.raises(ValueError, match="lora_rank 1 leaves no rank for images with split_ranks; .* at least 2"):
        prepare(toy_model(), arguments(lora_positions="split_ranks", lora_rank=1))
