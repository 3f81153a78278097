"""Grouped attention against torch's sdpa: values, gradients, a cache, windows, long rows, and who uses it."""

import pytest
import torch
from test_modeling import close, logits_of, story
from tolerances import error_of
from toy_models import toy_model

from unified import UnifiedForCausalLM
from unified.models import attention
from unified.models.attention import GROUPED, grouped_attention, prefer_grouped, prepare_mask
from unified.models.sequence_layout import read_layout


def twin(backbone: str = "llama") -> UnifiedForCausalLM:
    """The toy with grouped attention."""
    model = toy_model(backbone)
    model.set_attn_implementation(GROUPED)
    return model


def of_backbone(model: UnifiedForCausalLM) -> str:
    return model.model.language_model.config._attn_implementation


@pytest.mark.parametrize("backbone", ["llama", "qwen2", "qwen3", "gemma3"])
def test_values_and_gradients_are_sdpa_s(backbone: str) -> None:
    gradients = []
    for model in (toy_model(backbone), twin(backbone)):
        ids = torch.cat([story(model), torch.zeros(1, 3, dtype=torch.long)], dim=1)
        mask = torch.ones_like(ids)
        mask[:, -3:] = 0
        labels = torch.where(mask == 1, ids, -100)
        model(ids, attention_mask=mask, labels=labels).loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
        assert of_backbone(model) == ("sdpa" if len(gradients) == 1 else GROUPED)
    torch.testing.assert_close(*reversed(gradients), rtol=1e-3, atol=error_of(3000))
    assert close(logits_of(twin(backbone), story(model)), logits_of(toy_model(backbone), story(model)))


@pytest.mark.parametrize("backbone", ["llama", "gemma3"])
def test_a_cache_goes_on(backbone: str) -> None:
    model = twin(backbone)
    ids = torch.cat([story(model), torch.arange(20, 32)[None]], dim=1)
    expected, prefix = logits_of(toy_model(backbone), ids), story(model).shape[1]
    positions = read_layout(ids, model.config).position_steps.cumsum(dim=1) - 1
    with torch.no_grad():
        cache = model(ids[:, :prefix], use_cache=True).past_key_values
        rest = model(ids[:, prefix:], position_ids=positions[:, prefix:], past_key_values=cache, use_cache=True).logits
    assert close(rest, expected[:, prefix:])


def test_long_rows_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = twin()
    expected, length = logits_of(model, story(model)), story(model).shape[1]
    allowed = torch.ones(1, 1, length, length, dtype=torch.bool)
    for longest, dtype in ((length, torch.float32), (length - 1, torch.bool)):
        monkeypatch.setattr(attention, "MAX_POSITIONS", longest)
        assert prepare_mask(allowed, GROUPED, model.config.text_config, torch.float32).dtype == dtype
        assert close(logits_of(model, story(model)), expected)


def test_under_autocast_products_are_in_bf16() -> None:
    allowed = torch.ones(2, 1, 5, 5, dtype=torch.bool)
    model = twin()
    with torch.autocast("cpu", torch.bfloat16):
        mask = prepare_mask(allowed, GROUPED, model.config.text_config, torch.float32)
        found = logits_of(model, story(model))
        expected = logits_of(toy_model(), story(model))
    assert mask.dtype == torch.bfloat16 and mask.shape == (4, 1, 10, 5)  # 2 rows x 2 key heads, 2 queries each
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


def test_capped_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="does not support softcap of this backbone; use eager"):
        logits_of(twin("gemma2"), story(toy_model("gemma2")))


def test_layers_with_other_heads_are_refused() -> None:
    query, key = torch.randn(1, 4, 3, 8), torch.randn(1, 4, 3, 8)
    mask = prepare_mask(torch.ones(1, 1, 3, 3, dtype=torch.bool), GROUPED, twin().config.text_config, torch.float32)
    with pytest.raises(
        ValueError, match="the same number of key heads in all layers, not 4 in one; use sdpa"
    ):  # the configuration has 2 key heads
        grouped_attention(torch.nn.Module(), query, key, key, mask, 1.0)


def test_values_may_be_narrower_than_keys() -> None:
    query, key, value = torch.randn(2, 4, 3, 8), torch.randn(2, 2, 3, 8), torch.randn(2, 2, 3, 5)
    allowed = torch.ones(2, 1, 3, 3, dtype=torch.bool).tril()
    mask = prepare_mask(allowed, GROUPED, twin().config.text_config, torch.float32)
    found, _ = grouped_attention(torch.nn.Module(), query, key, value, mask, 0.3)
    expected = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=allowed, scale=0.3, enable_gqa=True
    )
    torch.testing.assert_close(found, expected.transpose(1, 2))


@pytest.mark.parametrize(
    ("device", "chosen", "expected"),
    [("cpu", "sdpa", GROUPED), ("cuda", "sdpa", "sdpa"), ("cpu", "eager", "eager")],
)
def test_it_is_preferred_to_sdpa_on_cpus(device: str, chosen: str, expected: str) -> None:
    model = toy_model()
    model.set_attn_implementation(chosen)
    prefer_grouped(model, torch.device(device))
    assert of_backbone(model) == expected
