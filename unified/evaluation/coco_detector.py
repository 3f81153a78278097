"""GenEval's detector for real images on current packages: Mask2Former finds instances, CLIP names their colours.

The protocol is that of djghosh13/geneval (arXiv 2310.11513) with mmdet 2.x: instances as Mask2Former's instance
segmentation makes them, no further suppression, colours zero-shot over the instance alone on a grey ground. Images
are prepared here rather than by image processors, for two reasons: those of the published checkpoints squeeze every
image to 384 x 384, where GenEval detects at 800 pixels, and they differ with and without torchvision.

Legend: B images of one size, Q queries, N instances, H W pixels, D width of CLIP's embedding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoTokenizer,
    CLIPModel,
    Mask2FormerConfig,
    Mask2FormerModel,
    Mask2FormerPreTrainedModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from unified.evaluation.metrics import GENEVAL_COLOURS
from unified.files.images import to_rgb
from unified.hardware.device import best_device

# COCO's 80 classes in its order, spelt as GenEval does. mmdet says mouse, remote and keyboard (64 to 66); the label
# files of transformers differ in further places (sofa for couch, say): only the index can be relied upon.
CLASS_NAMES = tuple(
    "person,bicycle,car,motorcycle,airplane,bus,train,truck,boat,traffic light,fire hydrant,stop sign,parking meter,"
    "bench,bird,cat,dog,horse,sheep,cow,elephant,bear,zebra,giraffe,backpack,umbrella,handbag,tie,suitcase,frisbee,"
    "skis,snowboard,sports ball,kite,baseball bat,baseball glove,skateboard,surfboard,tennis racket,bottle,"
    "wine glass,cup,fork,knife,spoon,bowl,banana,apple,sandwich,orange,broccoli,carrot,hot dog,pizza,donut,cake,"
    "chair,couch,potted plant,bed,dining table,toilet,tv,laptop,computer mouse,tv remote,computer keyboard,cell phone,"
    "microwave,oven,toaster,sink,refrigerator,book,clock,vase,scissors,teddy bear,hair drier,toothbrush".split(",")
)
DETECTOR = "facebook/mask2former-swin-small-coco-instance"
CLIP = "openai/clip-vit-large-patch14"
Model = TypeVar("Model", bound=PreTrainedModel)


@dataclass(frozen=True)
class CocoSettings:
    """The protocol's numbers; the defaults are the published ones, except `min_score` and the batch sizes."""

    shortest_edge: int = 800  # images are scaled to this shorter side ...
    longest_edge: int = 1333  # ... unless the longer one would exceed this
    size_divisor: int = 32  # and padded to its multiples on the right and below
    pad_value: int = 128
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    max_instances: int = 100  # of all queries and classes of an image, before any score
    min_score: float = 0.05  # ours: weaker instances are left out, far below the .3 that GenEval asks for
    background: int = 0x99  # grey level around an instance whose colour is asked
    templates: tuple[str, ...] = (
        "a photo of a {colour} {name}",
        "a photo of a {colour}-colored {name}",
        "a photo of a {colour} object",
    )
    clip_mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    clip_std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    batch_size: int = 4  # images of one size in a batch
    colour_batch_size: int = 32  # instances in a batch

    def __post_init__(self) -> None:
        if not 0 <= self.min_score < 1:
            raise ValueError(f"min_score is {self.min_score}, must be in [0, 1); GenEval's own threshold is 0.3")


class Sizes(NamedTuple):
    """(height, width) of an image as it came, as the model sees it, and with the padding."""

    original: tuple[int, int]
    resized: tuple[int, int]
    padded: tuple[int, int]


class Instances(NamedTuple):
    """What was found in one image, best first."""

    labels: Tensor  # (N,) index of COCO's class
    scores: Tensor  # (N,)
    boxes: Tensor  # (N, 4) x1 y1 x2 y2 in pixels; x2 and y2 lie one behind the last pixel
    masks: Tensor  # (N, H, W) bool


class InstanceSegmenter(Mask2FormerPreTrainedModel):
    """Mask2FormerForUniversalSegmentation's weights and answers without its training loss, which wants scipy."""

    _keys_to_ignore_on_load_unexpected = [r"criterion\."]

    def __init__(self, config: Mask2FormerConfig) -> None:
        super().__init__(config)
        self.model = Mask2FormerModel(config)
        self.class_predictor = nn.Linear(config.hidden_dim, config.num_labels + 1)  # type: ignore[operator]
        self.post_init()

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> logits of classes (B, Q, classes + 1) and of masks (B, Q, H / 4, W / 4)."""
        outputs = self.model(pixel_values=pixel_values, output_hidden_states=True)
        queries = outputs.transformer_decoder_intermediate_states[-1].transpose(0, 1)
        return self.class_predictor(queries), outputs.masks_queries_logits[-1]


def image_sizes(image: Image.Image, settings: CocoSettings) -> Sizes:
    """To what size mmdet would scale and pad `image`."""
    width, height = image.size
    scale = min(settings.longest_edge / max(image.size), settings.shortest_edge / min(image.size))
    resized = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
    padded = [-(-side // settings.size_divisor) * settings.size_divisor for side in resized]
    return Sizes((height, width), resized, (padded[0], padded[1]))


def prepare(image: Image.Image, sizes: Sizes, settings: CocoSettings) -> Tensor:
    """RGB image -> normalised pixels (3, *sizes.padded); bilinear without smoothing, as mmdet's OpenCV does it."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()
    pixels = F.interpolate(pixels, sizes.resized, mode="bilinear", align_corners=False).round()
    (height, width), (padded_height, padded_width) = sizes.resized, sizes.padded
    pixels = F.pad(pixels, (0, padded_width - width, 0, padded_height - height), value=settings.pad_value)
    mean, std = torch.tensor(settings.pixel_mean), torch.tensor(settings.pixel_std)
    return (pixels[0] - mean[:, None, None]) / std[:, None, None]


def resize_masks(mask_logits: Tensor, sizes: Sizes) -> Tensor:
    """Logits (N, h, w) of the padded image -> (N, H, W) of the original, in mmdet's two steps."""
    height, width = sizes.resized
    padded = F.interpolate(mask_logits[:, None].float(), sizes.padded, mode="bilinear", align_corners=False)
    cropped = padded[..., :height, :width]
    return F.interpolate(cropped, sizes.original, mode="bilinear", align_corners=False)[:, 0]


def mask_boxes(masks: Tensor) -> Tensor:
    """Boxes (N, 4) around masks (N, H, W) that are not empty: x1 y1 of the first pixel, x2 y2 behind the last one."""
    columns, rows = masks.any(1).int(), masks.any(2).int()
    first = [columns.argmax(1), rows.argmax(1)]
    last = [side.shape[1] - side.flip(1).argmax(1) for side in (columns, rows)]
    return torch.stack([*first, *last], dim=1)


def find_instances(class_logits: Tensor, mask_logits: Tensor, sizes: Sizes, settings: CocoSettings) -> Instances:
    """One image's logits of classes (Q, classes + 1) and masks (Q, h, w) -> its instances, as mmdet makes them.

    transformers' post_process_instance_segmentation is no substitute: it scores masks at 384 x 384, keeps as many
    (query, class) pairs as there are queries, lets a later segment overwrite an earlier one, and resizes what is
    already binary. Here masks overlap freely, are resized as logits, and are scored in the image's own pixels.
    """
    probabilities = class_logits.float().softmax(-1)[:, :-1]
    best = probabilities.flatten().topk(min(settings.max_instances, probabilities.numel()))
    # a mask's score is below 1, so a pair that is too weak already needs no mask
    pairs = best.indices[best.values > settings.min_score]
    labels = pairs % probabilities.shape[1]
    queries, query = (pairs // probabilities.shape[1]).unique(return_inverse=True)
    logits = resize_masks(mask_logits[queries], sizes)
    masks = logits > 0
    sure = (logits.sigmoid() * masks).flatten(1).sum(1) / (masks.flatten(1).sum(1) + 1e-6)
    scores = best.values[: len(pairs)] * sure[query]
    order = scores.argsort(descending=True, stable=True)
    order = order[scores[order] > settings.min_score]  # an empty mask scores 0 and never passes
    chosen = masks[query[order]]
    return Instances(labels[order], scores[order], mask_boxes(chosen), chosen)


def cut_outs(pixels: np.ndarray, instances: Instances, background: int) -> list[Image.Image]:
    """Every instance's own pixels of the image (H, W, 3) on grey, cropped to its box."""
    pictures = []
    masks = instances.masks.cpu().numpy()
    for mask, (left, top, right, bottom) in zip(masks, instances.boxes.tolist(), strict=True):
        part = (slice(top, bottom), slice(left, right))
        pictures.append(Image.fromarray(np.where(mask[part][..., None], pixels[part], np.uint8(background))))
    return pictures


def centre_square(image: Image.Image, side: int) -> Image.Image:
    """CLIP's view: the shorter side scaled to `side` (bicubic), the centre cut out; rounds as torchvision does."""
    width, height = image.size
    scaled = (side * width // min(image.size), side * height // min(image.size))
    left, top = (round((length - side) / 2) for length in scaled)
    return image.resize(scaled, Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))


class ColourNamer:
    """CLIP's zero-shot answer which of GenEval's ten colours an instance has."""

    def __init__(self, clip: CLIPModel, tokenizer: PreTrainedTokenizerBase, settings: CocoSettings) -> None:
        self.clip, self.tokenizer, self.settings = clip, tokenizer, settings
        self._classifiers: dict[str, Tensor] = {}

    def classifier(self, name: str) -> Tensor:
        """Text embeddings (10, D) of the colours of a class: mean of the templates' unit vectors, again a unit."""
        if name not in self._classifiers:
            templates = self.settings.templates
            texts = [text.format(colour=colour, name=name) for colour in GENEVAL_COLOURS for text in templates]
            tokens = self.tokenizer(texts, padding=True, return_tensors="pt").to(self.clip.device)
            vectors = F.normalize(self.clip.get_text_features(**tokens).pooler_output.float(), dim=-1)
            means = vectors.unflatten(0, (len(GENEVAL_COLOURS), len(templates))).mean(1)
            self._classifiers[name] = F.normalize(means, dim=-1)
        return self._classifiers[name]

    def pixel_values(self, cutouts: Sequence[Image.Image]) -> Tensor:
        """Normalised pixels (N, 3, side, side) of instances on grey."""
        side: int = self.clip.config.vision_config.image_size  # type: ignore[union-attr, assignment]
        views = np.stack([np.array(centre_square(cutout, side)) for cutout in cutouts])
        pixels = torch.from_numpy(views).permute(0, 3, 1, 2).to(self.clip.device).float() / 255
        mean, std = pixels.new_tensor(self.settings.clip_mean), pixels.new_tensor(self.settings.clip_std)
        return (pixels - mean[:, None, None]) / std[:, None, None]

    def name_colours(self, cutouts: Sequence[Image.Image], names: Sequence[str]) -> list[int]:
        """Index into GENEVAL_COLOURS of every instance on grey, whose class is in `names`."""
        colours: list[int] = []
        size = self.settings.colour_batch_size
        for start in range(0, len(cutouts), size):
            pixels = self.pixel_values(cutouts[start : start + size])
            vectors = F.normalize(self.clip.get_image_features(pixel_values=pixels).pooler_output.float(), dim=-1)
            classifiers = torch.stack([self.classifier(name) for name in names[start : start + size]])
            # float32 whatever autocast says: of two close colours the nearer one has to win
            colours += (classifiers * vectors[:, None]).sum(-1).argmax(-1).tolist()
        return colours


class CocoDetector:
    """Images -> detections of COCO's classes under GenEval's names, above `settings.min_score`, before its rules."""

    def __init__(
        self, segmenter: InstanceSegmenter, colours: ColourNamer, name: str, dtype: torch.dtype = torch.float32
    ) -> None:
        if segmenter.config.num_labels != len(CLASS_NAMES):
            raise ValueError(
                f"{name}: {segmenter.config.num_labels} classes instead of COCO's {len(CLASS_NAMES)}; "
                f"give an instance model such as {DETECTOR}, no panoptic or semantic one"
            )
        self.segmenter, self.colours, self.name, self.dtype = segmenter, colours, name, dtype
        self.settings = colours.settings

    @classmethod
    def load(
        cls,
        detector: str = DETECTOR,
        clip: str = CLIP,
        device: str | torch.device | None = None,
        dtype: torch.dtype | None = None,
        settings: CocoSettings | None = None,
    ) -> Self:
        """Detector from hub ids or local folders.

        Args:
            device: the best there is by default.
            dtype: of the matrix products, under autocast: bfloat16 on CUDA and float32 elsewhere by default. The
                weights stay float32, since bfloat16 rounds neighbouring pixels' coordinates to one.

        Raises ValueError where weights are not to be had, are incomplete, or belong to another kind of model.
        """
        device = torch.device(device or best_device())
        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        segmenter = load_weights(InstanceSegmenter, detector, DETECTOR, device)
        clip_model = load_weights(CLIPModel, clip, CLIP, device)
        tokenizer = _have(AutoTokenizer.from_pretrained, clip, CLIP)
        colours = ColourNamer(clip_model, tokenizer, settings or CocoSettings())
        return cls(segmenter, colours, f"{detector} + {clip}", dtype)

    @torch.inference_mode()
    def detect(self, images: Sequence[Image.Image]) -> list[dict[str, list[list[float]]]]:
        """Of every image: class -> `[x1, y1, x2, y2, score, colour]`, best first; absent classes have no key.

        Only images of one size share a batch, so that what is found in one depends on no other.
        """
        pictures = [to_rgb(image) for image in images]
        found: list[dict[str, list[list[float]]]] = [{} for _ in pictures]
        for sizes, indices in self._batches(pictures):
            batch = [pictures[index] for index in indices]
            for index, detections in zip(indices, self._detect_batch(batch, sizes), strict=True):
                found[index] = detections
        return found

    def _batches(self, pictures: Sequence[Image.Image]) -> Iterator[tuple[Sizes, list[int]]]:
        groups: dict[Sizes, list[int]] = {}
        for index, picture in enumerate(pictures):
            groups.setdefault(image_sizes(picture, self.settings), []).append(index)
        for sizes, indices in groups.items():
            for start in range(0, len(indices), self.settings.batch_size):
                yield sizes, indices[start : start + self.settings.batch_size]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.segmenter.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _detect_batch(self, pictures: Sequence[Image.Image], sizes: Sizes) -> list[dict[str, list[list[float]]]]:
        pixels = torch.stack([prepare(picture, sizes, self.settings) for picture in pictures])
        with self._autocast():
            class_logits, mask_logits = self.segmenter(pixels.to(self.segmenter.device))
        names: list[list[str]] = []
        rows: list[list[list[float]]] = []
        cutouts: list[Image.Image] = []
        for picture, classes, masks in zip(pictures, class_logits, mask_logits, strict=True):
            # one image's masks at a time: 100 of a megapixel each are half a gigabyte
            instances = find_instances(classes, masks, sizes, self.settings)
            names.append([CLASS_NAMES[label] for label in instances.labels.tolist()])
            rows.append(torch.cat([instances.boxes, instances.scores[:, None]], dim=1).tolist())
            cutouts += cut_outs(np.array(picture), instances, self.settings.background)
        with self._autocast():
            colours = iter(self.colours.name_colours(cutouts, [name for of_one in names for name in of_one]))
        found: list[dict[str, list[list[float]]]] = [{} for _ in pictures]
        for detections, of_one, boxes in zip(found, names, rows, strict=True):
            for name, box in zip(of_one, boxes, strict=True):
                detections.setdefault(name, []).append([*box, next(colours)])
        return found


def load_weights(kind: type[Model], name: str, published: str, device: torch.device) -> Model:
    """Model of class `kind` in float32 and eval mode from the hub id or folder `name`.

    Raises ValueError where the weights are not to be had, belong to another kind of model, or leave a layer random.
    """
    config = _have(AutoConfig.from_pretrained, name, published)
    assert kind.config_class is not None
    if not isinstance(config, kind.config_class):
        raise ValueError(
            f"{name} holds a model of type {config.model_type!r}, not {kind.config_class.model_type!r}; "
            f"give {published} or a folder with a model like it"
        )
    load = partial(kind.from_pretrained, config=config, dtype=torch.float32, output_loading_info=True)
    model, report = _have(load, name, published)
    missing = sorted(map(str, [*report["missing_keys"], *report["mismatched_keys"]]))
    if missing:
        raise ValueError(f"{name} lacks {len(missing)} of the model's weights, {missing[0]} first; give {published}")
    return model.to(device).eval()


def _have(load: Callable[[str], Any], name: str, published: str) -> Any:
    # transformers raises OSError where the network, the repository or a file is missing, ValueError without a config
    try:
        return load(name)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"no weights of {name} here: {str(error).strip().splitlines()[0]} "
            f"Run `hf download {published} --local-dir DIR` where there is a network, and give the folder DIR"
        ) from error
