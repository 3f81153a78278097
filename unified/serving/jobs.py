"""What the engine is asked for, one answer each, and what it says as the answer grows.

Legend: L codes of an image, M input images.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image
from torch import Tensor

from unified.models.image_sampling import ImageSampling


def image_seed(seed: int, image: int) -> int:
    """Seed of an answer's i-th image: the answer's own for the first; 32 bits, as torch's CPU generator has."""
    return seed if image == 0 else int(np.random.SeedSequence([seed, image]).generate_state(1)[0])


@dataclass(frozen=True)
class TextSampling:
    """Sampling settings of text; temperature 0 is greedy, top_k 0 and top_p 1 are off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0


@dataclass(frozen=True)
class Job:
    """One answer to generate, as `generate`'s arguments.

    input_ids: the prompt; behind an image start token an image comes first. input_codes: (M, L), of its input images.
    image_seed(seed, i) is the i-th image's seed; text is sampled with `seed`.
    max_new_tokens: of text; 0 gives a single image. end_ids: ids that end the answer.
    partial_scales: after which scales (from 0) an unfinished image is decoded.
    seconds: time within which it has to be done, waiting included.
    owner: whose it is. Only the same owner's conversations are gone on with: how fast an answer comes tells of them.
    """

    input_ids: list[int]
    input_codes: Tensor
    end_ids: frozenset[int]
    seed: int = 0
    image_sampling: ImageSampling = field(default_factory=ImageSampling)
    text_sampling: TextSampling = field(default_factory=TextSampling)
    max_images: int = 1
    max_new_tokens: int = 0
    partial_scales: frozenset[int] = frozenset()
    seconds: float = 300.0
    owner: str = ""


@dataclass(frozen=True)
class TextToken:
    """One token of text."""

    token: int


@dataclass(frozen=True)
class PartialImage:
    """An image after `scale` (from 0), the answer's `number`-th."""

    number: int
    scale: int
    image: Image.Image


@dataclass(frozen=True)
class WholeImage:
    """A finished image, the answer's `number`-th: its codes (L,) and the seed that draws it again."""

    number: int
    seed: int
    codes: Tensor
    image: Image.Image


@dataclass(frozen=True)
class Finished:
    """The end of an answer: "stop" at an end token, "length" at max_new_tokens, "image" after a single image.

    cached: prompt positions that were not run again.
    """

    reason: str
    cached: int = 0


@dataclass(frozen=True)
class Failed:
    """The end of an answer that could not be finished: "cancelled", "timeout", "stopped" or "error", and why."""

    reason: str
    message: str
    cached: int = 0


Event = TextToken | PartialImage | WholeImage | Finished | Failed


class Ticket:
    """A submitted job, by which it is cancelled; `on_event` is called in the engine's thread."""

    def __init__(self, job: Job, on_event: Callable[[Event], None]) -> None:
        self.job, self.on_event = job, on_event
        self.deadline = time.monotonic() + job.seconds
        self.cancelled, self.ended = threading.Event(), threading.Event()
        self.cached = 0  # prompt positions that are not run again

    def cancel(self) -> None:
        """Give its place free; what has been begun ends within a token or a scale."""
        self.cancelled.set()

    def say(self, event: Event) -> None:
        """Pass an event on; nothing comes after `Finished` or `Failed`."""
        if self.ended.is_set():
            return
        if isinstance(event, Finished | Failed):
            self.ended.set()
            event = replace(event, cached=self.cached)
        self.on_event(event)
