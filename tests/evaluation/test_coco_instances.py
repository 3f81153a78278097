"""What Mask2Former's logits mean by GenEval's protocol, and how pictures are prepared: answers known by hand."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toy_coco import MOUSE, REMOTE, TINY, box_logits, class_logits, same, sigmoid
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    OPENAI_CLIP_MEAN,
    OPENAI_CLIP_STD,
)

from unified.evaluation.coco_detector import (
    CLASS_NAMES,
    CocoSettings,
    Sizes,
    centre_square,
    cut_outs,
    find_instances,
    image_sizes,
    mask_boxes,
    prepare,
)

PROMPTS = Path(__file__).parents[3] / "shared" / "geneval" / "evaluation_metadata.jsonl"


# --- class names


def test_names_are_genevals_in_cocos_order() -> None:
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == 80
    assert CLASS_NAMES[64:67] == ("computer mouse", "tv remote", "computer keyboard")
    places = {
        0: "person",
        4: "airplane",
        15: "cat",
        49: "orange",
        57: "couch",
        62: "tv",
        67: "cell phone",
        79: "toothbrush",
    }
    assert {index: CLASS_NAMES[index] for index in places} == places


@pytest.mark.skipif(not PROMPTS.is_file(), reason="GenEval's prompts are not here")
def test_names_are_those_of_the_prompts() -> None:
    prompts = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    asked = {clause["class"] for prompt in prompts for clause in prompt["include"] + prompt.get("exclude", [])}
    assert asked == set(CLASS_NAMES)


# --- instances from logits


def test_boxes_scores_and_classes_of_hand_made_logits() -> None:
    masks = box_logits(20, 30, (2, 3, 10, 8), (5, 5, 6, 6), (0, 0, 30, 20))
    found = find_instances(class_logits({MOUSE: 0.5}, {REMOTE: 0.9}, {7: 0.3}), masks, same(20, 30), TINY)
    assert found.labels.tolist() == [REMOTE, MOUSE, 7]
    assert found.boxes.tolist() == [[5, 5, 6, 6], [2, 3, 10, 8], [0, 0, 30, 20]]  # one behind the last pixel
    assert found.scores.tolist() == pytest.approx([p * sigmoid(4) for p in (0.9, 0.5, 0.3)], rel=1e-4)
    assert found.masks.dtype == torch.bool and found.masks.sum((1, 2)).tolist() == [1, 40, 600]


def test_a_masks_score_is_the_mean_inside_it() -> None:
    masks = box_logits(8, 8, (0, 0, 4, 4), inside=1.0)
    masks[0, 0] = torch.tensor([3.0, 3.0, 3.0, 3.0, -0.5, -9, -9, -9])
    found = find_instances(class_logits({3: 0.8}), masks, same(8, 8), TINY)
    assert found.scores.item() == pytest.approx(0.8 * (4 * sigmoid(3) + 12 * sigmoid(1)) / 16, rel=1e-4)


def test_one_query_may_be_several_classes_and_overlaps_stay() -> None:
    masks = box_logits(10, 10, (1, 1, 9, 9), (1, 1, 9, 8))
    found = find_instances(class_logits({15: 0.6, 16: 0.3}, {15: 0.55}), masks, same(10, 10), TINY)
    assert found.labels.tolist() == [15, 15, 16]
    assert found.boxes.tolist() == [[1, 1, 9, 9], [1, 1, 9, 8], [1, 1, 9, 9]]
    assert found.masks[0].sum() == 64 and found.masks[1].sum() == 56  # neither lost a pixel to the other


def test_no_object_empty_masks_and_weak_ones_are_left_out() -> None:
    masks = box_logits(10, 10, (0, 0, 5, 5), (0, 0, 0, 0), (0, 0, 5, 5), (0, 0, 5, 5))
    queries = class_logits({}, {1: 0.9}, {2: 0.0504}, {3: 0.053})
    found = find_instances(queries, masks, same(10, 10), TINY)
    # class 2 passes by its class alone, but no longer once its mask is counted: .0504 * .982 < .05
    assert found.labels.tolist() == [3]
    nothing = find_instances(class_logits({}, {}), masks[:2], same(10, 10), TINY)
    assert nothing.boxes.shape == (0, 4) and nothing.masks.shape == (0, 10, 10)


def test_a_hundred_pairs_of_query_and_class_are_kept() -> None:
    queries = class_logits(*({label: 0.5, label + 1: 0.4} for label in range(60)))
    masks = box_logits(4, 4, *[(0, 0, 2, 2)] * 60)
    labels = find_instances(queries, masks, same(4, 4), CocoSettings()).labels
    assert len(labels) == 100 and labels[:60].sort().values.tolist() == list(range(60))
    assert len(find_instances(queries, masks, same(4, 4), replace(TINY, max_instances=7)).labels) == 7


def test_masks_lose_their_padding_and_take_the_pictures_size() -> None:
    sizes = Sizes(original=(30, 60), resized=(60, 120), padded=(64, 128))  # logits at a quarter of 64 x 128
    masks = torch.full((3, 16, 32), -4.0)
    masks[0] = 4.0  # everywhere, the padding too
    masks[1, :, 31] = 4.0  # in the padding alone: 124 to 128 of 120
    masks[2, 4:8, 8:16] = 4.0  # x 8 * 4 / 2 = 16 to 32, y 4 * 4 / 2 = 8 to 16
    found = find_instances(class_logits({0: 0.9}, {1: 0.8}, {2: 0.7}), masks, sizes, TINY)
    assert found.labels.tolist() == [0, 2]
    assert found.boxes.tolist() == [[0, 0, 60, 30], [16, 8, 32, 16]]
    assert found.masks.shape == (2, 30, 60)


@pytest.mark.parametrize("seed", range(3))
def test_instances_equal_a_plain_reading_of_the_protocol(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    queries, masks = 3 * torch.randn(5, 81, generator=generator), 3 * torch.randn(5, 9, 11, generator=generator)
    pairs = sorted(((float(p), q, c) for q, row in enumerate(queries.softmax(-1)) for c, p in enumerate(row[:80])))
    expected = []
    for probability, query, label in pairs[::-1][:20]:
        ys, xs = np.nonzero(masks[query].numpy() > 0)
        sure = float(masks[query].sigmoid()[ys, xs].mean())
        box = [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]
        expected.append((probability * sure, label, box))
    expected = sorted((row for row in expected if row[0] > TINY.min_score), reverse=True)
    found = find_instances(queries, masks, same(9, 11), replace(TINY, max_instances=20))
    assert len(expected) > 3
    assert found.labels.tolist() == [row[1] for row in expected]
    assert found.boxes.tolist() == [row[2] for row in expected]
    assert found.scores.tolist() == pytest.approx([row[0] for row in expected], rel=1e-4)


def test_boxes_of_masks_with_holes() -> None:
    masks = torch.zeros(1, 7, 9, dtype=torch.bool)
    masks[0, 1, 8] = masks[0, 5, 2] = True
    assert mask_boxes(masks).tolist() == [[2, 1, 9, 6]]


def test_a_threshold_that_means_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="min_score is -1"):
        CocoSettings(min_score=-1)


# --- pictures for the models


@pytest.mark.parametrize(
    ("size", "resized", "padded"),
    [
        ((512, 512), (800, 800), (800, 800)),
        ((1024, 512), (667, 1333), (672, 1344)),
        ((600, 1000), (1333, 800), (1344, 800)),
    ],
)
def test_pictures_are_scaled_as_mmdet_does(size: tuple, resized: tuple, padded: tuple) -> None:
    assert image_sizes(Image.new("RGB", size), CocoSettings()) == (size[::-1], resized, padded)


def test_pictures_are_not_smoothed_before_they_shrink() -> None:
    settings = replace(TINY, shortest_edge=2, longest_edge=8)
    columns = np.zeros((8, 8, 3), dtype=np.uint8)
    columns[:, (0, 3)] = 200  # at a quarter of the size, only columns 1, 2, 5 and 6 are looked at
    picture = Image.fromarray(columns)
    pixels = prepare(picture, image_sizes(picture, settings), settings)
    zero = -settings.pixel_mean[0] / settings.pixel_std[0]
    assert pixels[0, :2, :2].flatten().tolist() == pytest.approx([zero] * 4)


def test_constants_are_those_the_models_were_trained_with() -> None:
    settings = CocoSettings()
    assert settings.pixel_mean == pytest.approx([255 * level for level in IMAGENET_DEFAULT_MEAN])
    assert settings.pixel_std == pytest.approx([255 * level for level in IMAGENET_DEFAULT_STD])
    assert settings.clip_mean == tuple(OPENAI_CLIP_MEAN) and settings.clip_std == tuple(OPENAI_CLIP_STD)


def test_prepared_pixels_are_normalised_and_padded_with_grey() -> None:
    settings = replace(TINY, size_divisor=32, shortest_edge=4, longest_edge=8)
    picture = Image.fromarray(np.array([[[0, 10, 20], [200, 10, 20]], [[0, 10, 20], [200, 10, 20]]], dtype=np.uint8))
    pixels = prepare(picture, image_sizes(picture, settings), settings)
    mean, std = torch.tensor(settings.pixel_mean)[:, None, None], torch.tensor(settings.pixel_std)[:, None, None]
    levels = pixels * std + mean
    assert pixels.shape == (3, 32, 32)
    assert levels[:, 0, 0].tolist() == pytest.approx([0, 10, 20], abs=1e-3)  # red, green, blue
    assert levels[0, 0, :4].tolist() == pytest.approx([0, 50, 150, 200], abs=1e-3)  # bilinear
    assert levels[:, 4:].flatten().tolist() == pytest.approx([128] * 3 * 28 * 32, abs=1e-3)
    assert levels[:, :, 4:].min() == pytest.approx(128, abs=1e-3)


def test_clips_view_is_the_centre_of_the_scaled_picture() -> None:
    columns = np.tile(np.arange(60, dtype=np.uint8)[None, :, None], (20, 1, 3))
    assert np.array(centre_square(Image.fromarray(columns), 20))[0, :, 0].tolist() == list(range(20, 40))
    assert np.array(centre_square(Image.fromarray(columns.swapaxes(0, 1)), 20))[:, 0, 0].tolist() == list(
        range(20, 40)
    )
    # 21 of 20: half a pixel is rounded to the even one, as torchvision does
    assert np.array(centre_square(Image.fromarray(columns[:, :21]), 20))[0, :, 0].tolist() == list(range(20))
    assert np.array(centre_square(Image.fromarray(columns[:, :23]), 20))[0, :, 0].tolist() == list(range(2, 22))
    assert centre_square(Image.new("RGB", (1, 90)), 32).size == (32, 32)


def test_clips_view_is_bicubic() -> None:
    step = Image.fromarray(np.repeat(np.array([[60], [180]], dtype=np.uint8), 2, axis=1)).convert("RGB")
    levels = np.array(centre_square(step, 20))
    assert levels.min() < 60 and levels.max() > 180  # bilinear stays between its neighbours


def test_instances_are_cut_out_on_grey() -> None:
    pixels = np.zeros((6, 8, 3), dtype=np.uint8)
    pixels[..., 0] = 200
    pixels[2, 3] = (1, 2, 3)
    masks = torch.zeros(1, 6, 8, dtype=torch.bool)
    masks[0, 2, 3] = masks[0, 3, 5] = True
    instances = find_instances(class_logits({0: 0.9}), masks * 18.0 - 9, same(6, 8), TINY)
    (picture,) = cut_outs(pixels, instances, CocoSettings().background)
    grey = [0x99] * 3
    assert np.array(picture).tolist() == [[[1, 2, 3], grey, grey], [grey, grey, [200, 0, 0]]]
