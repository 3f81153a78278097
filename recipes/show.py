"""Ask a trained Scenes model in text, about a picture and for pictures, and write `out_dir/index.html`.

python recipes/show.py --config recipes/configs/smollm2_scenes/demo.yaml --model out/demo/demo_sft

Called by recipes/demo.py as its last step; alone it makes the page of any checkpoint, also of a training that was
stopped: `--model out/demo-full/2_sft/checkpoint-300`.
"""

import json
from pathlib import Path

import numpy as np
from transformers.trainer_utils import get_last_checkpoint

from unified.arguments import DemoArguments, ModelArguments, parse, run_main
from unified.arrangement import tidy
from unified.chat import Chat
from unified.drawing import contact_sheet, draw_by_scale
from unified.generation import ImageSampling
from unified.loading import load
from unified.page import DemoPage, Turn
from unified.scenes import CLASSES, draw_scene, sample_scene

STRIPS = 8  # prompts whose pictures are shown scale by scale


def ask(chat: Chat, question: str) -> str:
    """The text of an answer."""
    return " ".join(part["text"] for part in chat.ask(question) if part["type"] == "text").strip()


def converse(chat: Chat, args: DemoArguments) -> list[Turn]:
    """A text question, then one about a picture that was rendered for it."""
    turns = [Turn("user", args.question), Turn("assistant", ask(chat, args.question))]
    chat.reset()
    rng = np.random.default_rng(args.seed)
    subject = next(name for name in args.classes or CLASSES if name in args.image_question)
    scene = tidy(sample_scene("colors", rng, classes=[subject]))
    image = draw_scene(scene)
    chat.show(image)
    turns += [Turn("user", args.image_question, image), Turn("assistant", ask(chat, args.image_question))]
    turns += [Turn("note", f"The picture was rendered from: {scene.metadata['prompt']}.")]
    return turns


def history(out: Path) -> list[dict[str, float]]:
    """Logs of all training stages, images seen counted on from one stage to the next."""
    entries: list[dict[str, float]] = []
    for stage in sorted(path for path in out.iterdir() if path.is_dir()):
        path = stage / "trainer_state.json"
        if not path.exists():  # a stage that was stopped: what its newest checkpoint knows
            path = Path(get_last_checkpoint(stage) or stage) / "trainer_state.json"
        if not path.exists():
            continue
        before = max((entry.get("images_seen", 0.0) for entry in entries), default=0.0)
        for entry in json.loads(path.read_text())["log_history"]:
            shifted = {"images_seen": entry["images_seen"] + before} if "images_seen" in entry else {}
            entries.append(entry | shifted)
    return entries


def main() -> None:
    args, model_args = parse((DemoArguments, ModelArguments))
    out = Path(args.out_dir)
    model, processor = load(model_args.model)
    sampling = ImageSampling(temperature=args.temperature, top_k=args.top_k, guidance=args.guidance)
    chat = converse(Chat(model, processor, sampling, seed=args.seed), args)
    drawn = draw_by_scale(model, processor, args.prompts, sampling, seed=args.seed)
    images = [steps[-1] for steps in drawn]
    contact_sheet(images, args.prompts).save(out / "drawings.png")
    log = history(out)
    seen = max((entry.get("images_seen", 0.0) for entry in log), default=0.0)
    steps = json.loads((out / "steps.json").read_text()) if (out / "steps.json").exists() else []
    domain = ", ".join(args.classes) if args.classes else f"{len(CLASSES)} object classes"
    page = DemoPage(
        title="A language model that has learnt to paint",
        facts=[
            f"SmolLM2-135M-Instruct, fine-tuned on {int(seen)} rendered pictures on this machine's CPU.",
            f"What it was shown: {domain}; tasks {args.tags or 'all six of GenEval'}. It knows nothing else to draw.",
            f"Drawn with seeds from {args.seed} on, guidance {args.guidance}, temperature {args.temperature}.",
            "Pictures: OpenMoji (CC BY-SA 4.0), rendered 64 x 64 pixels.",
        ],
        drawings=list(zip(args.prompts, images, strict=True)),
        strips=list(zip(args.prompts, drawn, strict=True))[:STRIPS],
        chat=chat,
        log=log,
        steps=steps,
    )
    (out / "index.html").write_text(page.html(), encoding="utf-8")


if __name__ == "__main__":
    run_main(main)
