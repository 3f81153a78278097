"""Write a prompt set in GenEval's form: JSONL, a prompt's metadata a line, for generate_images.py and geneval.py.

    python eval/write_prompts.py --out prompts/train.jsonl --count 360 --seed 1
    python eval/write_prompts.py --out prompts/heldout.jsonl --count 240 --seed 1 --split heldout
    python eval/write_prompts.py --out prompts/five_six.jsonl --count 80 --split unseen_counts --counts 5 6
    python eval/write_prompts.py --out prompts/fruit.jsonl --count 12 --tags colors counting --classes apple "hot dog"
    python eval/write_prompts.py --out prompts/official.jsonl --renderable evaluation_metadata.jsonl

Prompts are sampled from what Scenes can show, so that nobody tunes to GenEval's own 553: another seed, another set. No
two of a set ask for the same objects; more than there are is an error. --renderable samples nothing: it keeps those
prompts of a set that Scenes can show. Prints one JSON: the number of prompts of every task and the file's SHA-256.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unified.arguments.needs import Needs, WithNeeds
from unified.arguments.parser import check_minimum, parse, run_main
from unified.evaluation.geneval_files import read_prompts
from unified.scenes.prompts import renderable_prompts, sample_prompts, write_prompts
from unified.scenes.rendering import CLASSES, COLOURS


@dataclass
class PromptArguments(WithNeeds):
    """Which prompts are written."""

    NEEDS = (
        Needs("count seed split counts", lambda args: args.renderable is None, "--renderable samples nothing", ""),
        Needs("counts", lambda args: args.split == "unseen_counts", "set --split to unseen_counts", "split"),
    )

    out: str = field(metadata={"help": "JSONL file, overwritten"})
    count: int = field(default=360, metadata={"help": "prompts, shared out evenly among the tasks"})
    seed: int = field(default=0, metadata={"help": "another seed gives other prompts from the same split"})
    split: Literal["train", "heldout", "unseen_counts"] = field(
        default="train",
        metadata={"help": "train: what training shows; heldout: combinations it does not; unseen_counts: more of one"},
    )
    tags: list[str] = field(default_factory=list, metadata={"help": "tasks (empty: all that the split has)"})
    classes: list[str] = field(default_factory=list, metadata={"help": 'classes, cat "wine glass" (empty: all 68)'})
    colours: list[str] = field(default_factory=list, metadata={"help": "colours (empty: all ten)"})
    counts: list[int] = field(default_factory=lambda: [5, 6], metadata={"help": "of unseen_counts, from 5 to 15"})
    renderable: str | None = field(
        default=None, metadata={"help": "sample nothing: keep this set's prompts that Scenes can show"}
    )

    def __post_init__(self) -> None:
        check_minimum(self, count=1, seed=0)


def main() -> None:
    (args,) = parse((PromptArguments,))
    prompts = sampled(args) if args.renderable is None else kept(args)
    digest = write_prompts(Path(args.out), prompts)
    tasks = Counter(metadata["tag"] for metadata in prompts)
    print(json.dumps({"out": args.out, "prompts": len(prompts), "tasks": tasks, "sha256": digest}))


def sampled(args: PromptArguments) -> list[dict[str, Any]]:
    """Prompts drawn from Scenes."""
    classes, colours = args.classes or tuple(CLASSES), args.colours or tuple(COLOURS)
    return sample_prompts(args.count, args.seed, args.split, args.tags, classes, colours, args.counts)


def kept(args: PromptArguments) -> list[dict[str, Any]]:
    """Prompts of another set that the flags allow."""
    classes, colours = args.classes or tuple(CLASSES), args.colours or tuple(COLOURS)
    return renderable_prompts(read_prompts(args.renderable or ""), args.tags, classes, colours)


if __name__ == "__main__":
    run_main(main)
