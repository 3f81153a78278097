"""Properties of the sampling chain on logits that are known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unified.models.sampling import apply_guidance, ramped_guidance_scale, sample, top_k_filter, top_p_filter


def random_logits(seed: int, shape: tuple[int, ...] = (3, 4, 12)) -> Tensor:
    return 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def kept(filtered: Tensor) -> Tensor:
    return filtered > float("-inf")


@settings(deadline=None)
@given(st.integers(0, 1000), st.integers(1, 11))
def test_top_k_keeps_the_k_largest(seed: int, top_k: int) -> None:
    logits = random_logits(seed)
    filtered = top_k_filter(logits, top_k)
    assert (kept(filtered).sum(dim=-1) == top_k).all()
    assert torch.equal(filtered[kept(filtered)], logits[kept(filtered)])
    assert torch.equal(filtered.sort(dim=-1, descending=True).values[..., :top_k], logits.topk(top_k).values)


@settings(deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 0.99))
def test_top_p_keeps_the_smallest_set_that_reaches_p(seed: int, top_p: float) -> None:
    logits = random_logits(seed)
    keep, probs = kept(top_p_filter(logits, top_p)), logits.softmax(dim=-1)
    mass = (probs * keep).sum(dim=-1)
    assert (mass >= top_p - 1e-5).all()
    smallest = probs.masked_fill(~keep, 2).amin(dim=-1)
    assert (mass - smallest < top_p + 1e-5).all()
    assert (probs.masked_fill(keep, 0).amax(dim=-1) <= smallest).all()


@pytest.mark.parametrize("top_k", [0, 12, 50])
def test_filters_can_be_off(top_k: int) -> None:
    logits = random_logits(0)
    assert torch.equal(top_k_filter(logits, top_k), logits) and torch.equal(top_p_filter(logits, 1.0), logits)


@settings(deadline=None)
@given(st.integers(0, 1000), st.sampled_from([0.3, 0.7, 1.0, 2.0, 3]), st.integers(0, 14), st.floats(0.05, 1))
def test_the_chain_is_to_the_bit_what_it_was_before_hfs_warpers(
    seed: int, temperature: float, top_k: int, top_p: float
) -> None:
    logits = random_logits(seed)
    logits[..., 3] = logits[..., 5]  # equals stay together
    tempered = logits / temperature
    if 0 < top_k < 12:
        tempered = tempered.masked_fill(tempered < tempered.topk(top_k).values[..., -1:], float("-inf"))
    probs = top_p_filter(tempered, top_p).softmax(dim=-1).view(-1, 12)
    expected = torch.multinomial(probs, 1, generator=torch.Generator().manual_seed(seed)).view(3, 4)
    drawn = sample(logits, temperature, top_k, top_p, torch.Generator().manual_seed(seed))
    assert torch.equal(drawn, expected)


def test_temperature_zero_takes_the_largest() -> None:
    logits = random_logits(0)
    assert torch.equal(sample(logits, temperature=0), logits.argmax(dim=-1))
    assert torch.equal(sample(logits, temperature=1e-3), logits.argmax(dim=-1))
    assert torch.equal(sample(logits, temperature=100.0, top_k=1), logits.argmax(dim=-1))
    assert torch.equal(sample(logits, temperature=100.0, top_p=1e-6), logits.argmax(dim=-1))


def test_samples_follow_the_tempered_distribution() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -1.0]).expand(20_000, 4)
    drawn = sample(logits, temperature=2.0, top_k=3, generator=torch.Generator().manual_seed(0))
    share = drawn.bincount(minlength=4) / len(drawn)
    expected = torch.tensor([0.0, 0.5, 1.0]).softmax(dim=0).tolist() + [0.0]
    torch.testing.assert_close(share, torch.tensor(expected), atol=0.015, rtol=0)
    assert share[3] == 0


def test_the_generator_is_the_only_source_of_randomness() -> None:
    logits, state = random_logits(0), torch.get_rng_state()
    draws = [sample(logits, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.get_rng_state(), state)
    assert draws[0].shape == (3, 4)


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_a_row_with_its_own_generator_does_not_know_its_neighbours() -> None:
    logits = random_logits(0)
    together = sample(logits, generator=generators(5, 6, 7))
    turned = sample(logits.flip(0), generator=generators(7, 6, 5)).flip(0)
    alone = torch.cat([sample(logits[i : i + 1], generator=generators(5 + i)) for i in range(3)])
    one = sample(logits[1:2], generator=generators(6)[0])
    assert torch.equal(together, turned) and torch.equal(together, alone) and torch.equal(together[1:2], one)
    assert not torch.equal(together, sample(logits, generator=generators(5, 6, 8)))


def test_every_row_needs_a_generator() -> None:
    with pytest.raises(ValueError, match="2 generators for a batch of 3"):
        sample(random_logits(0), generator=generators(1, 2))


def test_guidance_one_is_the_condition_and_zero_none() -> None:
    conditional, unconditional = random_logits(0), random_logits(1)
    torch.testing.assert_close(apply_guidance(conditional, unconditional, 1.0), conditional)
    torch.testing.assert_close(apply_guidance(conditional, unconditional, 0.0), unconditional)
    step = apply_guidance(conditional, unconditional, 3.0) - apply_guidance(conditional, unconditional, 2.0)
    torch.testing.assert_close(step, conditional - unconditional)


def test_guidance_ramps_from_one() -> None:
    assert [ramped_guidance_scale(4.0, scale, 4) for scale in range(4)] == [1.0, 2.0, 3.0, 4.0]
    assert ramped_guidance_scale(4.0, 0, 1) == 1.0
    assert {ramped_guidance_scale(1.0, scale, 4) for scale in range(4)} == {1.0}


@pytest.mark.parametrize("impossible", [{"temperature": -1.0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_impossible_settings_are_refused(impossible: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="temperature .* must be at least 0 and top_p .* in"):
        sample(random_logits(0), **impossible)
