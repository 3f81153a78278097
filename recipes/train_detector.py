"""Train the Scenes detector, which judges pictures of Scenes, on scenes that are rendered as it goes.

    accelerate launch --config_file recipes/accelerate_configs/cpu_bf16.yaml recipes/train_detector.py \\
        --config recipes/configs/smollm2_scenes/detector.yaml
    accelerate launch --num_processes 8 --mixed_precision bf16 recipes/train_detector.py \\
        --config recipes/configs/smollm2_scenes/detector.yaml --num_workers 4
    ... --resume                                    # after an interruption: same command, same trajectory

Every YAML key is a flag (`--help` lists them). Half of the pictures are seen through the image tokenizer `--vq`: after
a new tokenizer, train a new detector. Writes to output_dir: `log.jsonl`, `checkpoint-*/` (resumable), and at the end
the averaged weights as `config.json` + `model.safetensors`, ready for `SceneDetector.from_pretrained`, with
`ceilings.json`: GenEval's score on drawn scenes and on the tokenizer's reconstructions of them, and the share of wrong
captions that pass (eval/detector_ceiling.py measures these for any detector). Exit status 2 and one line on stderr
when the input is wrong.
"""

import copy
import json
import math
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from unified.arguments import DetectorArguments, DetectorTrainingArguments, parse, run_main
from unified.detector import DetectorConfig, SceneDetector
from unified.detector_ceilings import ceilings
from unified.detector_data import PictureMix, SceneBatches, retouch
from unified.loading import load_vq
from unified.pictures import to_pixel_values
from unified.results import write_result
from unified.scenes import CANVAS, CLASSES, COLOURS
from unified.vq_model import VQModel

LEAST_BATCH = 16


def main() -> None:
    """Read arguments, build or resume the run, train, save, measure."""
    model_args, args = parse((DetectorArguments, DetectorTrainingArguments))
    vq = load_tokenizer(args)
    config = DetectorConfig(class_names=list(CLASSES), colour_names=list(COLOURS), **asdict(model_args))
    checkpoint = newest_checkpoint(args)
    accelerator = Accelerator(project_dir=args.output_dir)
    set_seed(args.seed)
    run = DetectorRun(accelerator, SceneDetector(config), vq, args)
    first_step = run.load(checkpoint)
    train(run, make_loader(config, first_step, run), first_step)
    if accelerator.is_main_process:
        run.finish()
        print(json.dumps(write_ceilings(vq, args)))
    accelerator.end_training()


def train(run: "DetectorRun", loader: DataLoader, first_step: int) -> None:
    """Step through `loader`; log, evaluate and save on the way."""
    args = run.args
    started, deadline = time.monotonic(), (args.max_minutes or math.inf) * 60
    bar = tqdm(total=args.max_steps, initial=first_step, unit="step", disable=not run.accelerator.is_main_process)
    for step, batch in enumerate(loader, start=first_step):
        run.step(step, {name: value.to(run.accelerator.device) for name, value in batch.items()})
        bar.update()
        done = step + 1
        out_of_time = run.agree(time.monotonic() - started > deadline)
        last = done == args.max_steps or out_of_time
        if done % args.log_steps == 0 or last:
            bar.set_postfix(run.log_training(done))
        if done % args.eval_steps == 0 or last:
            run.evaluate(done)
        if done % args.save_steps == 0 or last:
            run.save(done)
        if out_of_time:
            break
    bar.close()


class DetectorRun:
    """Everything a run carries from step to step: weights, their average, optimizer, the tokenizer, clocks."""

    def __init__(
        self, accelerator: Accelerator, model: SceneDetector, vq: VQModel, args: DetectorTrainingArguments
    ) -> None:
        self.accelerator, self.args = accelerator, args
        self.vq = vq.to(accelerator.device, memory_format=torch.channels_last)
        self.core = model.to(accelerator.device, memory_format=torch.channels_last).train()
        self.average = copy.deepcopy(self.core).requires_grad_(False).eval()
        optimizer = torch.optim.AdamW(parameter_groups(model, args.weight_decay), betas=(0.9, 0.95), fused=True)
        self.model, self.optimizer = accelerator.prepare(self.core, optimizer)
        accelerator.register_for_checkpointing(self.average)
        self.sums: dict[str, Tensor] = {}
        self.window_start, self.window_steps = time.monotonic(), 0

    def step(self, step: int, batch: dict[str, Tensor]) -> None:
        """One update of the detector and of its average."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(step, self.args)
        labels = {name: batch[name] for name in ("class_labels", "colour_labels", "box_labels")}
        output = self.model(self.seen(step, batch), **labels)
        self.accelerator.backward(output.loss)
        self.accelerator.clip_grad_norm_(self.core.parameters(), self.args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():  # early on the average is short, or it would remember the random start
            decay = min(self.args.ema_decay, (step + 1) / (step + 10))
            torch._foreach_lerp_(list(self.average.parameters()), list(self.core.parameters()), 1 - decay)
        for name in ("loss", "class_loss", "colour_loss", "box_loss"):
            self.sums[name] = self.sums.get(name, 0) + output[name].detach()
        self.window_steps += 1

    def seen(self, step: int, batch: dict[str, Tensor]) -> Tensor:
        """Pixel values (B, 3, H, W), some as the tokenizer shows them."""
        generator = torch.Generator()
        generator.manual_seed((self.args.seed << 40) + (step << 12) + self.accelerator.process_index)
        with self.accelerator.autocast():
            return retouch(self.vq, to_pixel_values(batch["images"]), batch["retouch"], generator)

    def log_training(self, done: int) -> dict[str, str]:
        """Write the window's mean losses and speed; returns what the progress bar shows."""
        seconds = time.monotonic() - self.window_start
        images = self.window_steps * self.args.batch_size * self.accelerator.num_processes
        record = {f"train/{name}": float(value) / self.window_steps for name, value in self.sums.items()}
        record |= {"learning_rate": learning_rate(done - 1, self.args), "images_per_second": images / seconds}
        self.write(done, record)
        self.sums, self.window_steps, self.window_start = {}, 0, time.monotonic()
        return {"loss": f"{record['train/loss']:.4f}", "image/s": f"{record['images_per_second']:.0f}"}

    def evaluate(self, done: int) -> None:
        """Short ceilings of the averaged weights; the same scenes every time."""
        if self.accelerator.is_main_process:
            started = time.monotonic()
            scores = ceilings(self.average, self.vq, self.args.eval_scenes, self.args.seed + 1)
            self.write(done, {f"eval/{name}": score["overall"] for name, score in scores.items()})
            self.window_start += time.monotonic() - started

    def write(self, done: int, record: dict[str, float]) -> None:
        """One line of log.jsonl."""
        if self.accelerator.is_main_process:
            with Path(self.args.output_dir, "log.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps({"step": done} | record) + "\n")

    def agree(self, mine: bool) -> bool:
        """True on every process when it is true on one: they must leave the loop together."""
        if self.accelerator.num_processes == 1 or self.args.max_minutes is None:
            return mine
        return bool(self.accelerator.reduce(torch.tensor([float(mine)], device=self.accelerator.device)).item())

    def save(self, done: int) -> None:
        """Write checkpoint-<step>, complete or not at all, and drop older ones."""
        folder = Path(self.args.output_dir)
        partial, final = folder / "unfinished-checkpoint", folder / f"checkpoint-{done:07d}"
        self.accelerator.save_state(str(partial))
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            shutil.rmtree(final, ignore_errors=True)
            os.replace(partial, final)
            for old in sorted(folder.glob("checkpoint-*"))[:-1]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def load(self, checkpoint: Path | None) -> int:
        """Continue from `checkpoint`; returns the first step to do."""
        Path(self.args.output_dir).mkdir(parents=True, exist_ok=True)
        if checkpoint is None:
            return 0
        self.accelerator.load_state(str(checkpoint))
        self.accelerator.print(f"resumed from {checkpoint}")
        return int(checkpoint.name.split("-")[1])

    def finish(self) -> None:
        """Save the averaged weights for `SceneDetector.from_pretrained`."""
        partial = Path(self.args.output_dir, "unfinished-model")
        self.average.to(memory_format=torch.contiguous_format).save_pretrained(partial)
        for path in partial.iterdir():
            os.replace(path, partial.parent / path.name)
        partial.rmdir()


def write_ceilings(vq: VQModel, args: DetectorTrainingArguments) -> dict[str, Any]:
    """Measure the detector as it was saved, into its folder; the headline is the score on drawn scenes."""
    path = Path(args.output_dir, "ceilings.json")
    detector = SceneDetector.from_pretrained(args.output_dir).eval()
    scores = ceilings(detector, vq, args.ceiling_scenes, args.seed)
    config = {"vq": args.vq, "vq_fingerprint": vq.fingerprint(), "scenes_per_task": args.ceiling_scenes}
    config["seed"] = args.seed
    overall, count = scores["renders"]["overall"], scores["renders"]["images"]
    return write_result(path, "detector_ceilings", overall, count, args.output_dir, config, **scores)


def load_tokenizer(args: DetectorTrainingArguments) -> VQModel:
    """The tokenizer of `--vq`; raises ValueError where it, or the batch, does not suit Scenes."""
    if args.batch_size < LEAST_BATCH:
        raise ValueError(f"batch_size {args.batch_size} is below {LEAST_BATCH}: codes are mixed within a batch")
    vq = load_vq(args.vq, "cpu").requires_grad_(False)
    if vq.config.image_size != CANVAS:
        raise ValueError(f"vq {args.vq} is for {vq.config.image_size} pixels, Scenes have {CANVAS}; give another one")
    return vq


def learning_rate(step: int, args: DetectorTrainingArguments) -> float:
    """Linear warm-up, then a cosine down to 0 at max_steps."""
    warm = min(1.0, (step + 1) / max(args.warmup_steps, 1))
    progress = max(0, step - args.warmup_steps) / max(args.max_steps - args.warmup_steps, 1)
    return args.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def parameter_groups(model: SceneDetector, weight_decay: float) -> list[dict[str, Any]]:
    """Convolution weights decay; norms and biases do not."""
    kernels = [p for p in model.parameters() if p.ndim == 4]
    others = [p for p in model.parameters() if p.ndim != 4]
    return [{"params": kernels, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def make_loader(config: DetectorConfig, first_step: int, run: DetectorRun) -> DataLoader:
    """This process's batches from `first_step` on."""
    args = run.args
    mix = PictureMix(args.tidy_share, args.torn_share, args.tokenizer_share)
    batches = SceneBatches(config, mix, args.batch_size, args.max_steps, args.seed, run.accelerator.process_index)
    return DataLoader(
        batches, batch_size=None, sampler=range(first_step, args.max_steps), num_workers=args.num_workers
    )


def newest_checkpoint(args: DetectorTrainingArguments) -> Path | None:
    """Checkpoint to resume from; raises ValueError when a new run would write over an old one's."""
    found = sorted(Path(args.output_dir).glob("checkpoint-*"))
    if found and not args.resume:
        raise ValueError(f"output_dir {args.output_dir} holds {found[-1].name}; add --resume, or give another folder")
    return found[-1] if found else None


if __name__ == "__main__":
    run_main(main)
