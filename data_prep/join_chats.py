"""Chats about images that go on with something else: text turns behind turns that draw or read an image.

    python data_prep/join_chats.py --first out/scenes --then data_prep/replay/smollm2_135m_instruct.jsonl \\
        --out out/joined --count 600

For adapters that act from images onward (`lora_positions: onward`): answers behind an image learn there, and without
other answers among them they would all be about the image. Every row is a chat of --first, which has codes, and behind
it one of --then, which is text, without the latter's system turn. Both are gone through in a random order of --seed,
the shorter one again and again. Writes OUT/00000.parquet, whole or not at all, and OUT/settings.json: of what it is.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unified.arguments import parse, run_main
from unified.data import files_of
from unified.rows import claim_folder, read_encoded_rows, read_encoded_stamp, read_rows, write_encoded_shard


@dataclass
class JoinArguments:
    """Arguments of join_chats.py."""

    first: list[str] = field(metadata={"help": "encoded parquet files or folders of them, from encode_images.py"})
    then: list[str] = field(metadata={"help": "text-only chats, as .jsonl or parquet files"})
    out: str = field(metadata={"help": "folder of the shard; created if missing"})
    count: int = field(default=600, metadata={"help": "rows"})
    seed: int = field(default=0, metadata={"help": "another seed joins others"})

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"--count {self.count} must be at least 1: give a positive number")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed} must not be negative: give 0 or more")


def read_first(paths: list[str]) -> tuple[list[dict[str, Any]], tuple[str, Any]]:
    """Encoded rows and the tokenizer that they share; ValueError where they are of two."""
    files = [file for path in paths for file in files_of(path)]
    stamps = {read_encoded_stamp(file) for file in files}
    if len(stamps) > 1:
        raise ValueError(f"--first {' '.join(paths)} holds codes of {len(stamps)} tokenizers; give files of one")
    return [row for file in files for row in read_encoded_rows(file)], stamps.pop()


def read_then(paths: list[str]) -> list[list[dict[str, Any]]]:
    """Turns of every chat but its system's; ValueError for one with images or without turns."""
    chats = []
    for row in (row for path in paths for file in files_of(path, "chats") for row in read_rows(file)):
        turns = [message for message in row.messages if message["role"] != "system"]
        if row.images or not turns:
            raise ValueError(f"{row.where}: {'has images' if row.images else 'nothing but a system turn'}; give text")
        chats.append(turns)
    return chats


def in_order(size: int, count: int, rng: np.random.Generator) -> list[int]:
    """`count` indices below `size`: all of them in a random order, and again, each time in another."""
    rounds = [rng.permutation(size) for _ in range(-(-count // size))]
    return [int(index) for index in np.concatenate(rounds)[:count]]


def join(row: dict[str, Any], turns: list[dict[str, Any]]) -> dict[str, Any]:
    """An encoded row that goes on with `turns`."""
    return row | {"messages": row["messages"] + turns, "source": f"{row['source']} joined"}


def main() -> None:
    (args,) = parse((JoinArguments,))
    (rows, (fingerprint, patch_nums)), chats = read_first(args.first), read_then(args.then)
    rng = np.random.default_rng(args.seed)
    firsts, thens = in_order(len(rows), args.count, rng), in_order(len(chats), args.count, rng)
    out = claim_folder(args.out, {name: vars(args)[name] for name in ("first", "then", "count", "seed")})
    joined = [join(rows[i], chats[k]) for i, k in zip(firsts, thens, strict=True)]
    write_encoded_shard(out / "00000.parquet", joined, fingerprint, patch_nums)
    print(json.dumps({"out": str(Path(out)), "rows": len(joined), "first": len(rows), "then": len(chats)}))


if __name__ == "__main__":
    run_main(main)
