"""Rows with images to rows with codes, shard by shard, so that training never runs the image tokenizer's encoder."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice, pairwise
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from tqdm import tqdm

from unified.arguments.parser import check_minimum
from unified.data.image_decoding import AHEAD, ImageDecoder, image_key
from unified.data.image_refs import ImageRef
from unified.data.pair_forms import PairRow, holds_pairs, iter_pairs
from unified.data.preferences import write_pairs
from unified.data.rows import (
    SHOWN_ERRORS,
    BadRow,
    Row,
    init_output_folder,
    iter_rows,
    name_errors,
    tally,
    write_encoded_shard,
)
from unified.files.atomic import write_text
from unified.files.image_sets import CropCount
from unified.files.images import OPENER_VERSION, Fit, cropped_share, to_pixel_values
from unified.image_tokenizer.loading import load_vq
from unified.image_tokenizer.model import VQModel
from unified.image_tokenizer.scales import image_length

BATCH_PIXELS = 2**20  # of a batch by default: 64 images of 128 x 128, about 3.5 GB in VAR's tokenizer
MOST_IMAGES = 64  # ... but of small ones no more than these
KEPT_BYTES = 2**29  # codes kept for images that come again; what does not fit is opened again

Item = Row | PairRow | BadRow

MAX_BLOCK = 256  # rows in memory at once where few have images


@dataclass
class EncodeArguments:
    """What is encoded, with which tokenizer."""

    vq: str = field(metadata={"help": "folder of the image tokenizer"})
    out: str = field(metadata={"help": "folder for the encoded shards"})
    inputs: list[str] = field(metadata={"help": ".jsonl, .json and .parquet files of rows"})
    image_root: str | None = field(
        default=None, metadata={"help": "folder in which paths of images start; None: that of the file of rows"}
    )
    batch_size: int | None = field(
        default=None,
        metadata={"help": "images per step; by default 64 of up to 128 x 128 pixels, and fewer larger ones"},
    )
    fit: Fit = field(
        default="crop",
        metadata={"help": "images that are not square: crop to the centre, pad with white, or refuse"},
    )
    shard_size: int = field(default=2000, metadata={"help": "rows per shard; what a stopped run loses at most"})
    max_bad: int = field(
        default=0, metadata={"help": "rows that are malformed or have an unreadable image the run may skip"}
    )
    num_workers: int = field(default=0, metadata={"help": "processes that decode images beside the encoder"})

    def __post_init__(self) -> None:
        if self.batch_size is not None:
            check_minimum(self, batch_size=1)
        check_minimum(self, shard_size=1, max_bad=0, num_workers=0)
        if self.image_root is not None and not Path(self.image_root).is_dir():
            raise ValueError(f"--image_root {self.image_root} is not a folder; give the one in which paths start")

    def images_per_step(self, side: int) -> int:
        """The batch size for images of `side` x `side`."""
        return self.batch_size or max(1, min(MOST_IMAGES, BATCH_PIXELS // side**2))


@dataclass(frozen=True)
class Shard:
    """Rows `start` to `stop` of one input, and the files they go to; `pairs` says that they are preference pairs."""

    source: str
    start: int
    stop: int
    path: Path
    pairs: bool = False

    @property
    def bad_path(self) -> Path:
        """Where the shard's rows with unreadable images go."""
        return self.path.with_suffix(".bad.jsonl")


@dataclass
class Encoded:
    """What a run of `encode_rows` did: of pairs or rows, images, how many were opened, shards, what crops left out."""

    pairs: bool = False
    images: int = 0
    opened: int = 0
    shards: int = 0
    crops: CropCount = field(default_factory=CropCount)


class ImageEncoder:
    """Images -> codes, each image once for as many rows as show it."""

    def __init__(self, vq: VQModel, arguments: EncodeArguments, decoder: ImageDecoder) -> None:
        self.vq, self.arguments, self.decoder = vq, arguments, decoder
        self.done = Encoded()
        self._known: dict[str | bytes, np.ndarray | str] = {}
        self._made_square: set[str | bytes] = set()
        self._some_made_square = False
        self._most = KEPT_BYTES // (4 * image_length(vq.config.patch_nums))

    @property
    def images_at_once(self) -> int:
        """Images to encode in one call, held in memory meanwhile: enough to keep every process busy."""
        return self.arguments.images_per_step(self.vq.config.image_size) * max(1, AHEAD * self.arguments.num_workers)

    def encode(self, images: list[ImageRef]) -> list[list[int] | str]:
        """Codes of every image in order, or the reason why it has none."""
        keys = [image_key(image) for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._known}
        found = dict(zip(new, self._open(list(new.values())), strict=True))
        results = [found[key] if key in found else self._known[key] for key in keys]
        for key in list(found)[: max(0, self._most - len(self._known))]:
            self._known[key] = found[key]
        self.done.images += len(images)
        self._some_made_square |= not self._made_square.isdisjoint(keys)
        return [codes if isinstance(codes, str) else codes.tolist() for codes in results]

    def fit_of_shard(self) -> Fit | None:
        """How images became square since the last call; None where all of them were."""
        found, self._some_made_square = self._some_made_square, False
        return self.arguments.fit if found else None

    def _open(self, images: list[ImageRef]) -> Iterator[np.ndarray | str]:
        size = self.arguments.images_per_step(self.vq.config.image_size)
        batches = [images[start : start + size] for start in range(0, len(images), size)]
        for batch, decoded in zip(batches, self.decoder.decode(batches), strict=True):
            pixels = to_pixel_values(torch.from_numpy(decoded.pixels).to(self.vq.device))
            codes = iter(self.vq.encode(pixels).int().cpu().numpy() if len(pixels) else [])
            self.done.opened += len(batch)
            for image, size_or_reason in zip(batch, decoded.sizes, strict=True):
                if isinstance(size_or_reason, str):
                    yield size_or_reason
                    continue
                if cropped_share(size_or_reason):
                    self._made_square.add(image_key(image))
                if self.arguments.fit == "crop":
                    self.done.crops.add(image.name, size_or_reason)
                yield next(codes)


def settings(arguments: EncodeArguments, vq: VQModel) -> dict[str, Any]:
    """What the shards depend on, for `settings.json`."""
    files = [(str(Path(name).resolve()), Path(name).stat()) for name in arguments.inputs]
    return {
        "vq_fingerprint": vq.fingerprint(),
        "opener": OPENER_VERSION,
        "fit": arguments.fit,
        "shard_size": arguments.shard_size,
        **({"image_root": str(Path(arguments.image_root).resolve())} if arguments.image_root else {}),
        "inputs": [{"name": name, "size": stat.st_size, "mtime": stat.st_mtime} for name, stat in files],
    }


def plan_shards(inputs: list[str], shard_size: int, out: Path, max_bad: int = 0) -> list[Shard]:
    """Every shard of the job in order; no shard spans two inputs, so that each can be read alone.

    Raises ValueError for inputs without rows, of rows and pairs both, and with more than `max_bad` bad lines.
    """
    spans = []
    pairs = {source: holds_pairs(source) for source in inputs}
    if len({*pairs.values()}) > 1:
        mixed = ", ".join(next(source for source in inputs if pairs[source] is kind) for kind in (True, False))
        raise ValueError(f"--inputs hold pairs and rows ({mixed}); encode them into a folder each")
    bad: list[str] = []
    for source in inputs:
        count, errors = tally(source, iter_pairs if pairs[source] else iter_rows)
        bad += errors
        spans += [(source, start, min(start + shard_size, count)) for start in range(0, count, shard_size)]
    if len(bad) > max_bad:
        raise ValueError(name_errors(bad, "pairs" if any(pairs.values()) else "rows"))
    if not spans:
        raise ValueError(f"--inputs {' '.join(inputs)} hold no rows; give files with a row or more")
    return [Shard(*span, out / f"{index:05d}.parquet", pairs[span[0]]) for index, span in enumerate(spans)]


def count_bad(shards: list[Shard]) -> int:
    """Rows left out of the shards that were tried so far, by all processes."""
    files = [shard.bad_path for shard in shards if shard.bad_path.exists()]
    return sum(path.read_bytes().count(b"\n") for path in files)  # text would end lines at U+2028 too


def blocks(rows: Iterable[Item], images: int) -> Iterator[list[Item]]:
    """Consecutive rows with `images` images, the last one's counted whole: what is held in memory at once."""
    block: list[Item] = []
    held = 0
    for row in rows:
        block.append(row)
        held += len(row.images)
        if held >= images or len(block) >= MAX_BLOCK:
            yield block
            block, held = [], 0
    if block:
        yield block


def encode_shard(rows: Iterable[Item], encoder: ImageEncoder) -> tuple[list[dict], list[dict]]:
    """Encoded rows of a shard, and its rows that are malformed or have an unreadable image with the reason."""
    encoded: list[dict] = []
    bad: list[dict] = []
    for block in blocks(rows, encoder.images_at_once):
        results = iter(encoder.encode([image for row in block for image in row.images]))
        for row in block:
            found = [next(results) for _ in row.images]
            codes = [code for code in found if not isinstance(code, str)]
            reasons = [code for code in found if isinstance(code, str)]
            if isinstance(row, BadRow):
                bad.append({"row": row.where, "bad_row": row.reason})
            elif reasons:
                content = {key: value for key, value in row.encoded([]).items() if not key.endswith("codes")}
                bad.append({"row": row.where, "bad_images": reasons} | content)
            else:
                encoded.append(row.encoded(codes))
    return encoded, bad


def write_bad(shard: Shard, bad: list[dict]) -> None:
    """Write a shard's rejected rows and name the first, or take away what an earlier try left."""
    if not bad:
        shard.bad_path.unlink(missing_ok=True)
        return
    write_text(shard.bad_path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in bad))
    for row in bad[:SHOWN_ERRORS]:
        if "bad_row" in row:
            tqdm.write(f"bad row {row['row']}: {row['bad_row']}")
        else:
            tqdm.write(f"bad image in {row['row']}: {'; '.join(row['bad_images'])}")
    if len(bad) > SHOWN_ERRORS:
        tqdm.write(f"{len(bad) - SHOWN_ERRORS} more bad rows in {shard.bad_path}")


def check_bad(count: int, arguments: EncodeArguments) -> None:
    """Raise ValueError when more rows than --max-bad were left out of the shards, which stay."""
    if count > arguments.max_bad:
        raise ValueError(
            f"{count} rows are malformed or have an unreadable image, more than --max-bad {arguments.max_bad}: see "
            f"{arguments.out}/*.bad.jsonl: mend the files or raise --max-bad, then start again"
        )


def share_of(shards: list[Shard], state: PartialState) -> list[Shard]:
    """This process's part of the shards: neighbours, so that a row group of theirs is read by one process."""
    count, index = len(shards), state.process_index
    return shards[count * index // state.num_processes : count * (index + 1) // state.num_processes]


def with_rows(shards: list[Shard], image_root: str | None = None) -> Iterator[tuple[Shard, Iterator[Item]]]:
    """Shards and their rows; of neighbours in one file, that file is read once from its first row to its last."""
    rows: Iterator[Item] = iter(())
    for before, shard in pairwise([None, *shards]):
        assert shard is not None
        if before is None or (before.source, before.stop) != (shard.source, shard.start):
            ends = [other.stop for other in shards if other.source == shard.source]
            rows = (iter_pairs if shard.pairs else iter_rows)(shard.source, shard.start, max(ends), image_root)
        yield shard, islice(rows, shard.stop - shard.start)


def encode_shards(shards: list[Shard], state: PartialState, encoder: ImageEncoder) -> None:
    """Encode and write this process's shards that are not done."""
    vq, arguments = encoder.vq, encoder.arguments
    # Too many bad rows would fail the run anyway, so their shards are worth another try.
    retry = count_bad(shards) > arguments.max_bad
    done = [shard for shard in shards if shard.path.exists() and not (retry and shard.bad_path.exists())]
    skipped = set(done)
    mine = [shard for shard in share_of(shards, state) if shard not in skipped]
    fingerprint, started = vq.fingerprint(), perf_counter()
    bar = tqdm(with_rows(mine, arguments.image_root), total=len(mine), unit="shard", disable=not state.is_main_process)
    for shard, rows in bar:
        encoded, bad = encode_shard(rows, encoder)
        write_bad(shard, bad)
        write, fit = write_pairs if shard.pairs else write_encoded_shard, encoder.fit_of_shard()
        write(shard.path, encoded, fingerprint, vq.config.patch_nums, opener=OPENER_VERSION, fit=fit)
        bar.set_postfix_str(f"{encoder.done.images / (perf_counter() - started):.0f} image/s")


def encode_rows(arguments: EncodeArguments) -> Encoded:
    """Encode what is missing of this process's shards.

    Raises ValueError for a folder of other settings, rows that are malformed, and too many unreadable images.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    vq = load_vq(arguments.vq)
    shards = plan_shards(arguments.inputs, arguments.shard_size, Path(arguments.out), arguments.max_bad)
    init_output_folder(arguments.out, settings(arguments, vq))
    with ImageDecoder(vq.config.image_size, arguments.fit, arguments.num_workers) as decoder:
        encoder = ImageEncoder(vq, arguments, decoder)
        encode_shards(shards, state, encoder)
    bad = count_bad(shards)
    check_bad(bad, arguments)
    if bad and bad == sum(shard.stop - shard.start for shard in shards):
        raise ValueError(f"not one of {bad} rows can be read with its images; they are in {arguments.out}/*.bad.jsonl")
    encoder.done.shards, encoder.done.pairs = len(shards), shards[0].pairs
    return encoder.done
