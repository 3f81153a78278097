"""Generate images for every prompt of a file, into GenEval's folder layout; the scorers then read the folder.

    python eval/generate_images.py --model out/sft --prompts evaluation_metadata.jsonl \\
        --out out/geneval --guidance_scale 3
    accelerate launch --num_processes 8 eval/generate_images.py --model out/sft --prompts evaluation_metadata.jsonl \\
        --out out/geneval --guidance_scale 3

Prompts are JSONL with a `prompt` in every line; whatever else is there (GenEval's tag, include, exclude) goes with it.
Written are `OUT/00000/metadata.jsonl` (the prompt's line), `OUT/00000/samples/0000.png` and so on, as GenEval's own
scorer reads them, and beside them `OUT/00000/seeds.json` (the seed of every picture) and `OUT/settings.json` (model,
sampling, seed: a run with others into the same folder is refused) and `OUT/prompts.jsonl` (all of them, so that a
scorer sees what is missing). A prompt's folder appears when it is whole. A run
that was stopped goes on with the prompts that are missing; delete a folder, or one picture of it, to draw it again.

Every picture has a seed of its own, derived from --seed, the prompt's number and the picture's, and is drawn from that
alone: neither processes nor interruptions change a picture, since the prompts of a batch are the same either way.
--batch_size can change it by rounding: sums in another order differ in their last bits, and a code that comes out
otherwise changes all that is drawn after it. Measured on 8 pictures of SmolLM2, 1 against 8 at once: no code of 680 in
float32, 45 in bfloat16 (in 5 pictures), and one pixel value in 25,000 by 1 of 255. So a folder keeps to one batch
size.
"""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch
from accelerate import PartialState
from PIL import Image
from tqdm import tqdm

from unified import UnifiedForCausalLM, UnifiedProcessor
from unified.arguments.parser import check_minimum, parse, run_main
from unified.checkpoints.loading import load, weights_digest
from unified.data.rows import init_output_folder
from unified.evaluation.geneval_files import PROMPT_SET, read_captions
from unified.files.atomic import new_folder, write_text
from unified.files.results import write_result
from unified.hardware.device import best_device
from unified.inference.arguments import SamplingArguments
from unified.inference.chat import remaining_text_tokens
from unified.inference.samples_per_prompt import image_seed
from unified.inference.text_to_image import codes_to_images, generate_codes


@dataclass
class GenerateArguments(SamplingArguments):
    """What is drawn, and how."""

    model: str = field(metadata={"help": "checkpoint or adapter"})
    prompts: str = field(metadata={"help": "JSONL with a `prompt` in every line"})
    out: str = field(metadata={"help": "folder for the pictures"})
    samples: int = field(default=4, metadata={"help": "pictures for each prompt"})
    batch_size: int = field(default=16, metadata={"help": "pictures drawn at once; memory grows with it"})
    seed: int = field(default=0, metadata={"help": "the seeds of the pictures are derived from it"})
    dtype: Literal["auto", "float32", "bfloat16"] = field(default="auto", metadata={"help": "auto: as stored"})
    result: str | None = field(default=None, metadata={"help": "JSON for the speed, beside printing it"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, samples=1, batch_size=1, seed=0)


@dataclass(frozen=True)
class Prompt:
    """One line of the file, where its pictures go, and their seeds."""

    metadata: dict[str, Any]
    folder: Path
    seeds: list[int]

    def is_done(self) -> bool:
        """Whether the folder is whole; a picture that was taken out makes it incomplete."""
        pictures = [self.folder / "samples" / f"{number:04d}.png" for number in range(len(self.seeds))]
        return all(path.is_file() for path in [self.folder / "metadata.jsonl", *pictures])

    def write(self, images: list[Image.Image]) -> None:
        """Write the folder, whole or not at all."""
        with new_folder(self.folder, replace=True) as partial:  # what is there is incomplete
            (partial / "samples").mkdir()
            for number, image in enumerate(images):
                image.save(partial / "samples" / f"{number:04d}.png")
            (partial / "seeds.json").write_text(json.dumps(self.seeds) + "\n", encoding="utf-8")
            (partial / "metadata.jsonl").write_text(json.dumps(self.metadata) + "\n", encoding="utf-8")


def read_prompts(args: GenerateArguments) -> list[Prompt]:
    """Prompts of the file, each with its folder and seeds."""
    return [
        Prompt(
            metadata,
            Path(args.out, f"{place:05d}"),
            [image_seed(args.seed, place, sample) for sample in range(args.samples)],
        )
        for place, metadata in enumerate(read_captions(args.prompts))
    ]


def prompts_sha256(args: GenerateArguments) -> str:
    """SHA-256 of the file of prompts."""
    return hashlib.sha256(Path(args.prompts).read_bytes()).hexdigest()


def claim(args: GenerateArguments, model: UnifiedForCausalLM, prompts: int, first: bool) -> None:
    """Make --out the folder of this run, or check that it is; the `first` process writes its prompts there."""
    settings: dict[str, Any] = {"samples": args.samples, "batch_size": args.batch_size, "seed": args.seed}
    settings |= args.sampling_settings()
    settings |= {"model": str(Path(args.model)), "model_sha256": weights_digest(args.model)}
    settings |= {"vq_fingerprint": model.config.vq_fingerprint, "dtype": str(model.dtype).removeprefix("torch.")}
    settings |= {"prompts": prompts, "prompts_sha256": prompts_sha256(args)}
    out = Path(args.out)
    if not (out / "settings.json").exists() and any(out.glob("*/metadata.jsonl")):
        raise ValueError(f"--out {out} holds prompts without a settings.json; give another folder")
    init_output_folder(out, settings)
    if first:  # so that a scorer sees what is missing or was changed
        write_text(out / PROMPT_SET, Path(args.prompts).read_text(encoding="utf-8"))


def draw_group(
    model: UnifiedForCausalLM, processor: UnifiedProcessor, group: list[Prompt], args: GenerateArguments, bar: tqdm
) -> int:
    """Draw and write the prompts of a group that are missing; the number of pictures drawn.

    A group is drawn whole even where some of it is done, so that a picture always has the same neighbours.
    """
    jobs = [(prompt.metadata["prompt"], seed) for prompt in group for seed in prompt.seeds]
    images: list[Image.Image] = []
    for start in range(0, len(jobs), args.batch_size):
        texts, seeds = zip(*jobs[start : start + args.batch_size], strict=True)
        generators = [torch.Generator(model.device).manual_seed(seed) for seed in seeds]
        images += codes_to_images(model, generate_codes(model, processor, texts, args.sampling(), generators))
        bar.update(len(seeds))
    for number, prompt in enumerate(group):
        if not prompt.is_done():
            prompt.write(images[number * args.samples : (number + 1) * args.samples])
    return len(jobs)


def check_lengths(model: UnifiedForCausalLM, processor: UnifiedProcessor, prompts: list[Prompt]) -> None:
    """Raise ValueError for a prompt after which no image fits, before anything is drawn."""
    for prompt in prompts:
        remaining_text_tokens(
            model, processor.prompt_ids([{"role": "user", "content": prompt.metadata["prompt"]}]), images=1
        )


def main() -> None:
    (args,) = parse((GenerateArguments,))
    prompts = read_prompts(args)
    state = PartialState(cpu=not torch.cuda.is_available())
    device = state.device if torch.cuda.is_available() else best_device()
    model, processor = load(args.model, device, None if args.dtype == "auto" else args.dtype)
    check_lengths(model, processor, prompts)
    claim(args, model, len(prompts), state.is_main_process)
    size = max(1, args.batch_size // args.samples)
    groups = [prompts[start : start + size] for start in range(0, len(prompts), size)]
    mine = groups[state.process_index :: state.num_processes]
    missing = [group for group in mine if not all(prompt.is_done() for prompt in group)]
    drawn, started = 0, perf_counter()
    total = sum(len(group) for group in missing) * args.samples
    with tqdm(total=total, unit="image", disable=not state.is_main_process) as bar:
        for group in missing:
            drawn += draw_group(model, processor, group, args, bar)
    seconds = perf_counter() - started
    if state.is_main_process and drawn == 0:
        print(f"{args.out}: nothing left to draw, {len(prompts)} prompts with {args.samples} pictures each")
    elif state.is_main_process:  # its own speed: processes never wait for each other
        config = {"batch_size": args.batch_size, "guidance_scale": args.guidance_scale, "device": str(device)}
        config |= {"processes": state.num_processes, "threads": torch.get_num_threads(), "dtype": str(model.dtype)}
        path = Path(args.result) if args.result else None
        speed = {"value": round(drawn / seconds, 3), "n": drawn, "stderr": None, "seconds": seconds}
        speed |= {"tokenizer": model.config.vq_fingerprint, "prompts_sha256": prompts_sha256(args), "seed": args.seed}
        print(json.dumps(write_result(path, "images_per_second", model=args.model, config=config, **speed)))


if __name__ == "__main__":
    run_main(main)
