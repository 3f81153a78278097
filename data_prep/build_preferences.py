"""Preference pairs for recipes/dpo.py: a checkpoint generates several samples per prompt, a scorer ranks them.

    python data_prep/build_preferences.py --model out/sft --prompts prompts.jsonl --out out/pairs --samples 8 \\
        --guidance_scale 1 --temperature 0.7 --scorer margin --min_gap 0.3
    accelerate launch --num_processes 8 data_prep/build_preferences.py --model out/sft --prompts prompts.jsonl \\
        --out out/pairs --scorer clip --clip CLIP_DIR
    python data_prep/build_preferences.py --questions out/encoded/*.parquet --out out/question_pairs

Prompts are JSONL with a `prompt` in every line; for `verdict` and `margin` in GenEval's form (eval/write_prompts.py).
Scorers: `verdict`: GenEval's rules on what --detector finds, 1 or 0; `margin`: the verdict plus how sure the detector
is; `clip`: similarity of picture and prompt in a CLIP model's folder; `human`: the choices of people. `human` first
draws, and writes a sheet of numbered pictures for every prompt to OUT/sheets; open them, write a line
`{"prompt": "a photo of a cat", "chosen": 2, "rejected": 0}` for each choice, and run again with --choices FILE.

Of a prompt's pictures the best is paired with the worst, with --max_pairs 2 the second with the last but one as well.
Pairs whose scores tie are dropped and counted. What was drawn stays in OUT/samples (or --sampled) as codes and seeds,
so that another scorer need not draw: give it the same --sampled and another --out. --questions needs no model: encoded
rows about images (see data_prep/render_scenes.py) become pairs of their right answer and a wrong one.

Written are shards `OUT/00000.parquet` (see unified.data.preferences). A run that was stopped goes on with the shards
that are missing; `settings.json` records a folder's inputs, and another model, prompt set or scorer is refused.
The prompts of a batch are run once, whatever --samples; guidance's unconditional prompt is run for every picture.
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from datasets import Features, List, Value
from PIL import Image
from tqdm import tqdm

from unified import UnifiedForCausalLM, UnifiedProcessor
from unified.arguments.needs import Needs, WithNeeds
from unified.arguments.parser import check_minimum, parse, run_main
from unified.checkpoints.load_options import LoadOptions
from unified.data.parquet import write_parquet
from unified.data.preferences import Pair, read_counts, write_pairs
from unified.data.rows import CODES, init_output_folder, read_encoded_rows
from unified.data.shard_metadata import shared_fit, shared_metadata, shared_opener
from unified.evaluation.detections import DetectionArguments, checkpoint_digest
from unified.evaluation.geneval_files import read_captions
from unified.evaluation.preference_scorers import (
    ChoiceScorer,
    ClipScorer,
    MarginScorer,
    Scorer,
    VerdictScorer,
    choose_pairs,
    question_pair,
    read_choices,
)
from unified.files.images import write_image
from unified.hardware.arguments import HardwareArguments
from unified.hardware.device import best_device
from unified.hardware.setup import products, set_up_processes
from unified.inference.arguments import SamplingArguments
from unified.inference.samples_per_prompt import generate_samples, image_seed
from unified.inference.text_to_image import codes_to_images, contact_sheet

SAMPLES = Features({"metadata": Value("string"), "seeds": List(Value("int64")), "codes": CODES})


# what only pairs of drawn pictures have
DRAWN = """
    base quantize sampled samples scorer clip choices max_pairs min_gap batch_size shard_size guidance_scale
    temperature top_k top_p
"""


@dataclass
class BuildArguments(SamplingArguments, LoadOptions, WithNeeds):
    """What is generated, how, and which scorer ranks it."""

    NEEDS = (Needs(DRAWN, lambda args: args.prompts, "--questions draws nothing", "prompts questions"),)

    out: str = field(metadata={"help": "folder for the pairs"})
    model: str | None = field(default=None, metadata={"help": "checkpoint or adapter that draws"})
    prompts: str | None = field(default=None, metadata={"help": "JSONL with a `prompt` in every line"})
    questions: list[str] = field(default_factory=list, metadata={"help": "instead: encoded rows about images"})
    sampled: str | None = field(default=None, metadata={"help": "folder for what is drawn; None: OUT/samples"})
    samples: int = field(default=8, metadata={"help": "pictures for each prompt"})
    scorer: Literal["verdict", "margin", "clip", "human"] = field(default="margin", metadata={"help": "which scorer"})
    clip: str | None = field(default=None, metadata={"help": "clip: the model's folder"})
    choices: str | None = field(default=None, metadata={"help": "human: JSONL of choices; None: draw sheets"})
    max_pairs: int = field(default=1, metadata={"help": "pairs of a prompt; each picture is in one at most"})
    min_gap: float = field(default=0.0, metadata={"help": "pairs whose scores differ by no more are dropped"})
    batch_size: int = field(default=64, metadata={"help": "pictures drawn at once; memory grows with it"})
    shard_size: int = field(default=32, metadata={"help": "prompts per shard; what a stopped run loses at most"})
    seed: int = field(default=0, metadata={"help": "the seeds of the pictures are derived from it"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, samples=2, max_pairs=1, min_gap=0, batch_size=1, shard_size=1)
        if self.temperature <= 0:
            raise ValueError(f"--temperature {self.temperature}; give more than 0, or all pictures are the same")
        if bool(self.questions) == bool(self.prompts) or bool(self.prompts) != bool(self.model):
            raise ValueError("give --model and --prompts, or --questions alone")
        if (self.scorer == "clip") != bool(self.clip) or (self.choices and self.scorer != "human"):
            raise ValueError(f"--scorer {self.scorer}: --clip belongs to clip, which needs it, and --choices to human")


@dataclass(frozen=True)
class Shard:
    """Prompts from number `start` on, and the files of what is drawn for them and of their pairs."""

    prompts: list[dict[str, Any]]
    start: int
    drawn: Path
    pairs: Path


def make_scorer(args: BuildArguments, detection: DetectionArguments) -> Scorer | None:
    """The scorer; None for people who have not chosen yet."""
    if args.scorer == "human":
        return ChoiceScorer(read_choices(args.choices)) if args.choices else None
    if args.scorer == "clip":
        return ClipScorer(args.clip, best_device(), detection.detect_batch_size)
    kind = VerdictScorer if args.scorer == "verdict" else MarginScorer
    return kind(detection.load(), detection.class_names())


def check_prompts(prompts: list[dict[str, Any]], scorer: Scorer | None, path: str) -> None:
    """Raise ValueError for a prompt the scorer cannot score, before anything is drawn."""
    for number, metadata in enumerate(prompts if scorer else [], start=1):
        try:
            scorer.check(metadata)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: {error}") from None


def digest(*paths: str) -> str:
    """SHA-256 of files."""
    return hashlib.sha256(b"".join(Path(path).read_bytes() for path in paths)).hexdigest()


def sample_settings(args: BuildArguments, model: UnifiedForCausalLM) -> dict[str, Any]:
    """What the samples depend on."""
    return (
        args.sampling_settings()
        | args.quantized()
        | {
            "samples": args.samples,
            "seed": args.seed,
            "shard_size": args.shard_size,
            "model": str(Path(args.model).resolve()),
            "weights": args.digest(args.model),
            "vq_fingerprint": model.config.vq_fingerprint,
            "dtype": str(model.dtype).removeprefix("torch."),
            "prompts_sha256": digest(args.prompts),
        }
    )


def scorer_settings(args: BuildArguments, detection: DetectionArguments) -> dict[str, Any]:
    """What the scores and the choice of pairs depend on."""
    of_scorer: dict[str, Any] = {"verdict": detection.identity, "margin": detection.identity}.get(args.scorer, dict)()
    of_scorer |= {"clip": checkpoint_digest(Path(args.clip))} if args.clip else {}
    of_scorer |= {"choices_sha256": digest(args.choices)} if args.choices else {}
    return {"scorer": args.scorer, "max_pairs": args.max_pairs, "min_gap": args.min_gap, **of_scorer}


def plan_shards(prompts: list[dict[str, Any]], args: BuildArguments) -> list[Shard]:
    """Every shard of the job in order."""
    drawn, shards = Path(args.sampled or Path(args.out) / "samples"), []
    for start in range(0, len(prompts), args.shard_size):
        name = f"{start // args.shard_size:05d}.parquet"
        shards.append(Shard(prompts[start : start + args.shard_size], start, drawn / name, Path(args.out) / name))
    return shards


def draw_shard(shard: Shard, model: UnifiedForCausalLM, processor: UnifiedProcessor, args: BuildArguments) -> int:
    """Draw and write a shard's samples unless they are there; the number of pictures drawn."""
    if shard.drawn.exists():
        return 0
    rows, size = [], max(1, args.batch_size // args.samples)
    for first in range(0, len(shard.prompts), size):
        batch = shard.prompts[first : first + size]
        places = range(shard.start + first, shard.start + first + len(batch))
        seeds = [[image_seed(args.seed, place, sample) for sample in range(args.samples)] for place in places]
        codes = generate_samples(
            model, processor, [prompt["prompt"] for prompt in batch], seeds, args.sampling()
        ).tolist()
        told = [json.dumps(prompt) for prompt in batch]
        rows += [{"metadata": m, "seeds": s, "codes": c} for m, s, c in zip(told, seeds, codes, strict=True)]
    write_parquet(shard.drawn, pa.Table.from_pylist(rows, schema=SAMPLES.arrow_schema.remove_metadata()))
    return len(rows) * args.samples


def decode(model: UnifiedForCausalLM, rows: list[dict[str, Any]], batch_size: int) -> list[list[Image.Image]]:
    """Pictures of every row's codes."""
    flat = [codes for row in rows for codes in row["codes"]]
    images: list[Image.Image] = []
    for start in range(0, len(flat), batch_size):
        images += codes_to_images(model, torch.tensor(flat[start : start + batch_size]))
    pending = iter(images)
    return [[next(pending) for _ in row["codes"]] for row in rows]


def write_sheets(shard: Shard, images: list[list[Image.Image]], out: Path) -> None:
    """A sheet of numbered pictures for every prompt."""
    for place, (prompt, own) in enumerate(zip(shard.prompts, images, strict=True), start=shard.start):
        captions = [f"{number}  {prompt['prompt']}" for number in range(len(own))]
        write_image(contact_sheet(own, captions), out / f"{place:05d}.png")


def pair_shard(shard: Shard, scorer: Scorer, model: UnifiedForCausalLM, args: BuildArguments) -> None:
    """Score a shard's samples and write its pairs."""
    rows = pq.read_table(shard.drawn).to_pylist()
    scores = scorer.score(shard.prompts, decode(model, rows, args.batch_size))
    pairs, counts = [], Counter(prompts=len(rows))
    for prompt, row, own in zip(shard.prompts, rows, scores, strict=True):
        chosen, dropped = choose_pairs(own, row["codes"], args.max_pairs, args.min_gap)
        pairs += [as_row(prompt, row, own, better, worse, args.scorer) for better, worse in chosen]
        scored = [score for score in own if score == score]  # without UNSCORED
        counts.update(pairs=len(chosen), dropped=dropped, judged=len(scored), score_sum=sum(scored))
    write_pairs(shard.pairs, pairs, model.config.vq_fingerprint, model.config.patch_nums, counts)


def as_row(
    prompt: dict[str, Any], row: dict[str, Any], scores: list[float], better: int, worse: int, scorer: str
) -> Pair:
    """Two of a prompt's pictures as a pair."""
    answer = [{"role": "assistant", "content": [{"type": "image", "text": None}]}]
    return {
        "messages": [{"role": "user", "content": [{"type": "text", "text": prompt["prompt"]}]}],
        "chosen": answer,
        "rejected": answer,
        "codes": [],
        "chosen_codes": [row["codes"][better]],
        "rejected_codes": [row["codes"][worse]],
        "score_chosen": scores[better],
        "score_rejected": scores[worse],
        "seeds": [row["seeds"][better], row["seeds"][worse]],
        "metadata": row["metadata"],
        "source": f"samples {scorer}",
    }


def build_from_prompts(args: BuildArguments, detection: DetectionArguments, state: PartialState) -> None:
    """Draw, score, pair; what is done is not done again."""
    prompts, scorer = read_captions(args.prompts), make_scorer(args, detection)
    check_prompts(prompts, scorer, args.prompts)
    model, processor = args.load(args.model)
    shards, drawing = plan_shards(prompts, args), sample_settings(args, model)
    init_output_folder(shards[0].drawn.parent, drawing)
    if scorer:
        init_output_folder(args.out, drawing | scorer_settings(args, detection))
    drawn, seconds, mine = 0, Counter(), shards[state.process_index :: state.num_processes]
    for shard in tqdm(mine, unit="shard", disable=not state.is_main_process):
        started = perf_counter()
        with products():
            drawn += draw_shard(shard, model, processor, args)
        seconds["drawing"] += perf_counter() - started
        if scorer is None:
            rows = pq.read_table(shard.drawn).to_pylist()
            write_sheets(shard, decode(model, rows, args.batch_size), Path(args.out) / "sheets")
        elif not shard.pairs.exists():
            pair_shard(shard, scorer, model, args)
        seconds["all"] += perf_counter() - started
    state.wait_for_everyone()
    if state.is_main_process and scorer is None:
        print(f"{args.out}/sheets: open them, write down choices, then run again with --choices FILE")
    elif state.is_main_process:  # its own speed
        speed = {"drawn": drawn, "images_per_second": round(drawn / seconds["drawing"], 3) if drawn else None}
        print(json.dumps(summary([shard.pairs for shard in shards]) | speed | {"seconds": round(seconds["all"], 1)}))


def summary(shards: list[Path]) -> dict[str, Any]:
    """Counts over all shards; `dropped` are pairs that tied."""
    counts: Counter = Counter()
    for path in shards:
        counts.update(read_counts(path))
    total, scored = counts.pop("score_sum", 0), counts.pop("judged", 0)
    means = {"mean_score": round(total / scored, 4)} if scored else {}
    return {name: int(counts[name]) for name in ("prompts", "pairs", "dropped")} | means


def build_from_questions(args: BuildArguments) -> None:
    """A shard of pairs for every file of encoded rows."""
    fingerprint, patch_nums = shared_metadata("--questions", args.questions)
    fit, opener = shared_fit(args.questions), shared_opener(args.questions)
    inputs = {"questions_sha256": digest(*args.questions), "seed": args.seed, "vq_fingerprint": fingerprint}
    out = init_output_folder(args.out, inputs)
    shards = [out / f"{index:05d}.parquet" for index in range(len(args.questions))]
    for index, path in enumerate(tqdm(args.questions, unit="file")):
        if shards[index].exists():
            continue
        rng, rows = np.random.default_rng([args.seed, index]), read_encoded_rows(path)
        pairs = [pair for row in rows if (pair := question_pair(row, rng)) is not None]
        counts = {"prompts": len(rows), "pairs": len(pairs), "dropped": len(rows) - len(pairs)}
        write_pairs(shards[index], pairs, fingerprint, patch_nums, counts, fit, opener)
    print(json.dumps(summary(shards)))


def main() -> None:
    hardware, args, detection = parse((HardwareArguments, BuildArguments, DetectionArguments))
    if args.questions:
        build_from_questions(args)
    else:  # its processes wait for each other at the end
        build_from_prompts(args, detection, set_up_processes(hardware, timeout=timedelta(days=7)))


if __name__ == "__main__":
    run_main(main)
