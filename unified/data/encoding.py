"""Rows with images to rows with codes, shard by shard, so that training never runs the image tokenizer's encoder."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import PartialState
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from unified.data.rows import ImageRef, count_rows, init_output_folder, read_rows, write_encoded_shard
from unified.files.atomic import write_text
from unified.files.images import image_to_pixels, read_image
from unified.image_tokenizer.loading import load_vq
from unified.image_tokenizer.model import VQModel


@dataclass
class EncodeArguments:
    """What is encoded, with which tokenizer."""

    vq: str = field(metadata={"help": "folder of the image tokenizer"})
    out: str = field(metadata={"help": "folder for the encoded shards"})
    inputs: list[str] = field(metadata={"help": ".jsonl and .parquet files of rows"})
    batch_size: int = field(default=64, metadata={"help": "images per step; memory grows with it"})
    shard_size: int = field(default=2000, metadata={"help": "rows per shard; what a stopped run loses at most"})
    max_bad: int = field(default=0, metadata={"help": "rows with an unreadable image the run may skip"})
    num_workers: int = field(default=0, metadata={"help": "processes that decode images beside the encoder"})

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 1), ("shard_size", 1), ("max_bad", 0), ("num_workers", 0)):
            if not getattr(self, name) >= least:
                raise ValueError(f"--{name} {getattr(self, name)}; give at least {least}")


@dataclass(frozen=True)
class Shard:
    """Rows `start` to `stop` of one input, and the files they go to."""

    source: str
    start: int
    stop: int
    path: Path

    @property
    def bad_path(self) -> Path:
        """Where the shard's rows with unreadable images go."""
        return self.path.with_suffix(".bad.jsonl")


class Pixels(Dataset[torch.Tensor | str]):
    """Pixel values (3, H, W) of images, or the reason why one cannot be read."""

    def __init__(self, images: list[ImageRef], image_size: int) -> None:
        self.images, self.image_size = images, image_size

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> torch.Tensor | str:
        image = self.images[index]
        try:
            return image_to_pixels(read_image(image.read(), image.name, self.image_size), self.image_size)
        except OSError as error:
            return f"{image.name} cannot be read ({error.strerror}); put the file there, or take it out"
        except ValueError as error:
            return str(error)


def settings(arguments: EncodeArguments, vq: VQModel) -> dict[str, Any]:
    """What the shards depend on, for `settings.json`."""
    files = [(str(Path(name).resolve()), Path(name).stat()) for name in arguments.inputs]
    return {
        "vq_fingerprint": vq.fingerprint(),
        "shard_size": arguments.shard_size,
        "inputs": [{"name": name, "size": stat.st_size, "mtime": stat.st_mtime} for name, stat in files],
    }


def plan_shards(inputs: list[str], shard_size: int, out: Path) -> list[Shard]:
    """Every shard of the job in order; no shard spans two inputs, so that each can be read alone."""
    spans = []
    for source in inputs:
        count = count_rows(source)
        spans += [(source, start, min(start + shard_size, count)) for start in range(0, count, shard_size)]
    if not spans:
        raise ValueError(f"--inputs {' '.join(inputs)} hold no rows; give files with a row or more")
    return [Shard(*span, out / f"{index:05d}.parquet") for index, span in enumerate(spans)]


def count_bad(shards: list[Shard]) -> int:
    """Rows left out of the shards that were tried so far, by all processes."""
    files = [shard.bad_path for shard in shards if shard.bad_path.exists()]
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in files)


def encode(images: list[ImageRef], vq: VQModel, arguments: EncodeArguments) -> Iterator[list[int] | str]:
    """Codes of every image in order, or the reason why it has none."""
    pixels = Pixels(images, vq.config.image_size)
    loader = DataLoader(pixels, arguments.batch_size, num_workers=arguments.num_workers, collate_fn=list)
    for batch in loader:
        good = [item for item in batch if isinstance(item, torch.Tensor)]
        codes = iter(vq.encode(torch.stack(good).to(vq.device)).tolist() if good else [])
        yield from (next(codes) if isinstance(item, torch.Tensor) else item for item in batch)


def encode_shard(shard: Shard, vq: VQModel, arguments: EncodeArguments) -> tuple[list[dict], list[dict]]:
    """Encoded rows of a shard, and its rows with an unreadable image with the reason."""
    rows = list(read_rows(shard.source, shard.start, shard.stop))
    results = encode([image for row in rows for image in row.images], vq, arguments)
    encoded, bad = [], []
    for row in rows:
        codes = [next(results) for _ in row.images]
        reasons = [code for code in codes if isinstance(code, str)]
        content = {"messages": row.messages, "metadata": row.metadata, "source": row.source}
        if reasons:
            bad.append({"row": row.where, "bad_images": reasons, **content})
        else:
            encoded.append({"codes": codes, **content})
    return encoded, bad


def write_bad(shard: Shard, bad: list[dict]) -> None:
    """Write a shard's rejected rows, or take away what an earlier try left."""
    if not bad:
        shard.bad_path.unlink(missing_ok=True)
        return
    write_text(shard.bad_path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in bad))
    for row in bad:
        tqdm.write(f"bad image in {row['row']}: {'; '.join(row['bad_images'])}")


def check_bad(count: int, arguments: EncodeArguments) -> None:
    """Raise ValueError when more rows than --max-bad were left out."""
    if count > arguments.max_bad:
        raise ValueError(
            f"{count} rows have an unreadable image, more than --max-bad {arguments.max_bad}; they are listed in "
            f"{arguments.out}/*.bad.jsonl: mend the files or raise --max-bad, then start again"
        )


def encode_shards(shards: list[Shard], state: PartialState, vq: VQModel, arguments: EncodeArguments) -> int:
    """Encode and write this process's shards that are not done; the number of images encoded."""
    # Too many bad rows would fail the run anyway, so their shards are worth another try.
    retry = count_bad(shards) > arguments.max_bad
    done = [shard for shard in shards if shard.path.exists() and not (retry and shard.bad_path.exists())]
    skipped = set(done)
    mine = [shard for shard in shards[state.process_index :: state.num_processes] if shard not in skipped]
    fingerprint, left_out, images, started = vq.fingerprint(), count_bad(done), 0, perf_counter()
    bar = tqdm(mine, unit="shard", disable=not state.is_main_process)
    for shard in bar:
        encoded, bad = encode_shard(shard, vq, arguments)
        write_bad(shard, bad)
        left_out += len(bad)
        check_bad(left_out, arguments)
        write_encoded_shard(shard.path, encoded, fingerprint, vq.config.patch_nums)
        images += sum(len(row["codes"]) for row in encoded)
        bar.set_postfix_str(f"{images / (perf_counter() - started):.0f} image/s")
    return images


def encode_rows(arguments: EncodeArguments) -> tuple[int, int]:
    """Encode what is missing of this process's shards; how many images that were, and how many shards there are.

    Raises ValueError for a folder of other settings, rows that are malformed, and too many unreadable images.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    vq = load_vq(arguments.vq)
    shards = plan_shards(arguments.inputs, arguments.shard_size, Path(arguments.out))
    init_output_folder(arguments.out, settings(arguments, vq))
    images = encode_shards(shards, state, vq, arguments)
    bad = count_bad(shards)
    check_bad(bad, arguments)
    if bad and bad == sum(shard.stop - shard.start for shard in shards):
        raise ValueError(f"not one of {bad} rows has images that can be read; they are in {arguments.out}/*.bad.jsonl")
    return images, len(shards)
