"""Train the Scenes detector, which scores generated images of Scenes, on scenes that are rendered as it goes.

    accelerate launch --config_file recipes/accelerate_configs/cpu.yaml recipes/train_detector.py \\
        --config recipes/configs/smollm2_scenes/detector.yaml
    accelerate launch --num_processes 8 --mixed_precision bf16 recipes/train_detector.py \\
        --config recipes/configs/smollm2_scenes/detector.yaml --num_workers 4
    ... --resume                                    # after an interruption: same command, same trajectory

Every YAML key is a flag (`--help` lists them). Half of the images are reconstructed by the image tokenizer `--vq`:
after a new tokenizer, train a new detector. Writes to output_dir: `log.jsonl`, `checkpoint-*/` (resumable), and at the
end the averaged weights as `config.json` + `model.safetensors`, ready for `SceneDetector.from_pretrained`, with
`ceilings.json`: GenEval's score on rendered scenes and on the tokenizer's reconstructions of them, and the share of
wrong captions that pass (eval/detector_ceiling.py measures these for any detector). Exit status 2 and one line on
stderr when the input is wrong.
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor
from torch.utils.data import DataLoader

from unified.arguments.parser import parse, run_main
from unified.evaluation.detector import DetectorConfig, SceneDetector
from unified.files.images import to_pixel_values
from unified.files.results import write_result
from unified.hardware.arguments import HardwareArguments
from unified.image_tokenizer.loading import load_vq
from unified.image_tokenizer.model import VQModel
from unified.reports.endings import say_end
from unified.scenes.detector_arguments import DetectorArguments, DetectorTrainingArguments
from unified.scenes.detector_ceilings import ceilings
from unified.scenes.detector_data import ImageMix, SceneBatches, retouch
from unified.scenes.rendering import CANVAS, CLASSES, COLOURS
from unified.training.averaged_training import AveragedRun, newest_checkpoint
from unified.training.engines import recorded
from unified.training.hardware_choice import choose_for_accelerator
from unified.training.run_record import RunRecord
from unified.training.shutdown import shut_down
from unified.training.trackers import check_trackers, start_tracker, tracked

LEAST_BATCH = 16


def main() -> None:
    """Read arguments, build or resume the run, train, save, measure."""
    hardware, model_args, args = parse((HardwareArguments, DetectorArguments, DetectorTrainingArguments))
    vq = load_tokenizer(args)
    config = DetectorConfig(class_names=list(CLASSES), colour_names=list(COLOURS), **asdict(model_args))
    check_trackers(args.report_to)
    checkpoint = newest_checkpoint(args)
    accelerator = choose_for_accelerator(hardware, checkpoint, **tracked(args.report_to, args.output_dir))
    set_seed(args.seed)
    run = DetectorRun(accelerator, SceneDetector(config), vq, args)
    start_tracker(accelerator, args.report_to, asdict(model_args) | asdict(args))
    record = RunRecord.of((model_args, args), "rendered", vq.fingerprint(), recorded(accelerator))
    trained = run.run(record, checkpoint, lambda step: make_loader(config, step, run))
    found = write_ceilings(vq, args) if trained and accelerator.is_main_process else None
    shut_down(accelerator)
    if found is not None:
        print(json.dumps(found))
        score = f"unified run eval/geneval.py --images IMAGES --detector {args.output_dir} --out results/geneval.json"
        say_end(args.output_dir, {"GenEval's score of rendered scenes": found["value"]}, score)


class DetectorRun(AveragedRun):
    """The detector's run, with the tokenizer that reconstructs some of its images."""

    def __init__(
        self, accelerator: Accelerator, model: SceneDetector, vq: VQModel, args: DetectorTrainingArguments
    ) -> None:
        super().__init__(accelerator, model, args)
        self.vq = vq.to(accelerator.device, memory_format=torch.channels_last)

    def step(self, step: int, batch: dict[str, Tensor]) -> None:
        """One update of the detector and of its average."""
        batch = {name: value.to(self.accelerator.device) for name, value in batch.items()}
        self.set_learning_rate(step)
        labels = {name: batch[name] for name in ("class_labels", "colour_labels", "box_labels")}
        output = self.model(self.seen(step, batch), **labels)
        self.update(output.loss)
        self.update_average()
        self.add(**{name: output[name] for name in ("loss", "class_loss", "colour_loss", "box_loss")})

    def seen(self, step: int, batch: dict[str, Tensor]) -> Tensor:
        """Pixel values (B, 3, H, W), some reconstructed by the tokenizer."""
        with self.accelerator.autocast():
            return retouch(self.vq, to_pixel_values(batch["images"]), batch["retouch"], self.generator(step))

    def report(self, done: int, last: bool) -> None:
        """Short ceilings where they are due."""
        if done % self.args.eval_steps == 0 or last:
            self.evaluate(done)

    def evaluate(self, done: int) -> None:
        """Short ceilings of the averaged weights; the same scenes every time."""
        if self.accelerator.is_main_process:
            started = time.monotonic()
            scores = ceilings(self.average, self.vq, self.args.eval_scenes, self.args.seed + 1)
            self.write(done, {f"eval/{name}": score["overall"] for name, score in scores.items()})
            self.scores = {"renders": scores["renders"]["overall"]}
            self.window_start += time.monotonic() - started


def write_ceilings(vq: VQModel, args: DetectorTrainingArguments) -> dict[str, Any]:
    """Measure the detector as it was saved, into its folder; the headline is the score on rendered scenes."""
    path = Path(args.output_dir, "ceilings.json")
    detector = SceneDetector.from_pretrained(args.output_dir).eval()
    started = time.monotonic()
    scores = ceilings(detector, vq, args.ceiling_scenes, args.seed)
    config = {"vq": args.vq, "vq_fingerprint": vq.fingerprint(), "scenes_per_task": args.ceiling_scenes}
    config["seed"] = args.seed
    details = {"stderr": scores["renders"]["stderr"], "tokenizer": vq.fingerprint(), "seed": args.seed}
    details |= {"prompts_sha256": None, "seconds": time.monotonic() - started, **scores}  # its scenes are no prompts
    overall, count = scores["renders"]["overall"], scores["renders"]["images"]
    return write_result(path, "detector_ceilings", overall, count, args.output_dir, config, **details)


def load_tokenizer(args: DetectorTrainingArguments) -> VQModel:
    """The tokenizer of `--vq`; raises ValueError where it, or the batch, does not suit Scenes."""
    if args.batch_size < LEAST_BATCH:
        raise ValueError(f"batch_size {args.batch_size} is below {LEAST_BATCH}: codes are mixed within a batch")
    vq = load_vq(args.vq, "cpu").requires_grad_(False)
    if vq.config.image_size != CANVAS:
        raise ValueError(f"vq {args.vq} is for {vq.config.image_size} pixels, Scenes have {CANVAS}; give another one")
    return vq


def make_loader(config: DetectorConfig, first_step: int, run: DetectorRun) -> DataLoader:
    """This process's batches from `first_step` on."""
    args = run.args
    mix = ImageMix(args.tidy_share, args.torn_share, args.tokenizer_share)
    batches = SceneBatches(config, mix, args.batch_size, args.max_steps, args.seed, run.accelerator.process_index)
    return DataLoader(
        batches, batch_size=None, sampler=range(first_step, args.max_steps), num_workers=args.num_workers
    )


if __name__ == "__main__":
    run_main(main)
