"""Chats about images that go on with something else: other turns after turns with an output or an input image.

    python data_prep/join_chats.py --first out/scenes --then data_prep/replay/smollm2_135m_instruct.jsonl \\
        --out out/joined --count 600

A model that was trained only on chats of one image answers whatever comes after it with another image, or with words
about the first. Every row is a chat of --first, which has codes, and after it one of --then without its system turn:
text, or encoded rows again. Both are gone through in a random order of --seed, the shorter one again and again. Writes
OUT/00000.parquet, atomically, and OUT/settings.json, which records the inputs.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unified.arguments.parser import check_minimum, parse, run_main
from unified.data.chat_dataset import list_data_files
from unified.data.rows import init_output_folder, read_encoded_rows, read_rows, write_encoded_shard
from unified.data.shard_metadata import shared_fit, shared_metadata, shared_opener
from unified.models.messages import continue_conversation

Stamp = tuple[str, tuple[tuple[int, int], ...]]  # a tokenizer's fingerprint and its scales
NO_CODES: Stamp = ("", ())  # of encoded rows without images


@dataclass
class JoinArguments:
    """Arguments of join_chats.py."""

    first: list[str] = field(metadata={"help": "encoded parquet files or folders of them, from encode_images.py"})
    then: list[str] = field(metadata={"help": "the same, or .jsonl files of text"})
    out: str = field(metadata={"help": "folder of the shard; created if missing"})
    count: int = field(default=600, metadata={"help": "rows"})
    seed: int = field(default=0, metadata={"help": "another seed joins others"})

    def __post_init__(self) -> None:
        check_minimum(self, count=1, seed=0)


def read_encoded(flag: str, files: list[Path]) -> tuple[list[dict[str, Any]], Stamp]:
    """Encoded rows and the tokenizer that they share; ValueError where they are of two."""
    stamp = shared_metadata(flag, files)
    return [row for file in files for row in read_encoded_rows(file)], stamp


def read_then(paths: list[str], stamp: Stamp) -> list[dict[str, Any]]:
    """Rows that others go on with; ValueError for images without codes of `stamp`, and for a system turn alone."""
    files = [file for path in paths for file in list_data_files(path, "chats")]
    encoded = [file for file in files if file.suffix == ".parquet"]
    rows, found = read_encoded("--then", encoded) if encoded else ([], stamp)
    if found not in (stamp, NO_CODES):
        raise ValueError(f"--then {encoded[0]} holds codes of another tokenizer than --first; encode its images again")
    for row in (row for file in files if file not in encoded for row in read_rows(file)):
        if row.images:
            raise ValueError(f"{row.where}: has images without codes; run data_prep/encode_images.py on the file")
        rows.append(row.encoded([]))
    for number, row in enumerate(rows, start=1):
        if not continue_conversation([], row["messages"]):
            raise ValueError(f"--then: chat {number} has nothing but a system turn; take it out")
    return rows


def in_order(size: int, count: int, rng: np.random.Generator) -> list[int]:
    """`count` indices below `size`: all of them in a random order, and again, each time in another."""
    rounds = [rng.permutation(size) for _ in range(-(-count // size))]
    return [int(index) for index in np.concatenate(rounds)[:count]]


def join(row: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    """An encoded row that goes on with another; ValueError where the other has tools, which stand before the first."""
    if then.get("tools") and then["tools"] != row.get("tools"):
        raise ValueError(f"--then: a chat of {then['source']} has tools, which --first has not; take them out")
    joined = {
        "messages": continue_conversation(row["messages"], then["messages"]),
        "codes": row["codes"] + then["codes"],
    }
    return row | joined | {"source": f"{row['source']} then {then['source']}"}


def main() -> None:
    (args,) = parse((JoinArguments,))
    rows, stamp = read_encoded("--first", [file for path in args.first for file in list_data_files(path)])
    chats = read_then(args.then, stamp)
    files = [file for path in (*args.first, *args.then) for file in list_data_files(path, "chats")]
    opener = shared_opener(files)
    rng = np.random.default_rng(args.seed)
    for flag, paths, found in (("--first", args.first, rows), ("--then", args.then, chats)):
        if not found:
            raise ValueError(f"{flag} {' '.join(paths)}: not one row; give files with a row or more")
    firsts, thens = in_order(len(rows), args.count, rng), in_order(len(chats), args.count, rng)
    out = init_output_folder(args.out, {name: vars(args)[name] for name in ("first", "then", "count", "seed")})
    joined = [join(rows[i], chats[k]) for i, k in zip(firsts, thens, strict=True)]
    write_encoded_shard(out / "00000.parquet", joined, *stamp, opener=opener, fit=shared_fit(files))
    print(json.dumps({"out": str(out), "rows": len(joined), "first": len(rows), "then": len(chats)}))


if __name__ == "__main__":
    run_main(main)
