"""Teach a trained model more: objects it has never seen, in about ten minutes, and what it knew is measured again.

make demo        .venv/bin/python recipes/teach.py --config recipes/configs/smollm2_scenes/teach.yaml

It starts from a LoRA adapter, by default weights/scenes-smollm2, and makes the adapter's base where that is missing.
Before and after, the model is asked, draws fixed prompts scale by scale, and is scored on what it is to learn
(eval/nearest_object.py) and on what it knew (eval/geneval.py on held-out combinations of Scenes). In between it learns
from a folder of pictures with captions, the form in which people bring their own, mixed with Scenes and text so that
it does not forget. `out_dir/index.html` shows all of it side by side.

Every step is one of the project's own commands and is printed before it runs. A step that is done is not done again,
and a training that was stopped goes on from its newest checkpoint: start the same line again.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from unified.arguments.parser import check_minimum, parse, run_main
from unified.checkpoints.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    is_adapter,
    read_adapter_config,
    read_base_record,
)
from unified.checkpoints.loading import resolve_base_checkpoint
from unified.data.rows import init_output_folder
from unified.evaluation.detections import scenes_folder
from unified.files.atomic import write_text
from unified.files.images import read_image
from unified.files.jsonl import read_lines
from unified.files.weights import check_weights
from unified.image_tokenizer.configuration import VQConfig
from unified.image_tokenizer.scales import normalize_patch_nums
from unified.inference.arguments import GuidedSamplingArguments
from unified.reports.demo_transcript import DemoTranscript, about_objects
from unified.reports.fine_tuning_page import FineTuningPage, Pair, Score, scores
from unified.reports.steps import REPLAY, Job, encode, fine_tune, render_and_encode
from unified.scenes.glyphs import NEW_OBJECTS
from unified.training.arguments import DataArguments, ModelArguments, UnifiedTrainingArguments

STRIPS = 4  # new and as many known prompts whose pictures are shown scale by scale
DETECTOR = "scenes"
BEFORE, AFTER = "before", "after"
TRAINING = (ModelArguments, DataArguments, UnifiedTrainingArguments)


@dataclass
class TeachArguments(GuidedSamplingArguments):
    """What is taught to whom, and what is asked before and after."""

    start: str = field(default="weights/scenes-smollm2", metadata={"help": "LoRA adapter that goes on learning"})
    out_dir: str = field(default="out/demo", metadata={"help": "folder for everything; a second run goes on there"})
    llm: str = field(default="out/smollm2", metadata={"help": "where SmolLM2 lies or is put, if a base is to be made"})
    vq: str = field(default="weights/scenes-vq", metadata={"help": "image tokenizer, of the base too"})
    run: str = field(
        default="recipes/configs/smollm2_scenes/teach_sft.yaml", metadata={"help": "YAML of recipes/sft.py"}
    )
    max_minutes: float = field(default=10.0, metadata={"help": "the training stops after this wall time"})
    repeat: int = field(default=50, metadata={"help": "conversations about each picture of the new objects"})
    replay_scenes: int = field(default=3000, metadata={"help": "Scenes mixed in, against forgetting"})
    heldout_prompts: int = field(default=100, metadata={"help": "prompts of the old score, a picture each"})
    new_prompts: list[str] = field(default_factory=list, metadata={"help": "drawn for the page: what is taught"})
    known_prompts: list[str] = field(default_factory=list, metadata={"help": "drawn for the page: what it knows"})
    question: str = field(default="What is the capital of France?", metadata={"help": "asked without a picture"})
    pictures: list[str] = field(default_factory=list, metadata={"help": "objects that are shown, 'purple umbrella'"})
    picture_questions: list[str] = field(default_factory=list, metadata={"help": "a question about each of them"})
    seed: int = field(default=0, metadata={"help": "of scenes, training and pictures"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, max_minutes=0, repeat=1, replay_scenes=1, heldout_prompts=4)
        check_minimum(self, seed=0)
        for name in ("new_prompts", "known_prompts"):
            if not vars(self)[name]:
                raise ValueError(f"{name} is empty; name what the page is to show before and after")
        about_objects(self.pictures, self.picture_questions)

    def training_flags(self) -> list[str]:
        """What recipes/sft.py is told beside its YAML."""
        return ["--tuning", "lora", "--max_minutes", str(self.max_minutes), "--seed", str(self.seed)]

    def drawing_flags(self) -> list[str]:
        """How all pictures are drawn."""
        return [*self.sampling_flags(), "--seed", str(self.seed)]


def claim(args: TeachArguments) -> Job:
    """The job in `out_dir`; ValueError for a start or settings that cannot work, before anything is made."""
    start = Path(args.start)
    if not is_adapter(start):
        raise ValueError(
            f"start {start} holds no {ADAPTER_CONFIG}; train an adapter with tuning lora, for instance "
            "recipes/configs/smollm2_scenes/2_lora.yaml, and give its folder as --start"
        )
    check_weights(start, ADAPTER_WEIGHTS)
    told = ["--config", args.run, "--model", args.start, *args.training_flags()]
    parse(TRAINING, told)  # a mistake in it is found now
    weights = hashlib.sha256((start / ADAPTER_WEIGHTS).read_bytes()).hexdigest()
    given = {"run_text": Path(args.run).read_text(encoding="utf-8"), "start_sha256": weights}
    return Job(init_output_folder(args.out_dir, asdict(args) | given))


def make_base(args: TeachArguments, job: Job) -> None:
    """The checkpoint that `args.start` was trained on, unless it is there; ValueError where another one is.

    Only a published adapter can tell whether what is made is its base.
    """
    base = read_adapter_config(Path(args.start))["base_model_name_or_path"]
    if read_base_record(Path(args.start)) is not None and not Path(base).is_dir():
        job.run("convert", ["data_prep/convert_smollm2.py", "--out", args.llm], again=True)
        extend = ["-m", "unified.cli", "extend", "--llm", args.llm, "--vq", args.vq, "--out", base]
        job.run("extend", extend, again=True)
    resolve_base_checkpoint(args.start)


def write_questions(args: TeachArguments, job: Job) -> None:
    """The folder of new objects, the prompts that ask for them, and those of what the model knows."""
    command = ["data_prep/render_objects.py", "--out", str(job.out / "objects"), "--seed", str(args.seed)]
    job.run("render objects", [*command, "--prompts", str(job.out / "new.jsonl")])
    command = ["eval/write_prompts.py", "--split", "heldout", "--count", str(args.heldout_prompts)]
    job.run("write prompts", [*command, "--seed", str(args.seed), "--out", str(job.out / "known.jsonl")])


def look(args: TeachArguments, job: Job, when: str, model: str | Path) -> None:
    """Ask the model, let it draw, and score it on what it is to learn and on what it knew."""
    command = ["recipes/ask_and_draw.py", "--model", str(model), "--out", str(job.out / when), *args.drawing_flags()]
    command += ["--question", args.question, "--prompts", *args.new_prompts, *args.known_prompts]
    command += ["--pictures", *args.pictures, "--picture_questions", *args.picture_questions] if args.pictures else []
    job.run(f"ask and draw {when}", command)
    scorers = {
        "new": ["eval/nearest_object.py", "--objects", str(job.out / "objects"), "--vq", args.vq],
        "known": ["eval/geneval.py", "--detector", DETECTOR],
    }
    for what, scorer in scorers.items():
        images = ["--images", str(job.out / f"{what}_{when}")]
        command = ["eval/generate_images.py", "--model", str(model), "--prompts", str(job.out / f"{what}.jsonl")]
        command += ["--out", images[1], "--samples", "1", *args.drawing_flags()]
        job.run(f"draw {what} {when}", command)
        job.run(f"score {what} {when}", [*scorer, *images, "--out", str(job.out / f"{what}_{when}.json")])


def teach(args: TeachArguments, job: Job) -> Path:
    """Go on training the adapter on the new objects, mixed with what it knows; returns the folder of the result."""
    rows, seed = job.out / "objects.jsonl", ["--seed", str(args.seed)]
    command = ["data_prep/convert_captions.py", "--images", str(job.out / "objects"), "--out", str(rows), *seed]
    # its captions already are sentences such as "a picture of a star"
    job.run("convert captions", [*command, "--repeat", str(args.repeat), "--wordings", "{}", "Draw {}."])
    objects = encode(job, "objects", args.vq, [rows], job.out / "encoded_objects")
    # laid out and asked about as in the training of the start
    flags = ["--count", str(args.replay_scenes), *seed, "--layout", "tidy"]
    flags += ["--kinds", "draw:0.7,ask:0.15,describe:0.15"]
    replay = render_and_encode(job, "replay", args.vq, flags)
    files = [str(objects), str(replay), REPLAY]
    return fine_tune(job, "teach", args.run, args.start, job.out / "taught", files, args.training_flags())


def read_result(job: Job, what: str, when: str) -> dict[str, Any]:
    """What a scorer has found."""
    return json.loads((job.out / f"{what}_{when}.json").read_text(encoding="utf-8"))


def all_scores(job: Job) -> tuple[list[Score], list[Score]]:
    """Scores of the new and of the known objects, each with its ceilings."""
    new, known = read_result(job, "new", AFTER), read_result(job, "known", AFTER)
    true = json.loads((scenes_folder(DETECTOR) / "ceilings.json").read_text(encoding="utf-8"))["reconstructions"]
    ceilings = {name: true["tasks"][name]["value"] for name in known["tasks"]}
    ceilings[""] = sum(ceilings.values()) / len(ceilings)
    return (
        scores("New objects", read_result(job, "new", BEFORE), new, {"": new["ceiling"]["reconstructions"]}),
        scores("Known objects", read_result(job, "known", BEFORE), known, ceilings),
    )


def taught_pictures(job: Job) -> list[tuple[str, Image.Image]]:
    """Caption and picture of all that it was taught with, the objects in their own colours first."""
    folder = job.out / "objects"
    records = [record for _, record in read_lines(folder / "metadata.jsonl")]
    files = [folder / record["file_name"] for record in records]
    return [(record["text"][0], read_image(file, str(file))) for record, file in zip(records, files, strict=True)]


def facts(args: TeachArguments, pictures: int) -> list[str]:
    """The small print."""
    last = args.seed + len(args.new_prompts) + len(args.known_prompts) - 1
    return [
        f"Start: {args.start}, a LoRA adapter of SmolLM2-135M-Instruct trained on Scenes; the adapter alone learns.",
        f"Taught: {', '.join(NEW_OBJECTS)}, each in its own colours and some others, and in pairs: {pictures} "
        f"pictures, each in {args.repeat} conversations, mixed with {args.replay_scenes} Scenes and SmolLM2's own "
        f"text, so that it does not forget. recipes/sft.py with {args.run}, for at most {args.max_minutes:g} minutes.",
        f"Drawings shown: prompts in this order, seeds {args.seed} to {last}, the same before and after, none left "
        f"out. Drawings scored: one of each prompt of new.jsonl and known.jsonl, seeds made of {args.seed}. All with "
        f"guidance {args.guidance_scale:g} and temperature {args.temperature:g}.",
        "Glyphs: OpenMoji 17 (openmoji.org), CC BY-SA 4.0. All pictures on this page derive from them: whoever shares "
        "them names OpenMoji and keeps the licence.",
    ]


def page(args: TeachArguments, job: Job) -> FineTuningPage:
    """Everything that was made, side by side."""
    before, after = (DemoTranscript.read(job.out / when) for when in (BEFORE, AFTER))
    captions = [f"{drawing.prompt} (seed {drawing.seed})" for drawing in after.drawn]
    drawn = list(zip(captions, before.drawn, after.drawn, strict=True))
    pairs = [Pair(caption, old.scales[-1], new.scales[-1]) for caption, old, new in drawn]
    strips, count = [(caption, new.scales) for caption, _, new in drawn], len(args.new_prompts)
    grids = normalize_patch_nums(VQConfig.from_pretrained(args.vq).patch_nums)
    pictures, steps = taught_pictures(job), job.steps()
    minutes = sum(float(step["seconds"]) for step in steps if step["step"] == "teach") / 60
    new_scores, known_scores = all_scores(job)
    return FineTuningPage(
        title=f"Taught {len(NEW_OBJECTS)} new objects in {minutes:.0f} minutes",
        summary="A small language model could draw 68 kinds of objects. Then it was shown "
        f"{len(pictures)} pictures with captions of things it had never seen: {', '.join(NEW_OBJECTS)}. This is what "
        f"it drew before, and after {minutes:.0f} minutes of training on this machine's CPU.",
        facts=facts(args, len(pictures)),
        shown=pictures[: len(NEW_OBJECTS)],
        new=pairs[:count],
        known=pairs[count:],
        strips=[*strips[:count][:STRIPS], *strips[count:][:STRIPS]],
        chat_before=before.chat,
        chat_after=after.chat,
        scales=", ".join(f"{height}x{width}" for height, width in grids),
        new_scores=new_scores,
        known_scores=known_scores,
        log=job.log(),
        steps=steps,
    )


def main() -> None:
    (args,) = parse((TeachArguments,))
    job = claim(args)
    make_base(args, job)
    write_questions(args, job)
    look(args, job, BEFORE, args.start)
    look(args, job, AFTER, teach(args, job))
    write_text(job.out / "index.html", page(args, job).html())
    print(f"open {job.out / 'index.html'}")


if __name__ == "__main__":
    run_main(main)
