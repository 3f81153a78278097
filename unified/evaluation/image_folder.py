"""Prompts to a folder of images in GenEval's layout, whole prompt by whole prompt, so that a stopped run goes on."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from accelerate import PartialState
from PIL import Image
from tqdm import tqdm

from unified.arguments.parser import check_minimum
from unified.checkpoints.load_options import LoadOptions
from unified.data.rows import init_output_folder
from unified.evaluation.geneval_files import PROMPT_SET, read_captions
from unified.files.atomic import new_folder, write_text
from unified.files.images import image_format, inspect_image, read_image, write_image
from unified.files.results import write_result
from unified.inference.arguments import SamplingArguments
from unified.inference.chat import remaining_text_tokens
from unified.inference.samples_per_prompt import image_seed
from unified.inference.text_to_image import codes_to_images, contact_sheet, generate_codes
from unified.models.modeling import UnifiedForCausalLM
from unified.models.processing import UnifiedProcessor

SHEET_COLUMNS, SHEET_SIDE = 8, 96  # of a contact sheet


@dataclass
class GenerateArguments(SamplingArguments, LoadOptions):
    """What is drawn, and how."""

    model: str = field(metadata={"help": "checkpoint or adapter"})
    prompts: str = field(metadata={"help": "JSONL with a `prompt` in every line"})
    out: str = field(metadata={"help": "folder for the pictures"})
    samples: int = field(default=4, metadata={"help": "pictures for each prompt"})
    batch_size: int = field(default=16, metadata={"help": "pictures drawn at once; memory grows with it"})
    seed: int = field(default=0, metadata={"help": "the seeds of the pictures are derived from it"})
    result: str | None = field(default=None, metadata={"help": "JSON for the speed, beside printing it"})
    sheet: str | None = field(
        default=None,
        metadata={"help": "contact sheet of every prompt's first picture, below the `image` of prompts that have one"},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, samples=1, batch_size=1, seed=0)
        if self.sheet is not None:
            image_format(Path(self.sheet))


@dataclass(frozen=True)
class Prompt:
    """One line of the file, where its images go, and their seeds."""

    metadata: dict[str, Any]
    folder: Path
    seeds: list[int]

    def is_done(self) -> bool:
        """Whether the folder is whole; an image that was taken out makes it incomplete."""
        pictures = [self.folder / "samples" / f"{number:04d}.png" for number in range(len(self.seeds))]
        return all(path.is_file() for path in [self.folder / "metadata.jsonl", *pictures])

    def write(self, images: list[Image.Image]) -> None:
        """Write the folder atomically."""
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
    settings |= {"model": str(Path(args.model)), "model_sha256": args.digest(args.model)} | args.quantized()
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
    """Draw and write the prompts of a group that are missing; the number of images drawn.

    A group is drawn whole even where some of it is done, so that an image always has the same neighbours.
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


@dataclass(frozen=True)
class Generated:
    """What `generate_folder` has done: images drawn by this process, in so many seconds, of how many prompts."""

    images: int
    seconds: float
    prompts: int
    config: dict[str, Any]
    vq_fingerprint: str


def generate_folder(
    args: GenerateArguments, state: PartialState, model: UnifiedForCausalLM, processor: UnifiedProcessor
) -> Generated:
    """Draw this process's prompts that are missing in `args.out` with a loaded `args.model`.

    Raises ValueError for prompts that are none or too long, and for a folder of other settings.
    """
    prompts = read_prompts(args)
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
    config = {"batch_size": args.batch_size, "guidance_scale": args.guidance_scale, "device": str(model.device)}
    config |= {"processes": state.num_processes, "threads": torch.get_num_threads(), "dtype": str(model.dtype)}
    return Generated(drawn, perf_counter() - started, len(prompts), config, model.config.vq_fingerprint)


def write_sheet(args: GenerateArguments, out: str, processor: UnifiedProcessor) -> None:
    """Write the first picture of every prompt in `args.out` onto the contact sheet `out`.

    Where a prompt names an `image`, by its path from the file of prompts, that picture stands above, as the model
    would see it.
    """
    prompts = read_prompts(args)
    drawn = [read_image(prompt.folder / "samples" / "0000.png", str(prompt.folder)) for prompt in prompts]
    texts, columns = [prompt.metadata["prompt"] for prompt in prompts], min(SHEET_COLUMNS, len(prompts))
    named = [prompt.metadata.get("image") for prompt in prompts]
    if any(named):
        blank, rest = Image.new("RGB", drawn[0].size, "white"), -len(prompts) % columns
        originals = [original_of(name, args.prompts, processor) if name else blank for name in named]
        originals, drawn = originals + [blank] * rest, drawn + [blank] * rest
        texts += [""] * rest
        starts = range(0, len(drawn), columns)
        drawn = [image for at in starts for image in (originals[at : at + columns] + drawn[at : at + columns])]
        texts = [text for at in starts for text in ([""] * columns + texts[at : at + columns])]
    write_image(contact_sheet(drawn, texts, columns, SHEET_SIDE), Path(out))


def check_originals(args: GenerateArguments) -> None:
    """Raise ValueError for a picture of the sheet that cannot be read, before anything is drawn."""
    for prompt in read_prompts(args) if args.sheet is not None else ():
        if name := prompt.metadata.get("image"):
            inspect_image(Path(args.prompts).parent / str(name), f"{args.prompts}: image {name}")


def original_of(name: Any, prompts: str, processor: UnifiedProcessor) -> Image.Image:
    """The picture that a prompt names, as a square."""
    path = Path(prompts).parent / str(name)
    image = read_image(path, f"{prompts}: image {name}", processor.image_size)
    return processor.image_processor.to_square(image)


def write_speed(args: GenerateArguments, made: Generated) -> dict[str, Any]:
    """The speed of `made` as a result, written to `args.result` if that is given."""
    path = Path(args.result) if args.result else None
    speed: dict[str, Any] = {
        "value": round(made.images / made.seconds, 3),
        "n": made.images,
        "stderr": None,
        "seconds": made.seconds,
    }
    speed |= {"tokenizer": made.vq_fingerprint, "prompts_sha256": prompts_sha256(args), "seed": args.seed}
    return write_result(path, "images_per_second", model=args.model, config=made.config, **speed)
