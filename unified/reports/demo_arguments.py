"""What a demo can be told: whom it shows, what it fine-tunes on, what it asks and measures."""

from dataclasses import dataclass
from typing import Literal

from unified.arguments.fields import arg
from unified.arguments.parser import check_minimum
from unified.inference.arguments import GuidedSamplingArguments
from unified.reports.demo_transcript import about_objects

LEAST_HELDOUT = 4  # one of every task


@dataclass
class DemoArguments(GuidedSamplingArguments):
    """One demo: asked and drawn from before and after a fine-tuning, on one page."""

    start: str | None = arg("weights/scenes-smollm2", "checkpoint or LoRA adapter; null: SmolLM2, from nothing")
    out_dir: str = arg("out/demo", "folder for everything; a second run goes on there")
    llm: str = arg("out/smollm2", "where SmolLM2 lies or is put, if a base is to be made")
    vq: str = arg("weights/scenes-vq", "image tokenizer, of the base too")
    runs: list[str] = arg([], "YAMLs of fine-tunings, each from the one before; empty: what is there is shown")
    max_minutes: float | None = arg(
        None, "wall time of each of them, for which its steps are planned; null: all its steps"
    )
    repeat: int = arg(0, "conversations about each image of the new objects in training; 0: none")
    train_scenes: int = arg(8000, "Scenes in training: what is learnt, or kept from being forgotten")
    eval_scenes: int = arg(0, "Scenes for evaluation in training, with other seeds")
    layout: Literal["free", "tidy"] = arg("tidy", "tidy: the prompt says where an object is; free: anywhere")
    classes: list[str] = arg([], "object classes of Scenes; empty: all 68")
    colours: list[str] = arg([], "colours of Scenes; empty: all ten")
    tags: str = arg("", "tasks of Scenes with weights, colors:2,counting:1; empty: all six")
    kinds: str = arg("draw:0.8,ask:0.15,describe:0.05", "kinds of conversation with weights")
    text_files: list[str] = arg([], "rows of text in training; keep the language")
    text_repeats: int = arg(1, "how often they come for each image's once")
    question: str = arg("What is the capital of France?", "asked without an image")
    pictures: list[str] = arg([], "objects that are shown, 'purple umbrella'")
    picture_questions: list[str] = arg([], "a question about each of them")
    new_prompts: list[str] = arg([], "drawn for the page: what it is fine-tuned on")
    known_prompts: list[str] = arg([], "drawn for the page: what it knows, or is to know")
    heldout_prompts: int = arg(0, "prompts of the score of known objects, an image each; 0: nothing is scored")
    seed: int = arg(0, "of scenes, training and images")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, repeat=0, train_scenes=1, eval_scenes=0, text_repeats=0, heldout_prompts=0, seed=0)
        if self.max_minutes is not None:
            check_minimum(self, max_minutes=0)
        if 0 < self.heldout_prompts < LEAST_HELDOUT:
            raise ValueError(f"--heldout_prompts {self.heldout_prompts}; give at least {LEAST_HELDOUT}, or 0 for none")
        if not self.new_prompts and not self.known_prompts:
            raise ValueError("new_prompts and known_prompts are empty; name what the page is to show")
        about_objects(self.pictures, self.picture_questions)

    @property
    def prompts(self) -> list[str]:
        """All that is drawn for the page."""
        return [*self.new_prompts, *self.known_prompts]
