"""GenEval's detector: colours, pictures whose objects are known, and tiny random models from disk."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tolerances import assert_sums_agree, error_of
from torch import Tensor
from toy_coco import (
    MOUSE,
    REMOTE,
    TINY,
    box_logits,
    class_logits,
    noise,
    save_tiny_clip,
    save_tiny_mask2former,
    sigmoid,
)
from transformers import BatchEncoding, Mask2FormerForUniversalSegmentation
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from unified.evaluation.coco_detector import (
    CLASS_NAMES,
    CocoDetector,
    CocoSettings,
    ColourNamer,
    InstanceSegmenter,
    load_weights,
)
from unified.evaluation.metrics import GENEVAL_COLOURS

RED, BLUE = 0, 4

# --- colours


class FakeTokenizer:
    """Tokens are the numbers of the texts, which it remembers."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: list[str], **_: object) -> BatchEncoding:
        first = len(self.texts)
        self.texts += texts
        return BatchEncoding({"input_ids": torch.arange(first, len(self.texts))[:, None]})


LEVELS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "white": (1, 1, 1), "black": (0, 0, 0)}


class FakeClip:
    """Feature of a picture: its mean colour as seen from grey. Of a text: that of the colour it names.

    `strange` maps a template's beginning to a colour whose vector, 50 times as long, stands for all its texts.
    """

    device = torch.device("cpu")
    config = SimpleNamespace(vision_config=SimpleNamespace(image_size=16))

    def __init__(self, tokenizer: FakeTokenizer, strange: dict[str, str] | None = None) -> None:
        self.tokenizer, self.strange, self.batches = tokenizer, strange or {}, []

    def feature(self, text: str) -> list[float]:
        for ending, colour in self.strange.items():
            if text.endswith(ending):
                return [50 * (level - 0.6) for level in LEVELS[colour]]
        colour = next((colour for colour in LEVELS if f" {colour}" in text), None)
        return [level - 0.6 for level in LEVELS[colour]] if colour else [0.6, -0.6, 0.1]

    def get_text_features(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(pooler_output=torch.tensor([self.feature(self.tokenizer.texts[i]) for i in input_ids]))

    def get_image_features(self, pixel_values: Tensor) -> SimpleNamespace:
        self.batches.append(len(pixel_values))
        mean, std = (torch.tensor(values)[:, None, None] for values in (TINY.clip_mean, TINY.clip_std))
        return SimpleNamespace(pooler_output=(pixel_values * std + mean - 0.6).mean((2, 3)))


def fake_namer(strange: dict[str, str] | None = None) -> ColourNamer:
    tokenizer = FakeTokenizer()
    return ColourNamer(FakeClip(tokenizer, strange), tokenizer, TINY)


def test_templates_are_those_of_geneval_and_asked_once_a_class() -> None:
    namer = fake_namer()
    for _ in range(2):
        namer.name_colours([Image.new("RGB", (4, 4), "red")] * 2, ["tv remote", "cat"])
    texts = namer.tokenizer.texts
    assert len(texts) == 2 * 10 * 3
    assert texts[:3] == ["a photo of a red tv remote", "a photo of a red-colored tv remote", "a photo of a red object"]
    assert texts[27:31] == [
        "a photo of a white tv remote",
        "a photo of a white-colored tv remote",
        "a photo of a white object",
        "a photo of a red cat",
    ]


def test_colours_are_named_in_batches_and_in_order() -> None:
    namer = fake_namer()
    colours = ["red", "green", "blue", "white", "black", "blue", "red"]
    levels = [tuple(255 * level for level in LEVELS[colour]) for colour in colours]
    found = namer.name_colours([Image.new("RGB", (9, 5), level) for level in levels], ["cat"] * 7)
    assert [GENEVAL_COLOURS[index] for index in found] == colours
    assert namer.clip.batches == [3, 3, 1]


def test_every_template_has_one_vote_however_long_its_vector() -> None:
    # one template of three says blue for `red`, 50 times as loud; averaged as unit vectors, two to one are for red
    namer = fake_namer({"a red object": "blue"})
    vectors = namer.classifier("cat")
    assert vectors.shape == (10, 3) and torch.allclose(vectors.norm(dim=-1), torch.ones(10))
    one, other = (torch.nn.functional.normalize(torch.tensor(LEVELS[c]) - 0.6, dim=0) for c in ("red", "blue"))
    assert torch.allclose(vectors[RED], torch.nn.functional.normalize(2 * one + other, dim=0), atol=error_of(100))
    assert namer.name_colours([Image.new("RGB", (4, 4), "red")], ["cat"]) == [RED]


# sizes that leave an even rest: of an odd one transformers cuts half a pixel elsewhere than torchvision and open_clip
@pytest.mark.parametrize("size", [(300, 200), (180, 270)])
def test_clips_pixels_are_those_of_its_own_image_processor(size: tuple[int, int]) -> None:
    namer = ColourNamer(FakeClip(FakeTokenizer()), FakeTokenizer(), CocoSettings())
    namer.clip.config = SimpleNamespace(vision_config=SimpleNamespace(image_size=224))
    expected = CLIPImageProcessorPil()(noise(*size), return_tensors="pt")["pixel_values"]
    assert_sums_agree(namer.pixel_values([noise(*size)]), expected, 500)  # of a resizing filter


# --- the whole detector on hand-made logits


class FakeSegmenter:
    """Answers every picture of a batch with the same logits."""

    device = torch.device("cpu")
    config = SimpleNamespace(num_labels=80)

    def __init__(self, classes: Tensor, masks: Tensor) -> None:
        self.classes, self.masks, self.batches = classes, masks, []

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        self.batches.append(tuple(pixels.shape))
        return self.classes.expand(len(pixels), -1, -1), self.masks.expand(len(pixels), -1, -1, -1)


def test_detections_of_a_picture_whose_objects_are_known() -> None:
    picture = Image.new("RGB", (64, 64), "white")
    picture.paste("red", (8, 8, 24, 24))
    picture.paste("blue", (32, 40, 56, 60))
    picture.paste("blue", (16, 16, 24, 24))  # a quarter of the red thing's box, and not in its mask
    masks = box_logits(64, 64, (8, 8, 24, 24), (32, 40, 56, 60), (0, 0, 64, 64))
    masks[0, 16:24, 16:24] = -9
    classes = class_logits({MOUSE: 0.9}, {REMOTE: 0.6, MOUSE: 0.2}, {15: 0.01})
    segmenter = FakeSegmenter(classes, masks)
    detector = CocoDetector(segmenter, fake_namer(), "fake")
    detections, again, third = detector.detect([picture, picture, picture])
    assert segmenter.batches == [(2, 3, 64, 64), (1, 3, 64, 64)] and detections == again == third
    sure = sigmoid(4)
    assert list(detections) == ["computer mouse", "tv remote"]
    assert detections["computer mouse"] == [
        pytest.approx([8, 8, 24, 24, 0.9 * sure, RED], rel=1e-4),
        pytest.approx([32, 40, 56, 60, 0.2 * sure, BLUE], rel=1e-4),
    ]
    assert detections["tv remote"] == [pytest.approx([32, 40, 56, 60, 0.6 * sure, BLUE], rel=1e-4)]


def test_models_of_other_classes_are_refused() -> None:
    segmenter = FakeSegmenter(torch.zeros(1, 134), torch.zeros(1, 4, 4))
    segmenter.config = SimpleNamespace(num_labels=133)
    with pytest.raises(ValueError, match="133 classes instead of COCO's 80; give an instance model"):
        CocoDetector(segmenter, fake_namer(), "panoptic")


# --- tiny models from disk


@pytest.fixture(scope="module")
def detector_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_mask2former(tmp_path_factory.mktemp("mask2former"))


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def detector(detector_dir: Path, clip_dir: Path) -> CocoDetector:
    return CocoDetector.load(str(detector_dir), str(clip_dir), device="cpu", settings=TINY)


def close(found: dict, other: dict, scores: float = 1e-4) -> bool:
    """Equal classes, boxes and colours; scores nearly, since batches of other sizes add up in another order."""
    flat, flat_other = (np.array([box for boxes in d.values() for box in boxes]) for d in (found, other))
    return list(found) == list(other) and flat.shape == flat_other.shape and np.allclose(flat, flat_other, atol=scores)


def test_folders_to_detections(detector: CocoDetector, detector_dir: Path, clip_dir: Path) -> None:
    assert detector.name == f"{detector_dir} + {clip_dir}"
    pictures = [noise(64, 64), noise(48, 80), noise(64, 64, seed=1), noise(64, 64, seed=2).convert("RGBA")]
    found = detector.detect(pictures)
    assert all(close(detector.detect([picture])[0], one) for picture, one in zip(pictures, found, strict=True))
    assert json.loads(json.dumps(found)) == found
    assert sum(len(one) for one in found) > 4 and found[0] != found[2]
    for picture, one in zip(pictures, found, strict=True):
        assert set(one) <= set(CLASS_NAMES)
        for boxes in one.values():
            scores = [box[4] for box in boxes]
            assert scores == sorted(scores, reverse=True) and scores[-1] > TINY.min_score and scores[0] <= 1
            for x1, y1, x2, y2, _, colour in boxes:
                assert 0 <= x1 < x2 <= picture.width and 0 <= y1 < y2 <= picture.height
                assert isinstance(colour, int) and 0 <= colour < 10
    assert detector.detect([]) == []


def test_rotated_photographs_are_turned_first(detector: CocoDetector, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned a quarter to the right
    noise(48, 64).save(tmp_path / "turned.png", exif=exif)
    turned = noise(48, 64).transpose(Image.Transpose.ROTATE_270)
    assert detector.detect([Image.open(tmp_path / "turned.png")]) == detector.detect([turned])


def test_bfloat16_finds_nearly_the_same(detector: CocoDetector) -> None:
    colours = ColourNamer(detector.colours.clip, detector.colours.tokenizer, replace(TINY, min_score=0))
    both = [CocoDetector(detector.segmenter, colours, "", dtype) for dtype in (torch.float32, torch.bfloat16)]
    sums = [sum(b[4] for boxes in one.detect([noise(64, 64)])[0].values() for b in boxes) for one in both]
    assert sums[0] != sums[1] and sums[1] == pytest.approx(sums[0], rel=0.05)
    assert detector.dtype == detector.segmenter.dtype == torch.float32


def test_files_have_the_published_checkpoints_names(detector_dir: Path) -> None:
    block = "model.pixel_level_module.encoder.encoder.layers.0.blocks.0.attention.self.query.weight"
    assert {block, "class_predictor.bias"} <= load_file(detector_dir / "model.safetensors").keys()


def test_the_segmenter_answers_as_transformers_own_class(detector_dir: Path, tmp_path: Path) -> None:
    pytest.importorskip("scipy", reason="transformers' class builds its training loss, which needs scipy")
    theirs = Mask2FormerForUniversalSegmentation.from_pretrained(detector_dir).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_weights(InstanceSegmenter, str(tmp_path), "", torch.device("cpu"))
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, (classes, masks) = theirs(pixels), ours(pixels)
    torch.testing.assert_close(classes, expected.class_queries_logits)
    torch.testing.assert_close(masks, expected.masks_queries_logits)


def test_missing_weights_are_one_line_with_a_remedy(
    detector_dir: Path, clip_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="no weights of facebook/mask2former-swin-small-coco-instance here") as caught:
        CocoDetector.load(device="cpu")
    assert "hf download facebook/mask2former-swin-small-coco-instance --local-dir DIR" in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no weights of openai/clip-vit-large-patch14 here"):
        CocoDetector.load(str(detector_dir), device="cpu")
    with pytest.raises(ValueError, match="hf download facebook/mask2former-swin-small-coco-instance"):
        CocoDetector.load(str(tmp_path), str(clip_dir), device="cpu")
    with pytest.raises(ValueError, match="hf download openai/clip-vit-large-patch14"):
        CocoDetector.load(str(detector_dir), "/no/such/folder", device="cpu")


def test_other_models_and_incomplete_weights_are_refused(detector_dir: Path, clip_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a model of type 'clip', not 'mask2former'; give facebook/mask2former"):
        CocoDetector.load(str(clip_dir), str(clip_dir), device="cpu")
    model = InstanceSegmenter.from_pretrained(detector_dir)
    weights = {name: value for name, value in model.state_dict().items() if "class_predictor" not in name}
    model.save_pretrained(tmp_path, state_dict=weights)
    with pytest.raises(ValueError, match="lacks 2 of the model's weights, class_predictor.bias first"):
        CocoDetector.load(str(tmp_path), str(clip_dir), device="cpu")
