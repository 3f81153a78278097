"""Where a training's figures and images go beside its own log: TensorBoard, Weights & Biases, or nowhere."""

from collections.abc import Iterable
from importlib.util import find_spec
from types import TracebackType
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image
from transformers import Trainer
from transformers.integrations import TensorBoardCallback, WandbCallback

TENSORBOARD, WANDB, NONE = "tensorboard", "wandb", "none"
PROJECT = "unified"


# of HF's integrations, by the name in report_to: the package that each needs
PACKAGES = {
    TENSORBOARD: "tensorboard",
    WANDB: "wandb",
    "azure_ml": "azureml",
    "clearml": "clearml",
    "codecarbon": "codecarbon",
    "comet_ml": "comet_ml",
    "dagshub": "dagshub",
    "dvclive": "dvclive",
    "flyte": "flytekit",
    "kubeflow": "kubeflow",
    "mlflow": "mlflow",
    "neptune": "neptune",
    "swanlab": "swanlab",
    "trackio": "trackio",
}
REMEDIES = {WANDB: "`wandb login`, WANDB_MODE=offline, or report_to tensorboard"}


def names_of(report_to: str | Iterable[str] | None) -> list[str]:
    """The trackers that `report_to` names."""
    names = [report_to] if isinstance(report_to, str) else list(report_to or ())
    return [name for name in names if name not in (NONE, "all")]  # all: HF's, of what is installed


def check_trackers(report_to: str | Iterable[str] | None) -> None:
    """Raise ValueError for a tracker that there is not, or that is not installed."""
    for name in names_of(report_to):
        package = PACKAGES.get(name)
        if package is None:
            raise ValueError(f"report_to {name}: no tracker; choose from {', '.join(PACKAGES)}, all and none")
        if find_spec(package) is None:
            raise ValueError(
                f"report_to {name}: {package} is not installed; `pip install {package}`, or report_to none"
            )


class Reached:
    """Context in which a tracker's own errors, of a host that does not answer or a missing key, become one line."""

    def __init__(self, report_to: str | Iterable[str] | None) -> None:
        self.packages = {PACKAGES[name]: name for name in names_of(report_to)}

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        name = None if kind is None else self.packages.get(kind.__module__.split(".")[0])
        if name is not None:
            said = " ".join(str(error).split()) or str(kind)
            raise ValueError(f"report_to {name}: {said}; {REMEDIES.get(name, 'or report_to none')}") from None


def tracked(report_to: str, output_dir: str) -> dict[str, Any]:
    """Options of an `Accelerator` for a tracker, or for none."""
    return {"project_dir": output_dir} | ({} if report_to == NONE else {"log_with": report_to})


def start_tracker(accelerator: Accelerator, report_to: str, settings: dict[str, Any]) -> None:
    """Begin an accelerator's tracker, which has been named to it, with a run's settings."""
    scalars = {name: v if isinstance(v, int | float | str) else str(v) for name, v in settings.items()}
    with Reached(report_to):  # TensorBoard makes a folder of the project's name
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
