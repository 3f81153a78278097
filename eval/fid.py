"""Frechet Inception distance (Heusel et al. 2017, arXiv 1706.08500) between two folders of pictures.

    python eval/fid.py --a out/geneval --b data/scenes_heldout --inception weights-inception-2015-12-05-6726825d.pth

Each is a folder of png/jpg/webp files (searched through, so that GenEval's layout will do) or of *.parquet shards with
an `images` column. Weights are torch-fidelity's or pytorch-fid's file: --inception FILE, or what those packages left
in torch.hub's cache. Pictures go in as they are and are resized by the network's own rule, as in the first FID; of two
sizes the distance would measure the resizing, so that is an error: --image_size S scales and crops all of them to S.

Printed, and written to --out, is one JSON. FID falls with the number of pictures: compare equal n only, 10,000 and
more for numbers that others are to believe.
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from unified.arguments.fields import RULE
from unified.arguments.parser import check_minimum, parse, run_main
from unified.evaluation.geneval_files import read_settings
from unified.evaluation.inception import Inception, feature_statistics
from unified.evaluation.metrics import frechet_distance
from unified.files.image_sets import leave_out
from unified.files.images import SIDE_RULE, inspect_image, read_image, to_square
from unified.files.results import write_result
from unified.hardware.arguments import HardwareArguments
from unified.hardware.device import best_device
from unified.hardware.setup import set_up
from unified.image_tokenizer.image_dataset import open_images
from unified.reports.endings import end_evaluation


@dataclass
class FidArguments:
    """What is compared."""

    a: str = field(metadata={"help": "folder of pictures, the generated ones"})
    b: str = field(metadata={"help": "folder of pictures, the reference"})
    inception: str | None = field(default=None, metadata={"help": "its weights; needed where no cache has them"})
    n: int = field(default=0, metadata={"help": "pictures of each folder, the first by name; 0 is all"})
    image_size: int = field(
        default=0, metadata={"help": "scale and crop to this square; 0: as they are", RULE: SIDE_RULE}
    )
    batch_size: int = field(default=32, metadata={"help": "pictures at once"})
    out: str | None = field(default=None, metadata={"help": "JSON to write, beside printing it"})

    def __post_init__(self) -> None:
        check_minimum(self, n=0, image_size=0, batch_size=1)


class Pictures:
    """The pictures of a folder as uint8 (H, W, 3)."""

    def __init__(self, folder: str, args: FidArguments) -> None:
        self.folder, self.side = folder, args.image_size
        self.source = open_images(folder)
        if args.n > len(self.source):
            raise ValueError(f"--n {args.n}, but {folder} holds {len(self.source)} pictures; give less, or 0 for all")
        self.count = args.n or len(self.source)

    def check(self) -> None:
        """ValueError that names and counts the pictures which cannot be read, before any work on the others."""
        reasons = []
        for index in tqdm(range(self.count), desc=f"check {self.folder}", unit="image", mininterval=1):
            try:
                inspect_image(self.source.read(index), self.source.name(index), exact=True)
            except ValueError as error:
                reasons.append(str(error))
        leave_out(reasons, self.count, None)

    def read(self, index: int) -> Tensor:
        """One picture; ValueError says which one is broken."""
        image = read_image(self.source.read(index), self.source.name(index), exact=True)
        return torch.from_numpy(np.array(to_square(image, self.side) if self.side else image))

    def features(self, net: Any, size: torch.Size, batch_size: int) -> Tensor:
        """Features (N, D) of all pictures, which must have `size`."""
        found = []
        with tqdm(total=self.count, desc=self.folder, unit="image") as bar:
            for start in range(0, self.count, batch_size):
                images = [self.read(index) for index in range(start, min(start + batch_size, self.count))]
                for number, image in enumerate(images, start=start):
                    self.check_size(number, image.shape, size)
                found.append(net(torch.stack(images).to(best_device())).cpu())
                bar.update(len(images))
        return torch.cat(found)

    def check_size(self, index: int, found: torch.Size, wanted: torch.Size) -> None:
        """Raise ValueError for a picture of another size than the first."""
        if found != wanted:
            raise ValueError(
                f"{self.source.name(index)} is {found[1]} x {found[0]}, the first one of --a {wanted[1]} x "
                f"{wanted[0]}; give --image_size to bring all to one size"
            )


def main() -> None:
    hardware, args = parse((HardwareArguments, FidArguments))
    set_up(hardware)
    folders = [Pictures(args.a, args), Pictures(args.b, args)]
    for folder in folders:
        folder.check()
    net = Inception.load(args.inception).to(best_device())
    started, size = time.perf_counter(), folders[0].read(0).shape
    statistics = [feature_statistics(folder.features(net, size, args.batch_size)) for folder in folders]
    distance = round(frechet_distance(*statistics[0], *statistics[1]), 4)
    config = {"b": args.b, "image_size": args.image_size, "n_a": folders[0].count, "n_b": folders[1].count}
    made = read_settings(args.a)  # by eval/generate_images.py; empty for pictures of others
    details = {"stderr": None, "tokenizer": made.get("vq_fingerprint"), "seed": made.get("seed"), "a": args.a}
    details |= {"prompts_sha256": made.get("prompts_sha256"), "seconds": time.perf_counter() - started}
    path, n = Path(args.out) if args.out else None, min(folder.count for folder in folders)
    end_evaluation(write_result(path, "fid", distance, n, made.get("model", args.a), config, **details), path)


if __name__ == "__main__":
    run_main(main)
