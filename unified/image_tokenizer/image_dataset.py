"""Training images of the tokenizer: read from parquet or a folder, cached in memory if they fit.

Legend: N images, B batch, H W the square training size.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from unified.files.digests import sampled_digest
from unified.files.images import image_to_uint8, read_image

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


class FolderImages:
    """Encoded image files under a folder, searched recursively, in the order of their names."""

    def __init__(self, folder: Path) -> None:
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        """Bytes of one image file."""
        return self.paths[index].read_bytes()

    def name(self, index: int) -> str:
        """Name of an image in error messages."""
        return str(self.paths[index])


class ParquetImages:
    """Every image of the `images` column (list of {bytes, path}) of a folder's parquet shards, memory-mapped."""

    def __init__(self, folder: Path) -> None:
        from datasets import Image, List, load_dataset  # slow to import, and not needed for image files

        self.folder = folder
        files = [str(path) for path in sorted(folder.glob("*.parquet"))]
        rows = load_dataset("parquet", data_files=files, split="train", columns=["images"])
        self.rows = rows.cast_column("images", List(Image(decode=False)))
        lengths = torch.tensor(pc.list_value_length(self.rows.data.column("images")).to_pylist())
        self.row_of = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        self.first_of = lengths.cumsum(0) - lengths

    def __len__(self) -> int:
        return len(self.row_of)

    def read(self, index: int) -> bytes:
        """Bytes of one image file."""
        row = int(self.row_of[index])
        record = self.rows[row]["images"][index - int(self.first_of[row])]
        return record["bytes"] or Path(record["path"]).read_bytes()

    def name(self, index: int) -> str:
        """Name of an image in error messages."""
        return f"image {index} of {self.folder}"


def open_images(data_dir: str) -> FolderImages | ParquetImages:
    """Images of a folder with *.parquet shards or image files; raises ValueError when there are none."""
    folder = Path(data_dir)
    if not folder.is_dir():
        raise ValueError(f"data_dir {data_dir} is not a folder; write one with data_prep/render_scenes.py")
    images = ParquetImages(folder) if any(folder.glob("*.parquet")) else FolderImages(folder)
    if len(images) == 0:
        raise ValueError(f"data_dir {data_dir} holds no images; expected *.parquet or {', '.join(IMAGE_SUFFIXES)}")
    return images


def decode_image(source: FolderImages | ParquetImages, index: int, image_size: int) -> Tensor:
    """Image as uint8 (H, W, 3), resized and center-cropped; raises ValueError naming an unreadable one."""
    return image_to_uint8(read_image(source.read(index), source.name(index), image_size), image_size)


class PixelDataset(Dataset[Tensor]):
    """uint8 images (H, W, 3) of a source, decoded once and cached if all fit into `cache_gb`.

    `__getitems__` returns whole batches, (B, H, W, 3); use `collate_fn=stack` in the DataLoader.
    """

    def __init__(self, source: FolderImages | ParquetImages, image_size: int, cache_gb: float) -> None:
        self.source, self.image_size = source, image_size
        self.cache: Tensor | None = None
        if len(source) * image_size**2 * 3 <= cache_gb * 1e9:
            self.cache = torch.empty(len(source), image_size, image_size, 3, dtype=torch.uint8)
            for index in tqdm(range(len(source)), desc="decode", unit="image", mininterval=1):
                self.cache[index] = decode_image(source, index, image_size)

    def digest(self) -> str:
        """The images in words that can be compared."""
        return sampled_digest(len(self), self.source.read, "images")

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> Tensor:
        if self.cache is not None:
            return self.cache[torch.as_tensor(indices)]
        return torch.stack([decode_image(self.source, index, self.image_size) for index in indices])


def stack(batch: Tensor) -> Tensor:
    """The batch as `PixelDataset.__getitems__` returns it, (B, H, W, 3)."""
    return batch


class StepSampler(Sampler[list[int]]):
    """Batches of `indices` for steps `first_step` to `last_step`, shuffled anew every epoch.

    The images of step s are a function of `seed` and s, so a resumed run gets those of an uninterrupted one.
    `rank` of `world_size` processes gets its slice of every global batch.
    """

    def __init__(
        self,
        indices: Tensor,
        batch_size: int,
        steps: range,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.indices, self.batch_size, self.steps, self.seed = indices, batch_size, steps, seed
        self.rank, self.world_size = rank, world_size
        self._epoch, self._order = -1, indices

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps:
            start = (step * self.world_size + self.rank) * self.batch_size
            yield [self._at(position) for position in range(start, start + self.batch_size)]

    def _at(self, position: int) -> int:
        epoch, index = divmod(position, len(self.indices))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._epoch, self._order = epoch, self.indices[torch.randperm(len(self.indices), generator=generator)]
        return int(self._order[index])


def held_out_split(count: int, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices `(train, held_out)` of `count` images; raises ValueError if no image is left to train on."""
    if not 0 < held_out < count:
        raise ValueError(f"eval_images {held_out} of {count} images; hold out at least 1 and fewer than all")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[held_out:], order[:held_out]
