"""Training images of the tokenizer: read from parquet or a folder, cached in memory if they fit.

Legend: N images, B batch, H W the square training size.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow.compute as pc
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler
from tqdm import tqdm

from unified.files.digests import sampled_digest
from unified.files.image_sets import KINDS, CropCount, image_files, leave_out, say, say_passed_over
from unified.files.images import Fit, check_fit, image_to_uint8, inspect_image, read_image, read_named
from unified.files.parquet import check_pages, read_schema


class FolderImages:
    """Encoded image files under a folder, searched recursively, in the order of their names."""

    def __init__(self, folder: Path) -> None:
        self.paths = image_files(folder)

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> bytes:
        """Bytes of one image file; raises ValueError naming one that cannot be read."""
        return read_named(self.paths[index], self.name(index))

    def name(self, index: int) -> str:
        """Name of an image in error messages."""
        return str(self.paths[index])


COLUMNS = ("images", "image")  # of parquet: rows' lists of images; data sets of images and captions


class ParquetImages:
    """Every image of a column (`images`: lists of {bytes, path}; `image`: one) of parquet shards, memory-mapped."""

    def __init__(self, folder: Path, shards: Sequence[Path], column: str) -> None:
        from datasets import Dataset, Image, List
        from datasets.exceptions import DatasetGenerationError  # slow to import, and not needed for image files

        self.folder, self.column = folder, column
        try:
            rows = Dataset.from_parquet([str(path) for path in shards], columns=[column])  # load_dataset calls a host
        except DatasetGenerationError:
            check_pages(shards, [column])  # names the file
            raise
        kind = Image(decode=False)
        self.rows = rows.cast_column(column, List(kind) if column == "images" else kind)
        stored = self.rows.data.column(column)  # null where a row is of words alone
        counts = pc.list_value_length(stored) if column == "images" else pc.cast(pc.is_valid(stored), "int64")
        lengths = torch.tensor(pc.fill_null(counts, 0).to_pylist(), dtype=torch.long)
        self.row_of = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
        self.first_of = lengths.cumsum(0) - lengths

    def __len__(self) -> int:
        return len(self.row_of)

    def read(self, index: int) -> bytes:
        """Bytes of one image file; raises ValueError naming one that cannot be read."""
        row = int(self.row_of[index])
        record = self.rows[row][self.column]
        record = record[index - int(self.first_of[row])] if self.column == "images" else record
        inner, path = (record.get("bytes"), record.get("path")) if record else (None, None)
        if inner is not None:
            return bytes(inner)
        if not path:
            raise ValueError(f"{self.name(index)} has neither bytes nor a path; write the picture into the file")
        return read_named(self.folder / path, f"{path} ({self.name(index)})")

    def name(self, index: int) -> str:
        """Name of an image in error messages."""
        return f"image {index} of {self.folder}"


class JoinedImages:
    """The images of several sources, one after the other."""

    def __init__(self, sources: "list[FolderImages | ParquetImages]") -> None:
        self.items = [(source, index) for source in sources for index in range(len(source))]

    def __len__(self) -> int:
        return len(self.items)

    def read(self, index: int) -> bytes:
        """Bytes of one image file; raises ValueError naming one that cannot be read."""
        source, inner = self.items[index]
        return source.read(inner)

    def name(self, index: int) -> str:
        """Name of an image in error messages."""
        source, inner = self.items[index]
        return source.name(inner)


Images = FolderImages | ParquetImages | JoinedImages


def image_shards(folder: Path) -> dict[str, list[Path]]:
    """The parquet files of a folder that hold images, by the first of `COLUMNS` that they have."""
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.glob("*.parquet")):
        names = read_schema(path).names
        for column in [column for column in COLUMNS if column in names][:1]:
            found.setdefault(column, []).append(path)
    return {column: found[column] for column in COLUMNS if column in found}


def open_images(data_dir: str) -> Images:
    """Images of a folder: its image files, searched recursively, and those in *.parquet shards of `COLUMNS`.

    Files that are passed over are counted on the screen. Raises ValueError when there are no images.
    """
    folder = Path(data_dir)
    if not folder.is_dir():
        raise ValueError(f"data_dir {data_dir} is not a folder; write one with data_prep/render_scenes.py")
    files = FolderImages(folder)
    sources: list[FolderImages | ParquetImages] = [files] if len(files) else []
    read = [*files.paths]
    for column, shards in image_shards(folder).items():
        sources.append(ParquetImages(folder, shards, column))
        read += shards
    say_passed_over(folder, read)
    images = sources[0] if len(sources) == 1 else JoinedImages(sources)
    if len(images) == 0:
        raise ValueError(
            f"data_dir {data_dir} holds no images; expected *.parquet with `images` or `image`, or {KINDS}"
        )
    return images


class PixelDataset(Dataset[Tensor]):
    """uint8 images (H, W, 3) of a source, decoded once and cached if all fit into `cache_gb`.

    All are checked before: those that cannot be read are named and counted, and left out where they are at most
    `max_bad`; a line counts what `fit`, see `to_square`, leaves out of the others. Raises ValueError for more, or
    for any where `max_bad` is None. `limit`: the first so many of the source. `exact`: see `read_image`.

    `__getitems__` returns whole batches, (B, H, W, 3); use `collate_fn=stack` in the DataLoader.
    """

    def __init__(
        self,
        source: Images,
        image_size: int,
        cache_gb: float,
        fit: Fit = "crop",
        max_bad: int | None = 0,
        limit: int | None = None,
        exact: bool = False,
    ) -> None:
        self.source, self.image_size, self.fit, self.exact = source, image_size, fit, exact
        count = len(source) if limit is None else limit
        cached = count * image_size**2 * 3 <= cache_gb * 1e9
        pixels = torch.empty(count if cached else 0, image_size, image_size, 3, dtype=torch.uint8)
        self.rows: list[int] = []  # of the source: images that can be read
        crops, reasons = CropCount(), []
        for index in tqdm(range(count), desc="decode" if cached else "check", unit="image", mininterval=1):
            try:
                size = self._decode(index, pixels[len(self.rows)]) if cached else self._inspect(index)
            except ValueError as error:
                reasons.append(str(error))
                continue
            self.rows.append(index)
            crops.add(source.name(index), size)
        leave_out(reasons, count, max_bad)
        if fit == "crop" and str(crops):
            say(str(crops))
        self.cache = pixels[: len(self.rows)] if cached else None

    def _decode(self, index: int, pixels: Tensor) -> tuple[int, int]:
        """Decode an image into `pixels`; its size."""
        name = self.source.name(index)
        image = read_image(self.source.read(index), name, self.image_size, self.exact)
        pixels.copy_(image_to_uint8(image, self.image_size, self.fit, name))
        return image.size

    def _inspect(self, index: int) -> tuple[int, int]:
        """Check an image without decoding it where that can be told; its size."""
        name = self.source.name(index)
        size = inspect_image(self.source.read(index), name, self.exact)
        check_fit(size, self.fit, name)
        return size

    def held_out_split(self, held_out: int, seed: int) -> tuple[Tensor, Tensor]:
        """`held_out_split` of the source, each part without the images that are left out: damage moves no other image.

        Raises ValueError as that does, and where one of the parts is empty.
        """
        place = {row: index for index, row in enumerate(self.rows)}
        parts = held_out_split(len(self.source), held_out, seed)
        kept = [[place[row] for row in part.tolist() if row in place] for part in parts]
        for part, rows in zip(("train on", f"hold out (eval_images {held_out})"), kept, strict=True):
            if not rows:
                raise ValueError(f"not one image to {part} can be read; mend some, or choose others by another seed")
        train, apart = (torch.tensor(rows) for rows in kept)
        return train, apart

    def name(self, index: int) -> str:
        """Name of an image in messages."""
        return self.source.name(self.rows[index])

    def digest(self) -> str:
        """The images in words that can be compared."""
        return sampled_digest(len(self), lambda index: self.source.read(self.rows[index]), "images")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> Tensor:
        if self.cache is not None:
            return self.cache[torch.as_tensor(indices)]
        pixels = torch.empty(len(indices), self.image_size, self.image_size, 3, dtype=torch.uint8)
        for index, target in zip(indices, pixels, strict=True):
            self._decode(self.rows[index], target)
        return pixels


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
