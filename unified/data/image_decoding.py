"""Images of rows as uint8 squares, opened in processes beside the encoder.

Legend: N images of a batch, G those of them that can be read, S side of the square.
"""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import TracebackType

import numpy as np

from unified.data.image_refs import ImageRef
from unified.files.images import Fit, read_image, to_square

AHEAD = 2  # batches a process works ahead, so that decoded images do not pile up


@dataclass(frozen=True)
class DecodedBatch:
    """`pixels` (G, S, S, 3) uint8, and of every image its size (width, height), or the reason why it has no pixels."""

    pixels: np.ndarray
    sizes: list[tuple[int, int] | str]


def decode_batch(images: list[ImageRef], side: int, fit: Fit) -> DecodedBatch:
    """Open a batch of images."""
    pixels: list[np.ndarray] = []
    sizes: list[tuple[int, int] | str] = []
    for image in images:
        try:
            whole = read_image(image.read(), image.name, side)
            pixels.append(np.asarray(to_square(whole, side, fit, image.name)))
            sizes.append(whole.size)
        except OSError as error:
            sizes.append(f"{image.name} cannot be read ({error.strerror}); put the file there, or take it out")
        except ValueError as error:
            sizes.append(str(error))
    return DecodedBatch(np.stack(pixels) if pixels else np.empty((0, side, side, 3), np.uint8), sizes)


class ImageDecoder:
    """Opens batches of images in order, in `num_workers` processes that stay, or in this one where that is 0.

    Used as a context manager, which ends the processes.
    """

    def __init__(self, side: int, fit: Fit, num_workers: int) -> None:
        self.side, self.fit, self.num_workers = side, fit, num_workers
        self.pool = ProcessPoolExecutor(num_workers) if num_workers else None

    def __enter__(self) -> "ImageDecoder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def decode(self, batches: Iterable[list[ImageRef]]) -> Iterator[DecodedBatch]:
        """Decoded batches in order; ValueError where a process was ended from outside, as for want of memory."""
        if self.pool is None:
            for batch in batches:
                yield decode_batch(batch, self.side, self.fit)
            return
        waiting: deque[Future[DecodedBatch]] = deque()
        try:
            for batch in batches:
                waiting.append(self.pool.submit(decode_batch, batch, self.side, self.fit))
                if len(waiting) >= self.num_workers * AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise ValueError(
                f"a process that opens images was ended from outside, perhaps for want of memory; give fewer than "
                f"--num_workers {self.num_workers}, or a smaller --batch_size"
            ) from None


def image_key(image: ImageRef) -> str | bytes:
    """What is equal for the same image of another row: its file, or a digest of its bytes."""
    if image.data is None:
        return str(image.file or image.name)
    return hashlib.blake2b(image.data, digest_size=16).digest()
