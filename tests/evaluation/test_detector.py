"""The Scenes detector: how its grid is decoded, its labels and ignored places, and what its ceilings mean."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from unified import VQConfig, VQModel
from unified.evaluation.detector import IGNORED, DetectorConfig, DetectorOutput, SceneDetector, place_of
from unified.evaluation.metrics import geneval_verdict
from unified.files.images import to_pixel_values
from unified.scenes.detector_ceilings import ceiling_scenes, ceilings, true_detections, wrong_captions
from unified.scenes.detector_data import (
    BLANK,
    NOISY,
    RECONSTRUCTED,
    SCRAMBLED,
    SMEARED,
    UNTOUCHED,
    ImageMix,
    SceneBatches,
    draw_labeled_image,
    label,
    patchwork,
    recast,
    retouch,
    shift,
    tear,
)
from unified.scenes.rendering import CLASSES, COLOURS, HELD_OUT, TAGS, Scene, draw_scene, place, sample_scene
from unified.scenes.tidy_layout import tidy

NAMES = {"class_names": list(CLASSES), "colour_names": list(COLOURS)}
ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "weights" / "scenes-detector"


def make_detector() -> SceneDetector:
    torch.manual_seed(0)
    return SceneDetector(DetectorConfig(**NAMES, channels=(8, 8), num_blocks=(1, 1))).eval()


class Scripted(SceneDetector):
    """A detector that answers every picture with what `says` holds."""

    says: DetectorOutput

    def forward(self, pixel_values: torch.Tensor, *_: object) -> DetectorOutput:
        return self.says


def scripted(objects: list[tuple[tuple[int, int], int, float, int, list[float]]]) -> Scripted:
    """Says background everywhere, but for objects (place, class, probability, colour, box)."""
    detector = Scripted(DetectorConfig(**NAMES, channels=(8, 8), num_blocks=(1, 1)))
    logits, colours = torch.full((1, 1 + len(CLASSES), 9, 9), -30.0), torch.zeros(1, len(COLOURS), 9, 9)
    logits[:, 0], boxes = 0.0, torch.zeros(1, 4, 9, 9)
    for (row, column), number, probability, colour, box in objects:
        logits[0, 1 + number, row, column] = np.log(probability / (1 - probability))
        colours[0, colour, row, column], boxes[0, :, row, column] = 5.0, torch.tensor(box)
    detector.says = DetectorOutput(class_logits=logits, colour_logits=colours, boxes=boxes)
    return detector


@pytest.fixture(scope="module")
def vq() -> VQModel:
    torch.manual_seed(0)
    model = VQModel(VQConfig(channels=(32, 32), patch_nums=(1, 2, 4, 8), codebook_size=64, code_dim=4)).eval()
    torch.nn.init.normal_(model.quantizer.embedding.weight, std=0.3)
    return model


# --- the model


def test_the_default_is_small_enough_to_ship() -> None:
    count = sum(p.numel() for p in SceneDetector(DetectorConfig(**NAMES)).parameters())
    assert count <= 2_000_000 and 4 * count <= 4e6


def test_saved_and_reloaded_it_sees_the_same(tmp_path) -> None:
    detector, pixels = make_detector(), torch.rand(2, 3, 64, 64) * 2 - 1
    detector.save_pretrained(tmp_path)
    again = SceneDetector.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(again(pixels).class_logits, detector(pixels).class_logits, rtol=0, atol=0)
    assert again.config.class_names == list(CLASSES) and again.name == "scenes"


@pytest.mark.parametrize("settings", [{"image_size": 60}, {"channels": (8, 8, 8)}])
def test_a_shape_it_cannot_have_is_refused(settings) -> None:
    with pytest.raises(ValueError, match="multiple of 8"):
        DetectorConfig(**NAMES, **settings)


def test_boxes_are_offsets_from_the_places() -> None:
    detector = make_detector()
    torch.nn.init.zeros_(detector.head.weight)
    torch.nn.init.zeros_(detector.head.bias)
    boxes = detector(torch.zeros(1, 3, 64, 64)).boxes
    assert boxes[0, :, 2, 5].tolist() == [40, 16, 40, 16]


def test_the_loss_looks_away_where_it_should() -> None:
    detector, pixels = make_detector(), torch.rand(1, 3, 64, 64)
    classes, colours, boxes = (torch.from_numpy(x)[None] for x in label([(place("car", None, (0, 0), 32), 1.0)], 9))
    loss = detector(pixels, classes, colours, boxes)
    assert loss.colour_loss == 0  # a natural glyph has no colour
    row, column = place_of(place("car", None, (0, 0), 32).box)
    boxes[0, :, 7, 7] += 99  # nothing is there
    assert detector(pixels, classes, colours, boxes).box_loss == loss.box_loss
    classes[0, 7, 7] = IGNORED
    assert detector(pixels, classes, colours, boxes).class_loss < loss.class_loss
    colours[0, row, column] = 3
    assert detector(pixels, classes, colours, boxes).colour_loss > 0


# --- reading the grid


def test_peaks_are_probabilities_best_first_and_the_floor_holds() -> None:
    objects = [
        ((2, 2), 5, 0.6, 1, [1, 2, 30, 31]),
        ((6, 6), 7, 0.97, 4, [33, 34, 60, 61]),
        ((2, 6), 5, 0.04, 0, [0] * 4),
    ]
    classes, rows = scripted(objects).peaks(torch.zeros(1, 3, 64, 64))[0]
    assert classes.tolist() == [7, 5]
    torch.testing.assert_close(rows[:, 4], torch.tensor([0.97, 0.6]))
    assert rows[0, :4].tolist() == [33, 34, 60, 61] and rows[:, 5].tolist() == [4, 1]


def test_neighbours_are_one_object_whatever_they_say() -> None:
    objects = [((4, 4), 5, 0.7, 1, [0, 0, 9, 9]), ((4, 5), 5, 0.6, 1, [0, 0, 9, 9]), ((3, 3), 9, 0.5, 1, [0, 0, 9, 9])]
    assert scripted(objects).peaks(torch.zeros(1, 3, 64, 64))[0][0].tolist() == [5]


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((64, 64), [8, 16, 24, 32]),
        ((128, 128), [16, 32, 48, 64]),
        ((128, 64), [40, 16, 56, 32]),
        ((64, 96), [8, 32, 24, 48]),
    ],
)
def test_boxes_are_in_the_pictures_own_pixels(size, expected) -> None:
    detections = scripted([((3, 2), 0, 0.9, 2, [8, 16, 24, 32])]).detect([Image.new("RGB", size)])
    assert list(detections[0]) == ["airplane"]
    assert detections[0]["airplane"][0][:4] == expected and detections[0]["airplane"][0][5] == 2


@pytest.mark.parametrize("tag", TAGS)
def test_labels_read_back_pass_every_task(tag: str) -> None:
    rng = np.random.default_rng(0)
    for number in range(20):
        scene = sample_scene(tag, rng)
        scene = tidy(scene) if number % 2 else scene
        classes, colours, boxes = label([(item, 1.0) for item in scene.objects], 9)
        places = zip(*np.nonzero(classes), strict=True)
        objects = [(p, classes[p] - 1, 0.99, max(colours[p], 0), boxes[:, *p].tolist()) for p in places]
        assert len(objects) == len(scene.objects)
        detections = scripted(objects).detect([draw_scene(scene)])[0]
        assert geneval_verdict(scene.metadata, detections) == (True, "")


def test_pictures_are_detected_in_batches_alike() -> None:
    detector, rng = make_detector(), np.random.default_rng(0)
    images = [draw_scene(sample_scene(tag, rng)) for tag in TAGS]
    whole, pieces = detector.detect(images), detector.detect(images, batch_size=4)
    assert [list(found) for found in whole] == [list(found) for found in pieces] and detector.detect([]) == []


# --- what it learns from


def test_a_batch_depends_on_seed_step_and_rank_alone() -> None:
    config = DetectorConfig(**NAMES)
    first, again, later, other = (
        SceneBatches(config, ImageMix(), 4, 9, seed=1, rank=rank)[step]
        for rank, step in ((0, 3), (0, 3), (0, 4), (1, 3))
    )
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["images"], later["images"]) and not torch.equal(first["images"], other["images"])
    assert first["images"].shape == (4, 64, 64, 3) and first["class_labels"].shape == (4, 9, 9)
    assert first["box_labels"].shape == (4, 4, 9, 9) and first["retouch"].shape == (4,)


def test_recast_scenes_show_held_out_colourings_in_the_same_cells() -> None:
    rng = np.random.default_rng(0)
    scene = sample_scene("counting", rng)
    for _ in range(20):
        seen = recast(scene, rng).objects
        assert [o.cell for o in seen] == [o.cell for o in scene.objects]
        if any(("colour", o.class_name, o.colour) in HELD_OUT for o in seen):
            return
    pytest.fail("no held-out colouring in 20 casts")


@pytest.mark.parametrize(
    ("columns", "labelled"), [(32, "apple"), (27, "apple"), (22, None), (16, "nothing"), (0, "nothing")]
)
def test_what_is_left_of_an_object_decides_what_it_is(columns: int, labelled: str | None) -> None:
    apple = place("apple", "red", (0, 0), 32)
    shown = np.zeros((64, 64), dtype=bool)
    shown[:, :columns] = True
    torn = patchwork(draw_labeled_image(Scene("colors", (apple,), {})), BLANK, shown)
    classes, _, _ = label(torn.objects, 9)
    expected = {"apple": 1 + list(CLASSES).index("apple"), "nothing": 0, None: IGNORED}[labelled]
    assert classes[place_of(apple.box)] == expected
    assert (torn.pixels[:, columns:] == 236).all()


def test_both_halves_of_a_patchwork_can_be_whole() -> None:
    left, right = place("dog", None, (0, 16), 32), place("cat", "blue", (32, 16), 32)
    shown = np.zeros((64, 64), dtype=bool)
    shown[:, :32] = True
    both = patchwork(*(draw_labeled_image(Scene("colors", (o,), {})) for o in (left, right)), shown)
    assert [(o.class_name, share) for o, share in both.objects] == [("dog", 1.0), ("cat", 1.0)]
    assert np.array_equal(both.pixels, np.asarray(draw_scene(Scene("two_object", (left, right), {}))))


def test_tears_are_of_all_sizes() -> None:
    rng = np.random.default_rng(0)
    picture = draw_labeled_image(sample_scene("single_object", rng))
    left = [tear(picture, rng).mean() for _ in range(40)]
    assert min(left) < 0.4 and max(left) > 0.8


@pytest.mark.parametrize(("dx", "dy"), [(2, -1), (-2, 0), (0, 0)])
def test_a_shift_moves_ink_and_boxes_together(dx: int, dy: int) -> None:
    moved = shift(draw_labeled_image(Scene("colors", (place("car", "red", (8, 8), 48),), {})), dx, dy)
    x1, y1, x2, y2 = moved.objects[0][0].box
    ink = np.nonzero((moved.pixels != 236).any(-1))
    assert (ink[1].min(), ink[0].min(), ink[1].max() + 1, ink[0].max() + 1) == (x1, y1, x2, y2)


def test_the_tokenizer_touches_only_the_rows_it_should(vq: VQModel) -> None:
    pixels = to_pixel_values(torch.randint(0, 256, (6, 64, 64, 3), dtype=torch.uint8))
    touches = torch.tensor([UNTOUCHED, RECONSTRUCTED, NOISY, SCRAMBLED, SMEARED, UNTOUCHED])
    seen, again = (retouch(vq, pixels, touches, torch.Generator().manual_seed(0)) for _ in range(2))
    assert torch.equal(seen, again) and torch.equal(seen[[0, 5]], pixels[[0, 5]])
    alone = vq.decode(vq.encode(pixels))
    torch.testing.assert_close(seen[1], alone[1], rtol=0, atol=1e-4)
    assert all((seen[row] - alone[row]).abs().max() > 1e-3 for row in (3, 4))
    assert torch.equal(retouch(vq, pixels, torch.zeros(6, dtype=torch.long), torch.Generator()), pixels)


def test_ruined_pictures_show_nothing() -> None:
    batch = SceneBatches(DetectorConfig(**NAMES), ImageMix(tokenizer_share=1.0), 60, 1, seed=0)[0]
    ruined = (batch["retouch"] == SCRAMBLED) | (batch["retouch"] == SMEARED)
    assert ruined.any() and (batch["class_labels"][ruined] == 0).all() and (batch["class_labels"][~ruined] > 0).any()
    assert set(batch["retouch"].tolist()) == {RECONSTRUCTED, NOISY, SCRAMBLED, SMEARED}


# --- ceilings


class Oracle:
    """Knows the truth of the scenes it is asked about, in their order."""

    def __init__(self, scenes: list[Scene]) -> None:
        self.truths = [true_detections(scene) for scene in scenes]

    def detect(self, images: list[Image.Image]) -> list[dict[str, list[list[float]]]]:
        assert len(images) == len(self.truths)
        return self.truths


def test_a_perfect_detector_reaches_every_ceiling(vq: VQModel) -> None:
    scores = ceilings(Oracle(ceiling_scenes(8, 0)), vq, per_task=8, seed=0)
    assert scores["renders"]["overall"] == scores["reconstructions"]["overall"] == 1.0
    assert scores["renders_wrong_caption"]["overall"] == scores["reconstructions_wrong_caption"]["overall"] == 0.0
    assert list(scores["renders"]["tasks"]) == list(TAGS) and scores["renders"]["images"] == 48


def test_ceiling_scenes_are_of_both_layouts_and_both_splits() -> None:
    scenes = [scene for scene in ceiling_scenes(8, 0) if scene.tag == "colors"]
    tidy_ones = [scene for scene in scenes if scene == tidy(scene)]
    held_out = [s for s in scenes if ("colour", s.objects[0].class_name, s.objects[0].colour) in HELD_OUT]
    assert 4 <= len(tidy_ones) < 8 and len(held_out) == 4


def test_wrong_captions_are_wrong_and_of_the_same_task() -> None:
    scenes = ceiling_scenes(10, 1)
    for scene, metadata in zip(scenes, wrong_captions(scenes, 1), strict=True):
        assert metadata["tag"] == scene.tag and not geneval_verdict(metadata, true_detections(scene))[0]
    with pytest.raises(ValueError, match="more scenes per task"):
        wrong_captions(scenes[:1], 0)


@pytest.mark.skipif(not SHIPPED.is_dir(), reason="no detector is shipped")
def test_the_shipped_detector_knows_its_scenes() -> None:
    weights = load_file(SHIPPED / "model.safetensors")
    assert sum(w.numel() for w in weights.values()) <= 2_000_000
    assert (SHIPPED / "model.safetensors").stat().st_size <= 4_000_000
    detector, tokenizer = (kind.from_pretrained(ROOT / "weights" / name).eval() for kind, name in PARTS)
    scores = ceilings(detector, tokenizer, per_task=20, seed=12345)
    assert scores["renders"]["overall"] >= 0.97 and scores["reconstructions"]["overall"] >= 0.95
    assert scores["renders_wrong_caption"]["overall"] <= 0.05


PARTS = ((SceneDetector, "scenes-detector"), (VQModel, "scenes-vq"))
