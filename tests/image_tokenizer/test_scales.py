"""The geometry of scales against counting by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unified.image_tokenizer import scales
from unified.image_tokenizer.scales import (
    grid_centres,
    image_length,
    normalize_patch_nums,
    pools_elsewhere,
    resize_area,
    scale_ids,
    scale_spans,
)

SIDES = st.lists(st.integers(1, 6), min_size=1, max_size=5).map(sorted)
PATCH_NUMS = st.tuples(SIDES, SIDES).map(lambda sides: tuple(zip(*sides, strict=False)))


def test_a_number_is_a_square() -> None:
    assert normalize_patch_nums((1, 2, [4, 6])) == ((1, 1), (2, 2), (4, 6))
    assert image_length((1, 2, 4, 8)) == 85


@settings(deadline=None)
@given(PATCH_NUMS)
def test_spans_and_ids_count_every_position_once(patch_nums: tuple[tuple[int, int], ...]) -> None:
    by_hand = [scale for scale, (h, w) in enumerate(patch_nums) for _ in range(h * w)]
    assert scale_ids(patch_nums).tolist() == by_hand
    assert image_length(patch_nums) == len(by_hand)
    spans = scale_spans(patch_nums)
    assert [by_hand[start:stop] for start, stop in spans] == [[k] * (h * w) for k, (h, w) in enumerate(patch_nums)]


@settings(deadline=None)
@given(PATCH_NUMS)
def test_centres_are_row_major_and_shared_between_scales(patch_nums: tuple[tuple[int, int], ...]) -> None:
    by_hand = [[(i + 0.5) / h, (j + 0.5) / w] for h, w in patch_nums for i in range(h) for j in range(w)]
    torch.testing.assert_close(grid_centres(patch_nums), torch.tensor(by_hand))


def test_the_image_centre_is_the_same_at_odd_scales() -> None:
    centres = grid_centres((1, 3, 5))
    assert [centres[index].tolist() for index in (0, 1 + 4, 1 + 9 + 12)] == [[0.5, 0.5]] * 3


@pytest.mark.parametrize(
    ("patch_nums", "complaint"),
    [
        ((), "is empty"),
        ((0, 1), "at least 1"),
        ((2, 1), r"\(1, 1\) is smaller than the scale before"),
        (((2, 2), (4, 1)), r"\(4, 1\) is smaller than the scale before"),
    ],
)
def test_impossible_scales_are_refused(patch_nums: tuple, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        normalize_patch_nums(patch_nums)


@pytest.mark.parametrize(
    ("device", "size", "elsewhere"),
    [
        ("mps", (4, 4), False),
        ("mps", (3, 3), True),
        ("mps", (4, 3), True),
        ("mps", (8, 8), False),
        ("cpu", (3, 3), False),
    ],
)
def test_sides_that_a_device_cannot_pool_are_resized_elsewhere(device: str, size: tuple, elsewhere: bool) -> None:
    assert pools_elsewhere(torch.device(device), (8, 8), size) == elsewhere


def test_resizing_by_area_is_the_same_on_the_way_around(monkeypatch: pytest.MonkeyPatch) -> None:
    features = torch.rand(1, 2, 8, 8)
    expected = resize_area(features, (3, 3))
    monkeypatch.setattr(scales, "pools_elsewhere", lambda *_: True)
    assert torch.equal(resize_area(features, (3, 3)), expected)


def test_the_default_scales_double_up_to_the_latent_grid():
    assert [scales.doubling_patch_nums(side) for side in (1, 2, 3, 8, 12, 16)] == [
        (1,),
        (1, 2),
        (1, 2, 3),
        (1, 2, 4, 8),
        (1, 2, 4, 8, 12),
        (1, 2, 4, 8, 16),
    ]
