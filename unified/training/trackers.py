"""Where a training's figures and images go beside its own log: TensorBoard, Weights & Biases, or nowhere."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image
from transformers import Trainer
from transformers.integrations import TensorBoardCallback, WandbCallback

TENSORBOARD, WANDB, NONE = "tensorboard", "wandb", "none"
PROJECT = "unified"


def check_trackers(report_to: str | Iterable[str]) -> None:
    """Raise ValueError for a tracker that is not installed."""
    for name in [report_to] if isinstance(report_to, str) else report_to:
        if name in (TENSORBOARD, WANDB) and find_spec(name) is None:
            raise ValueError(f"report_to {name}: {name} is not installed; `pip install {name}`, or report_to none")


@contextmanager
def reached(report_to: str | Iterable[str]) -> Iterator[None]:
    """Raise ValueError, of one line, where W&B cannot be reached or asks for a key."""
    names = [report_to] if isinstance(report_to, str) else list(report_to)
    if WANDB not in names:
        yield
        return
    import wandb

    try:
        yield
    except wandb.Error as error:
        raise ValueError(
            f"report_to wandb: {error}; `wandb login`, WANDB_MODE=offline, or report_to tensorboard"
        ) from None


def tracked(report_to: str, output_dir: str) -> dict[str, Any]:
    """Options of an `Accelerator` for a tracker, or for none."""
    return {"project_dir": output_dir} | ({} if report_to == NONE else {"log_with": report_to})


def start_tracker(accelerator: Accelerator, report_to: str, settings: dict[str, Any]) -> None:
    """Begin an accelerator's tracker, which has been named to it, with a run's settings."""
    scalars = {name: v if isinstance(v, int | float | str) else str(v) for name, v in settings.items()}
    with reached(report_to):  # TensorBoard makes a folder of the project's name
        accelerator.init_trackers(TENSORBOARD if report_to == TENSORBOARD else PROJECT, config=scalars)


def track_image(accelerator: Accelerator, name: str, image: Image.Image, step: int) -> None:
    """Give an image to the trackers of an accelerator."""
    pixels = np.asarray(image.convert("RGB"))
    for tracker in accelerator.trackers:
        if tracker.name == TENSORBOARD:
            tracker.log_images({name: pixels[None]}, step=step, dataformats="NHWC")
        elif tracker.name == WANDB:
            tracker.log_images({name: [pixels]}, step=step)


def report_image(trainer: Trainer, name: str, image: Image.Image) -> None:
    """Give an image to the trackers of HF's trainer; called on the main process."""
    step = trainer.state.global_step
    for callback in trainer.callback_handler.callbacks:
        if isinstance(callback, TensorBoardCallback) and callback.tb_writer is not None:
            pixels = np.asarray(image.convert("RGB"))
            callback.tb_writer.add_image(name, pixels, step, dataformats="HWC")
        elif isinstance(callback, WandbCallback):
            run = callback._wandb
            run.log({name: run.Image(image), "train/global_step": step})
