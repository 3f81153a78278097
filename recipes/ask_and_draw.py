"""Ask a model in text and about pictures, draw some prompts scale by scale, and keep all of it for a page.

    python recipes/ask_and_draw.py --model weights/scenes-smollm2 --out out/shown \\
        --prompts "a photo of a cat" "a photo of a red car" --question "What is the capital of France?" \\
        --pictures "purple umbrella" star --picture_questions "What color is the umbrella?" "What do you see?"

recipes/teach.py does so before and after its training; nothing is scored. --pictures are rendered as Scenes renders
them: an object of Scenes, or one that it has not, in a colour or in its own. Written are OUT/*.png and, last,
OUT/showing.json (see unified.reports.demo_transcript).
The i-th prompt is drawn from seed + i; answers in text are greedy.
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

from dataclasses import dataclass, field
from pathlib import Path

from unified.arguments.parser import check_minimum, parse, run_main
from unified.checkpoints.loading import load
from unified.hardware.arguments import HardwareArguments
from unified.hardware.setup import products, set_up
from unified.inference.arguments import SamplingArguments
from unified.inference.chat import Chat
from unified.inference.text_to_image import draw_by_scale
from unified.reports.demo_transcript import DemoTranscript, Drawing, Query, about_objects, converse


@dataclass
class ShowArguments(SamplingArguments):
    """Who is asked, and what."""

    model: str = field(metadata={"help": "checkpoint or adapter"})
    out: str = field(metadata={"help": "folder for pictures and answers"})
    prompts: list[str] = field(default_factory=list, metadata={"help": "what is drawn"})
    question: str = field(default="What is the capital of France?", metadata={"help": "asked without a picture"})
    pictures: list[str] = field(default_factory=list, metadata={"help": "objects shown: star, 'purple umbrella'"})
    picture_questions: list[str] = field(default_factory=list, metadata={"help": "a question about each of them"})
    seed: int = field(default=0, metadata={"help": "of the first picture"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, seed=0)


def main() -> None:
    hardware, args = parse((HardwareArguments, ShowArguments))
    set_up(hardware)
    asked = [Query(args.question), *about_objects(args.pictures, args.picture_questions)]
    model, processor = load(args.model)
    sampling = args.sampling()
    with products():
        chat = converse(Chat(model, processor, sampling, seed=args.seed), asked)
        pictures = draw_by_scale(model, processor, args.prompts, sampling, seed=args.seed)
    numbered = enumerate(zip(args.prompts, pictures, strict=True), start=args.seed)
    DemoTranscript(chat, [Drawing(prompt, seed, scales) for seed, (prompt, scales) in numbered]).write(Path(args.out))
    print(f"{args.out}: {len(asked)} answers, {len(pictures)} pictures")


if __name__ == "__main__":
    run_main(main)
