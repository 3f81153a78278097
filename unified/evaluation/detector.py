"""The Scenes detector: class, colour and box of every object of a 64x64 image. It is for Scenes what Mask2Former and
CLIP are for photographs in GenEval.

Objects are points (CenterNet, Zhou et al. 2019, arXiv 1904.07850): the grid place nearest to an object's centre
predicts it. Objects of Scenes are 32 pixels from each other, so a place has one object or none, and instead of
CenterNet's independent heat maps every place has one softmax over background and classes. Scores are therefore
probabilities, near 0 or 1 where the image is clear, and a place cannot count for two classes.

Legend: B batch, N classes, M colours, G side of the grid (places `STRIDE` pixels apart, the first on the border), O
objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers.utils import ModelOutput

from unified.files.images import image_to_pixels
from unified.files.weights import StrictPreTrainedModel
from unified.image_tokenizer.layers import ChannelNorm, ResnetBlock

STRIDE = 8
STEM_STRIDE = 4
IGNORED = -100  # label of places and colours the loss ignores
BACKGROUND_LABEL = 0
SIDES = 4  # x1, y1, x2, y2


class DetectorConfig(PreTrainedConfig):
    """Shape of a `SceneDetector` and the names of its outputs.

    Attributes:
        class_names, colour_names: in the order of the outputs; colours in GenEval's order.
        image_size: side of the square input image; other images are scaled and cropped to it.
        channels, num_blocks: widths and residual blocks at strides 4 and 8.
        score_floor: peaks below this probability are not reported; far below every published threshold.
    """

    model_type = "unified_detector"

    class_names: list[str] | tuple[str, ...] = ()
    colour_names: list[str] | tuple[str, ...] = ()
    image_size: int = 64
    channels: list[int] | tuple[int, ...] = (64, 112)
    num_blocks: list[int] | tuple[int, ...] = (2, 3)
    score_floor: float = 0.05

    def __post_init__(self, **kwargs: object) -> None:
        super().__post_init__(**kwargs)
        if self.image_size % STRIDE or len(self.channels) != 2 or len(self.num_blocks) != 2:
            raise ValueError(
                f"image_size {self.image_size}, channels {list(self.channels)}, num_blocks {list(self.num_blocks)}: "
                f"give a multiple of {STRIDE} and two numbers each, for strides {STEM_STRIDE} and {STRIDE}"
            )

    @property
    def grid(self) -> int:
        """Places on a side, both borders included: G."""
        return self.image_size // STRIDE + 1


@dataclass
class DetectorOutput(ModelOutput):
    """`class_logits` (B, 1 + N, G, G), background first; `colour_logits` (B, M, G, G); `boxes` (B, 4, G, G) in pixels.

    With labels: `loss` and its terms `class_loss` (nats per object), `colour_loss` (nats), `box_loss` (strides).
    """

    loss: Tensor | None = None
    class_loss: Tensor | None = None
    colour_loss: Tensor | None = None
    box_loss: Tensor | None = None
    class_logits: Tensor | None = None
    colour_logits: Tensor | None = None
    boxes: Tensor | None = None


def place_of(box: Sequence[float]) -> tuple[int, int]:
    """Row and column of the place nearest to the centre of a box (x1, y1, x2, y2) in pixels."""
    x1, y1, x2, y2 = box
    return round((y1 + y2) / 2 / STRIDE), round((x1 + x2) / 2 / STRIDE)


class SceneDetector(StrictPreTrainedModel):
    """Small convolutional detector; pixel values are in [-1, 1]."""

    config: DetectorConfig
    config_class = DetectorConfig
    main_input_name = "pixel_values"
    name = "scenes"

    def __init__(self, config: DetectorConfig) -> None:
        super().__init__(config)
        fine, coarse = config.channels
        layers: list[nn.Module] = [nn.Conv2d(3, fine, STEM_STRIDE, stride=STEM_STRIDE)]
        layers += [ResnetBlock(fine, fine, ChannelNorm) for _ in range(config.num_blocks[0])]
        layers += [nn.Conv2d(fine, coarse, STRIDE // STEM_STRIDE, stride=STRIDE // STEM_STRIDE)]
        layers += [ResnetBlock(coarse, coarse, ChannelNorm) for _ in range(config.num_blocks[1])]
        self.body = nn.Sequential(*layers, ChannelNorm(coarse), nn.SiLU())
        self.outputs = [1 + len(config.class_names), len(config.colour_names), SIDES]
        self.head = nn.Conv2d(coarse, sum(self.outputs), 1)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """PyTorch's own initialisation."""
        if isinstance(module, nn.Conv2d | nn.LayerNorm):
            module.reset_parameters()

    def forward(
        self,
        pixel_values: Tensor,
        class_labels: Tensor | None = None,
        colour_labels: Tensor | None = None,
        box_labels: Tensor | None = None,
    ) -> DetectorOutput:
        """Predictions for `pixel_values` (B, 3, H, W).

        Labels: `class_labels` (B, G, G) int64, 0 for background, 1 + class, or `IGNORED`; `colour_labels` (B, G, G)
        int64 or `IGNORED`; `box_labels` (B, 4, G, G) in pixels, read only where there is an object.
        """
        half = STRIDE // 2  # a cell of the strided convolutions is then centred on a multiple of the stride
        h = self.head(self.body(F.pad(pixel_values, (half, half, half, half), mode="replicate"))).float()
        class_logits, colour_logits, offsets = h.split(self.outputs, dim=1)
        points = torch.arange(self.config.grid, device=h.device) * STRIDE
        y, x = torch.meshgrid(points, points, indexing="ij")
        output = DetectorOutput(
            class_logits=class_logits, colour_logits=colour_logits, boxes=torch.stack([x, y, x, y]) + STRIDE * offsets
        )
        if class_labels is None or colour_labels is None or box_labels is None:
            return output
        return self._with_loss(output, class_labels, colour_labels, box_labels)

    def _with_loss(self, output: DetectorOutput, classes: Tensor, colours: Tensor, boxes: Tensor) -> DetectorOutput:
        assert output.class_logits is not None and output.colour_logits is not None and output.boxes is not None
        objects = classes > BACKGROUND_LABEL
        count = objects.sum().clamp(min=1)
        coloured = (colours != IGNORED).sum().clamp(min=1)
        summed = partial(F.cross_entropy, ignore_index=IGNORED, reduction="sum")
        output.class_loss = summed(output.class_logits, classes) / count
        output.colour_loss = summed(output.colour_logits, colours) / coloured
        distance = (output.boxes - boxes).abs().mean(dim=1) / STRIDE
        output.box_loss = torch.where(objects, distance, 0).sum() / count
        output.loss = output.class_loss + output.colour_loss + output.box_loss
        return output

    def detect(self, images: Sequence[Image.Image], batch_size: int = 128) -> list[dict[str, list[list[float]]]]:
        """`Detections` of every image: class name -> [x1, y1, x2, y2, score, colour index], best score first.

        Boxes are in pixels of the image itself. Scores are probabilities and no threshold has been applied to them,
        other than `score_floor`.
        """
        found = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            pixels = [image_to_pixels(image, self.config.image_size) for image in batch]
            peaks = self.peaks(torch.stack(pixels).to(self.device))
            found += [self._named(*peak, image.size) for peak, image in zip(peaks, batch, strict=True)]
        return found

    @torch.no_grad()
    def peaks(self, pixel_values: Tensor) -> list[tuple[Tensor, Tensor]]:
        """For every image (B, 3, H, W): class (O,) and box, score, colour index (O, 6), best score first.

        A peak is a place whose best class is likelier than that of its 8 neighbours, whichever classes those are:
        what is nearer than 12 pixels to another object is not an object of its own in any scene.
        """
        output = self(pixel_values)
        scores, classes = output.class_logits.softmax(dim=1)[:, 1:].max(dim=1)
        highest = F.max_pool2d(scores, kernel_size=3, stride=1, padding=1)
        kept = (scores == highest) & (scores >= self.config.score_floor)
        colours = output.colour_logits.argmax(dim=1)
        rows = torch.cat([output.boxes, scores[:, None], colours[:, None].to(scores.dtype)], dim=1)
        rows = rearrange(rows, "b six g h -> b g h six")
        found = []
        for index, mask in enumerate(kept):
            order = scores[index][mask].argsort(descending=True)
            found.append((classes[index][mask][order].cpu(), rows[index][mask][order].cpu()))
        return found

    def _named(self, classes: Tensor, rows: Tensor, size: tuple[int, int]) -> dict[str, list[list[float]]]:
        """One image's peaks by class name, their boxes moved to an image of `size` (width, height)."""
        side = self.config.image_size
        scale = min(size) / side  # the image was scaled to cover the square and cropped to its centre
        left, top = ((length - side * scale) / 2 for length in size)
        detections: dict[str, list[list[float]]] = {}
        for number, (x1, y1, x2, y2, score, colour) in zip(classes.tolist(), rows.tolist(), strict=True):
            box = [left + x1 * scale, top + y1 * scale, left + x2 * scale, top + y2 * scale]
            detections.setdefault(self.config.class_names[number], []).append([*box, score, int(colour)])
        return detections
