"""A demo in one process: a folder, its steps, the model that is shown, and when its page is written.

What the steps do is in `demo_data` and `demo_scores`; what the page says of them in `demo_page`.
"""

import gc
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from unified.arguments.parser import parse
from unified.checkpoints.adapters import ADAPTER_WEIGHTS, is_adapter, read_adapter_config, read_base_record
from unified.checkpoints.extension import extend
from unified.checkpoints.loading import load, resolve_base_checkpoint
from unified.checkpoints.smollm2 import convert
from unified.data.rows import init_output_folder
from unified.files.records import PROGRESS
from unified.files.weights import check_weights
from unified.hardware.arguments import HardwareArguments
from unified.hardware.setup import products, set_up
from unified.inference.chat import Chat
from unified.inference.text_to_image import draw_by_scale
from unified.models.modeling import UnifiedForCausalLM
from unified.models.processing import UnifiedProcessor
from unified.reports.demo_arguments import DemoArguments
from unified.reports.demo_transcript import DemoTranscript, Drawing, Query, about_objects, converse
from unified.reports.steps import Steps, say
from unified.training.arguments import DataArguments, ModelArguments, UnifiedTrainingArguments
from unified.training.fine_tuning import fine_tune, fit_to_machine

BEFORE, AFTER = "before", "after"
TRAINING = (ModelArguments, DataArguments, UnifiedTrainingArguments)


class Demo:
    """The demo in `out`.

    Args:
        command: what goes on with it. write: called with it whenever its page would say something else.
    """

    def __init__(
        self, args: DemoArguments, hardware: HardwareArguments, command: str, write: Callable[["Demo"], None]
    ) -> None:
        self.args, self.hardware, self.out, self.write = args, hardware, Path(args.out_dir), write
        self.steps = Steps(self.out, command, lambda: write(self))
        self.progress = ""  # of the training that runs
        self._loaded: tuple[Path, UnifiedForCausalLM, UnifiedProcessor] | None = None

    @property
    def base(self) -> Path:
        """The checkpoint that everything begins with."""
        if self.args.start is None:
            return self.out / "extended"
        return base_named(Path(self.args.start))

    @property
    def start(self) -> Path:
        """What is fine-tuned first."""
        return self.base if self.args.start is None else Path(self.args.start)

    @property
    def trained(self) -> list[Path]:
        """Where each fine-tuning goes, in order."""
        return [self.out / Path(run).stem for run in self.args.runs]

    def model_of(self, when: str) -> Path:
        """Folder of the model before or after the fine-tuning."""
        return self.trained[-1] if when == AFTER else self.start

    def load(self, when: str) -> tuple[UnifiedForCausalLM, UnifiedProcessor]:
        """Model and processor; the last one loaded stays in memory until `release`."""
        folder = self.model_of(when)
        if self._loaded is None or self._loaded[0] != folder:
            self.release()
            self._loaded = (folder, *load(folder))
        return self._loaded[1:]

    def release(self) -> None:
        """Give its memory back."""
        self._loaded = None
        gc.collect()

    def undo(self, name: str, *made: Path) -> None:
        """Let a step be done again, without what it `made`."""
        for path in made:
            shutil.rmtree(path, ignore_errors=True)
        self.steps.forget(name)


def base_named(model: Path) -> Path:
    """The checkpoint that `model` is or, of an adapter, names as its base, whether or not it is there."""
    return Path(read_adapter_config(model)["base_model_name_or_path"]) if is_adapter(model) else model


def can_make_base(args: DemoArguments) -> bool:
    """Whether the start lacks its base, and somebody has published how it is made."""
    start = Path(args.start or "")
    return is_adapter(start) and read_base_record(start) is not None and not base_named(start).is_dir()


def claim(args: DemoArguments, hardware: HardwareArguments, command: str, write: Callable[[Demo], None]) -> Demo:
    """The demo in `args.out_dir`; ValueError for a start or settings that cannot work, before anything is made."""
    demo = Demo(args, hardware, command, write)
    settings = asdict(args)
    if args.start is not None:
        start = Path(args.start)
        check_weights(start, ADAPTER_WEIGHTS) if can_make_base(args) else resolve_base_checkpoint(start)
        settings["start_sha256"] = [hashlib.sha256(p.read_bytes()).hexdigest() for p in start.glob("*.safetensors")]
    models = [demo.start, *demo.trained]
    for run, model, out in zip(args.runs, models, demo.trained, strict=False):
        training(demo, run, model, out)  # a mistake in it is found now
    settings["run_texts"] = [Path(run).read_text(encoding="utf-8") for run in args.runs]
    for file in args.text_files:
        if not Path(file).is_file():
            raise ValueError(f"text_files: {file} is not a file; give rows of text, or leave it out")
    init_output_folder(demo.out, settings)
    return demo


def make_base(demo: Demo) -> None:
    """SmolLM2 as a Hugging Face folder, and a checkpoint of it with the image tokenizer's codes.

    Raises ValueError where that is not the base of a published start.
    """
    convert(Path(demo.args.llm))
    if not demo.base.is_dir():
        extend(demo.args.llm, demo.args.vq, demo.base)
    resolve_base_checkpoint(demo.start)


def queries(args: DemoArguments) -> list[Query]:
    """What the model is asked, without and with an image."""
    return [Query(args.question), *about_objects(args.pictures, args.picture_questions)]


def ask_and_draw(demo: Demo, when: str) -> None:
    """Ask the model and let it draw, and say where that can be seen."""
    args, (model, processor) = demo.args, demo.load(when)
    with products():
        chat = converse(Chat(model, processor, args.sampling(), seed=args.seed), queries(args))
        images = draw_by_scale(model, processor, args.prompts, args.sampling(), seed=args.seed)
    numbered = enumerate(zip(args.prompts, images, strict=True), start=args.seed)
    drawn = [Drawing(prompt, seed, scales) for seed, (prompt, scales) in numbered]
    DemoTranscript(chat, drawn).write(demo.out / when)
    demo.write(demo)
    for turn in chat:
        say(f"  {turn.role}: {turn.text}")
    say(f"  {len(drawn)} images and these answers of {demo.model_of(when)}: open {demo.out / 'index.html'}")


def training(demo: Demo, run: str, model: Path, out: Path) -> tuple[Any, ...]:
    """Arguments of a fine-tuning on all that `demo_data` makes."""
    args = demo.args
    data = [demo.out / "encoded_objects"] * (args.repeat > 0) + [demo.out / "encoded_train"]
    told = ["--config", run, "--model", str(model), "--output_dir", str(out), "--resume", "True"]
    told += ["--seed", str(args.seed), "--train_files", *map(str, data), *args.text_files * args.text_repeats]
    told += ["--eval_files", str(demo.out / "encoded_eval")] if args.eval_scenes else []
    told += ["--max_minutes", str(args.max_minutes)] if args.max_minutes is not None else []
    return parse(TRAINING, told)


def train(demo: Demo, run: str) -> str | None:
    """A fine-tuning, from where it was stopped; says what cut it short, if time did.

    What was made of what it had left before is made again.
    """
    place = demo.args.runs.index(run)
    for later in demo.trained[place + 1 :]:
        demo.undo(f"fine-tune {later.name}", later)
    for name in [name for name in demo.steps.last() if name.endswith(f" {AFTER}")]:
        demo.undo(name, demo.out / AFTER)
    demo.release()
    model = demo.start if place == 0 else demo.trained[place - 1]
    model_args, data_args, args = training(demo, run, model, demo.trained[place])
    args = fit_to_machine(demo.hardware, model_args, args)
    fine_tune(model_args, data_args, args, demo.steps.command, [Progress(demo, demo.trained[place])])
    demo.progress = ""
    gc.collect()
    set_up(demo.hardware)  # a training's precision is not that of answers and images
    how = progress_of(demo.trained[place])
    return f"{how['steps']} of {how['max_steps']} steps" if how["ending"] == "cut" else None


def progress_of(trained: Path) -> dict[str, Any]:
    """How far a training has come, as it says itself; empty where it has said nothing yet."""
    path = trained / PROGRESS
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


class Progress(TrainerCallback):
    """Writes the page whenever a training saves, with what is left of it."""

    def __init__(self, demo: Demo, out: Path) -> None:
        self.demo, self.out = demo, out

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        found = progress_of(self.out)
        left = (found["planned_steps"] - found["steps"]) * (found["seconds_per_step"] or 0) / 60
        self.demo.progress = f"step {found['steps']} of {found['planned_steps']}, {left:.0f} minutes left"
        self.demo.write(self.demo)
