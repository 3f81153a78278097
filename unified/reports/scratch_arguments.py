"""What recipes/scratch.py can be told."""

from dataclasses import dataclass
from typing import Literal

from unified.arguments.fields import arg
from unified.inference.arguments import GuidedSamplingArguments


@dataclass
class ScratchArguments(GuidedSamplingArguments):
    """One run of recipes/scratch.py: which scenes are rendered, how they are trained on, what is asked at the end."""

    out_dir: str = arg("out/demo-scratch", "folder for everything; a second run continues where the first stopped")
    llm: str = arg("out/smollm2", "where the converted SmolLM2 lies or is put")
    vq: str = arg("weights/scenes-vq", "image tokenizer")
    classes: list[str] = arg([], "object classes of the scenes; empty: all 68")
    colours: list[str] = arg([], "colours of the scenes; empty: all ten")
    layout: Literal["free", "tidy"] = arg("tidy", "tidy: the prompt says where an object is; free: anywhere")
    tags: str = arg("", "scene tasks with weights, as data_prep/render_scenes.py takes them; empty: all six")
    kinds: str = arg("draw:0.8,ask:0.15,describe:0.05", "kinds of conversation with weights")
    train_scenes: int = arg(8000, "scenes rendered for training")
    replay_repeats: int = arg(1, "how often the text replay's rows come for each scene's once; keeps the language")
    eval_scenes: int = arg(128, "scenes rendered for evaluation, with other seeds")
    sft_configs: list[str] = arg([], "YAMLs of recipes/sft.py, run one after the other, each from the one before")
    question: str = arg("What is the capital of France?", "text question asked at the end")
    image_question: str = arg("What color is the apple?", "question about a picture that is rendered for it")
    prompts: list[str] = arg([], "prompts drawn at the end")
    seed: int = arg(0, "seed of scenes and pictures")
