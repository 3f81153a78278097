"""Ask a trained Scenes model in text, about a picture and for pictures, and write `out_dir/index.html`.

python recipes/show.py --config recipes/configs/smollm2_scenes/scratch.yaml --model out/demo-scratch/scratch_sft

Called by recipes/scratch.py as its last step; alone it makes the page of any checkpoint, also of a training that was
stopped: `--model out/demo-full/2_sft/checkpoint-300`.
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import numpy as np

from unified.arguments.parser import parse, run_main
from unified.checkpoints.loading import load
from unified.files.atomic import write_text
from unified.files.images import write_image
from unified.hardware.arguments import HardwareArguments
from unified.hardware.setup import products, set_up
from unified.inference.chat import Chat
from unified.inference.text_to_image import contact_sheet, draw_by_scale
from unified.reports.demo_transcript import Query, about_scene, converse
from unified.reports.page import ModelPage
from unified.reports.scratch_arguments import ScratchArguments
from unified.reports.steps import Job
from unified.scenes.rendering import CLASSES, sample_scene
from unified.scenes.tidy_layout import tidy
from unified.training.arguments import ModelArguments

STRIPS = 8  # prompts whose pictures are shown scale by scale


def queries(args: ScratchArguments) -> list[Query]:
    """A text question, then one about a picture that is rendered for it."""
    rng = np.random.default_rng(args.seed)
    subject = next(name for name in args.classes or CLASSES if name in args.image_question)
    scene = tidy(sample_scene("colors", rng, classes=[subject]))
    return [Query(args.question), about_scene(scene, args.image_question)]


def main() -> None:
    hardware, args, model_args = parse((HardwareArguments, ScratchArguments, ModelArguments))
    set_up(hardware)
    job = Job(args.out_dir)
    model, processor = load(model_args.model)
    sampling = args.sampling()
    with products():
        chat = converse(Chat(model, processor, sampling, seed=args.seed), queries(args))
        drawn = draw_by_scale(model, processor, args.prompts, sampling, seed=args.seed)
    images = [steps[-1] for steps in drawn]
    write_image(contact_sheet(images, args.prompts), job.out / "drawings.png")
    log = job.log()
    seen = max((entry.get("images_seen", 0.0) for entry in log), default=0.0)
    domain = ", ".join(args.classes) if args.classes else f"{len(CLASSES)} object classes"
    page = ModelPage(
        title="A language model that has learnt to paint",
        facts=[
            f"SmolLM2-135M-Instruct, fine-tuned on {int(seen)} rendered pictures on this machine's CPU.",
            f"What it was shown: {domain}; tasks {args.tags or 'all six of GenEval'}. It knows nothing else to draw.",
            f"Drawn with seeds from {args.seed} on, guidance {args.guidance_scale}, temperature {args.temperature}.",
            "Pictures: OpenMoji (CC BY-SA 4.0), rendered 64 x 64 pixels.",
        ],
        drawings=list(zip(args.prompts, images, strict=True)),
        strips=list(zip(args.prompts, drawn, strict=True))[:STRIPS],
        chat=chat,
        log=log,
        steps=job.steps(),
    )
    write_text(job.out / "index.html", page.html())


if __name__ == "__main__":
    run_main(main)
