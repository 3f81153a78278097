"""DPO in rounds: draw, score, pair, train, measure on held-out prompts; again from the better model, until none is.

    python recipes/iterate_dpo.py --run recipes/configs/smollm2_scenes/3_dpo.yaml --model out/demo-full/2_sft \\
        --out out/smollm2_scenes/dpo

--run is a YAML of recipes/dpo.py and says how each round trains; its model, train_files and output_dir are filled in.
With `tuning: lora` the first round makes an adapter, or trains --model on if it is one; the others go on with it.
Every round draws for prompts of its own (eval/write_prompts.py, split train, another seed each round). What is
measured is GenEval's overall score by --detector on one fixed set of prompts that ask for combinations no training
scene shows (split heldout), or on --heldout FILE; round 0 is the model it starts from. The rounds end when one did not
raise the best score, and after --rounds at the latest. --extra are pairs that join every round: text, or questions
about images (data_prep/build_preferences.py --questions), so that language and understanding stay.

A model that hardly fails at what it was trained on finds few pairs there. With --unseen_pairs True it draws for unseen
combinations too, those of every other class, and is measured on those of the classes in between. They are few (39
colourings of one half of all classes, 33 of the other), so rounds draw for many of them again; and to the model that
comes out the first half is unseen no more: measure it on the other one.

Every step is one of the project's own commands, printed before it runs. A step that is done is not done again, and one
that was stopped goes on: start the same line again. `OUT/rounds.json` has the score of every round and its standard
error; the best model's folder is printed at the end.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unified.arguments.fields import arg_of
from unified.arguments.needs import Needs, WithNeeds
from unified.arguments.parser import check_minimum, parse, run_main
from unified.checkpoints.adapters import BASE_VARIABLE
from unified.data.rows import init_output_folder
from unified.files.atomic import write_text
from unified.hardware.arguments import HardwareArguments
from unified.inference.arguments import GuidedSamplingArguments, sampling_of
from unified.models.configuration import UnifiedConfig
from unified.reports.commands import launch_words, run_step
from unified.scenes.prompts import sample_prompts
from unified.scenes.rendering import CLASSES, COLOURS, check_names, tags_of
from unified.training.arguments import DpoArguments
from unified.training.tuning import resolve_checkpoint


@dataclass
class IterateArguments(GuidedSamplingArguments, WithNeeds):
    """What the rounds generate, train on and measure; the sampling is that of the pictures in pairs."""

    NEEDS = (Needs("heldout_prompts", lambda args: not args.heldout, "--heldout has its prompts", "heldout"),)

    model: str = field(metadata={"help": "checkpoint or adapter to start from"})
    out: str = field(metadata={"help": "folder for everything"})
    run: str = field(metadata={"help": "YAML of recipes/dpo.py"})
    rounds: int = field(default=4, metadata={"help": "rounds at most"})
    prompts: int = field(default=360, metadata={"help": "prompts a round draws for"})
    tags: list[str] = field(default_factory=list, metadata={"help": "tasks of these prompts; empty: all of the split"})
    classes: list[str] = field(default_factory=list, metadata={"help": "objects in prompts; empty: all 68"})
    colours: list[str] = field(default_factory=list, metadata={"help": "colours in prompts; empty: all ten"})
    unseen_pairs: bool = field(
        default=False, metadata={"help": "pairs of combinations that training never showed; see above"}
    )
    samples: int = field(default=8, metadata={"help": "pictures for each of them"})
    scorer: Literal["verdict", "margin"] = field(default="margin", metadata={"help": "see build_preferences.py"})
    max_pairs: int = field(default=2, metadata={"help": "pairs of a prompt"})
    min_gap: float = field(default=0.0, metadata={"help": "pairs whose scores differ by no more are dropped"})
    extra: list[str] = field(default_factory=list, metadata={"help": "further files of pairs for every round"})
    heldout: str | None = field(default=None, metadata={"help": "prompts to measure on; None: written"})
    heldout_prompts: int = field(default=240, metadata={"help": "how many are written"})
    heldout_samples: int = field(default=4, metadata={"help": "pictures for each of them"})
    heldout_guidance_scale: float = arg_of(GuidedSamplingArguments, "guidance_scale", prefix="measured pictures: ")
    heldout_temperature: float = arg_of(GuidedSamplingArguments, "temperature", prefix="measured pictures: ")
    detector: str = field(default="scenes", metadata={"help": "as for eval/geneval.py"})
    batch_size: int = field(default=64, metadata={"help": "pictures drawn at once"})
    launch: str | None = field(
        default=None, metadata={"help": "accelerate's file for training; None: all GPUs, else one process on the CPU"}
    )
    seed: int = field(default=0, metadata={"help": "seed of prompts and pictures"})

    def __post_init__(self) -> None:
        super().__post_init__()
        sampling_of(self, "heldout_")
        check_minimum(self, rounds=1)
        for kind, names, known in (
            ("task", self.tags, tags_of("train")),
            ("class", self.classes, CLASSES),
            ("colour", self.colours, COLOURS),
        ):
            check_names(kind, names, known)
        if self.unseen_pairs:
            self.check_unseen()

    def check_unseen(self) -> None:
        """Raise ValueError unless both halves of the classes have so many unseen combinations of these tasks."""
        if self.heldout:
            raise ValueError("--unseen_pairs shares classes out itself; leave --heldout out")
        if len(set(self.classes)) == 1:
            raise ValueError(f"--unseen_pairs measures on other classes than {self.classes[0]!r}; give more of them")
        for split, flag, tags in (("train", "prompts", self.tags), ("heldout", "heldout_prompts", [])):
            count = getattr(self, flag)
            try:
                sample_prompts(count, self.seed, "heldout", tags, self.classes_of(split), self.colours or COLOURS)
            except ValueError as error:
                raise ValueError(f"--{flag} {count} with --unseen_pairs: {error}") from None

    def classes_of(self, split: str) -> list[str]:
        """Objects the prompts of pairs (train) or of what is measured (heldout) ask for; empty: all."""
        if not self.unseen_pairs:
            return self.classes
        return list(dict.fromkeys(self.classes or CLASSES))[0 if split == "train" else 1 :: 2]


def step(folder: Path, name: str, command: list[str]) -> None:
    """Run a command unless it was done before; exits with its status if it fails."""
    run_step(folder / "done" / name, f"{folder.name} {name}", command)


def write_prompts(
    args: IterateArguments, folder: Path, split: str, count: int, seed: int, tags: Sequence[str] = ()
) -> Path:
    """A prompt set, of pairs (split train) or of what is measured (heldout); returns its file."""
    path = folder / f"{split}.jsonl"
    command = ["eval/write_prompts.py", "--out", str(path), "--count", str(count), "--seed", str(seed)]
    command += ["--split", "heldout" if args.unseen_pairs else split]
    command += ["--tags", *tags] if tags else []
    command += ["--classes", *classes] if (classes := args.classes_of(split)) else []
    command += ["--colours", *args.colours] if args.colours else []
    step(folder, f"prompts_{split}", command)
    return path


def build_pairs(args: IterateArguments, folder: Path, model: str, number: int) -> Path:
    """Pairs of pictures the model draws; returns their folder."""
    prompts = write_prompts(args, folder, "train", args.prompts, args.seed + number, args.tags)
    command = ["data_prep/build_preferences.py", "--model", model, "--prompts", str(prompts)]
    command += ["--out", str(folder / "pairs"), "--samples", str(args.samples), "--scorer", args.scorer]
    command += ["--max_pairs", str(args.max_pairs), "--min_gap", str(args.min_gap), "--detector", args.detector]
    command += args.sampling_flags()
    command += ["--batch_size", str(args.batch_size), "--seed", str(args.seed + number)]
    step(folder, "pairs", command)
    return folder / "pairs"


def train(args: IterateArguments, folder: Path, model: str, pairs: Path) -> str:
    """A round's training; returns the folder of its checkpoint or adapter."""
    tuned = folder / "dpo"
    command = launch_words("recipes/dpo.py", args.launch)
    command += ["--config", args.run, "--model", model, "--output_dir", str(tuned), "--resume", "True"]
    step(folder, "train", [*command, "--train_files", str(pairs), *args.extra])
    return str(tuned)


def measure(args: IterateArguments, folder: Path, model: str, prompts: Path) -> dict[str, Any]:
    """GenEval's result of a model on the held-out prompts."""
    images, result = folder / "heldout", folder / "heldout.json"
    command = ["eval/generate_images.py", "--model", model, "--prompts", str(prompts), "--out", str(images)]
    command += ["--samples", str(args.heldout_samples), "--batch_size", str(args.batch_size)]
    command += ["--guidance_scale", str(args.heldout_guidance_scale), "--temperature", str(args.heldout_temperature)]
    step(folder, "draw_heldout", [*command, "--seed", str(args.seed)])
    command = ["eval/geneval.py", "--images", str(images), "--detector", args.detector, "--prompts", str(prompts)]
    step(folder, "score_heldout", [*command, "--model", model, "--out", str(result)])
    return json.loads(result.read_text(encoding="utf-8"))


def record(out: Path, rounds: list[dict[str, Any]], number: int, model: str, result: dict[str, Any]) -> None:
    """Add a round's score to `rounds` and write all of them."""
    rounds.append({"round": number, "model": model, "value": result["value"], "stderr": result["stderr"]})
    write_text(out / "rounds.json", json.dumps(rounds, indent=1) + "\n")
    print(f"[round {number}] held-out score {result['value']:.4f} +- {result['stderr'] or 0:.4f}", flush=True)


def check_room(checkpoint: Path, max_length: int) -> None:
    """Raise ValueError where a picture of `checkpoint` does not even fit a pair without its prompt."""
    needed = UnifiedConfig.from_pretrained(checkpoint).image_length + 2
    if max_length <= needed:
        raise ValueError(
            f"max_length {max_length} of --run has no room for a picture of {checkpoint}, {needed} positions, and its "
            f"prompt; give --run a YAML with {needed + 100} or more"
        )


def has_risen(rounds: list[dict[str, Any]]) -> bool:
    """Whether the last round's score is the best so far."""
    return rounds[-1]["value"] > max(entry["value"] for entry in rounds[:-1])


def main() -> None:
    (args,) = parse((IterateArguments,))
    # a mistake in it is found now, not after hours of drawing
    _, run = parse((HardwareArguments, DpoArguments), ["--config", args.run])
    check_room(resolve_checkpoint(args.model, run), run.max_length)
    if run.base is not None:
        os.environ[BASE_VARIABLE] = run.base  # of the adapter that the first round draws with
    settings = {name: value for name, value in vars(args).items() if name not in ("rounds", "launch")}
    out, model = init_output_folder(args.out, settings), args.model
    start = out / "round_0"
    heldout = Path(args.heldout or write_prompts(args, start, "heldout", args.heldout_prompts, args.seed))
    rounds: list[dict[str, Any]] = []
    record(out, rounds, 0, model, measure(args, start, model, heldout))
    for number in range(1, args.rounds + 1):
        folder = out / f"round_{number}"
        model = train(args, folder, model, build_pairs(args, folder, model, number))
        record(out, rounds, number, model, measure(args, folder, model, heldout))
        if not has_risen(rounds):
            print(f"[round {number}] did not raise the score: stopped")
            break
    best = max(rounds, key=lambda entry: entry["value"])
    print(json.dumps({"best": best, "rounds": rounds}))


if __name__ == "__main__":
    run_main(main)
