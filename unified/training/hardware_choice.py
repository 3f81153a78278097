"""What a training runs on: the machine's choice, the run's own settings, and those of the checkpoint it goes on from.

A resumed run keeps its checkpoint's precision, whatever the new machine would choose; rank 0 chooses for all ranks.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from accelerate import Accelerator, PartialState
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from unified.files.atomic import write_text
from unified.files.jsonl import read_object
from unified.files.records import HARDWARE, TRAINER_STATE
from unified.hardware.arguments import HardwareArguments
from unified.hardware.decisions import Choice, Wishes, with_reason
from unified.hardware.setup import record, set_up
from unified.training.engines import engine_of

MIXED = {"float32": "no", "bf16": "bf16", "fp16": "fp16"}  # as accelerate calls them
Arguments = TypeVar("Arguments", bound=TrainingArguments)


def choose_for_trainer(
    hardware: HardwareArguments,
    args: Arguments,
    checkpoint: Path | None = None,
    attention: str | None = None,
    compile_layers: bool | None = None,
    minutes: float | None = None,
) -> tuple[Choice, Arguments]:
    """The choice for a run of HF's Trainer, and `args` with its device and precision.

    Args:
        checkpoint: where the run goes on. attention, compile_layers: the run's own settings, None where it has none.
        minutes: that the run is given.

    Raises ValueError for settings that contradict each other, the checkpoint, or the machine.
    """
    wishes = launched(hardware.wishes(), args.device.type, os.environ)
    engine = engine_of(args) is not None
    own = {"bf16": args.bf16, "fp16": args.fp16}
    given = next((name for name, on in own.items() if on), None)
    if given is not None:
        wishes = agreed(wishes, "precision", given, f"{given} true")
    if not engine:
        wishes = with_launch_precision(wishes, os.environ)
    elif (
        given is None and wishes.precision is None
    ):  # DeepSpeed's bf16 rounds what is stored: a launch file's to choose
        launch = {mixed: name for name, mixed in MIXED.items()}.get(args.mixed_precision)
        wishes = with_reason(wishes, "the launch file", precision=launch)
    if engine:
        wishes = with_reason(wishes, "DeepSpeed or FSDP", compile_layers=compile_layers or False)
    wishes = with_reason(wishes, "as asked", attention=attention, compile_layers=compile_layers)
    choice = set_up(wishes=as_before(wishes, checkpoint), training=True, minutes=minutes or 0.0)
    if choice.device == "cpu" and args.device.type != "cpu":
        args = replace(args, use_cpu=True)
    args.mixed_precision = MIXED[choice.precision]
    if not engine:
        args.bf16, args.fp16 = choice.precision == "bf16", choice.precision == "fp16"
    return choice, args


def choose_for_accelerator(hardware: HardwareArguments, checkpoint: Path | None, **options: Any) -> Accelerator:
    """The accelerator, with `options`, of a run that is not HF's Trainer: device and precision are chosen."""
    wishes = hardware.wishes()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 or "ACCELERATE_USE_CPU" in os.environ:
        state = PartialState(cpu=wishes.device == "cpu")
        wishes = launched(wishes, state.device.type, os.environ)
    wishes = with_launch_precision(wishes, os.environ)
    choice = set_up(wishes=as_before(wishes, checkpoint), training=True)
    return Accelerator(cpu=choice.device == "cpu", mixed_precision=MIXED[choice.precision], **options)


def launched(wishes: Wishes, device: str, environment: Mapping[str, str]) -> Wishes:
    """`wishes` with the device that a launcher has set, where it has set one; ValueError where both differ."""
    processes = int(environment.get("WORLD_SIZE", "1"))
    if processes == 1 and environment.get("ACCELERATE_USE_CPU", "false").lower() not in ("1", "true", "yes"):
        return wishes
    return agreed(wishes, "device", device, "accelerate launch")


def with_launch_precision(wishes: Wishes, environment: Mapping[str, str]) -> Wishes:
    """`wishes` with the precision that a launcher was given; `no` is its own default, and leaves the choice.

    Raises ValueError where another one is wished.
    """
    mixed = environment.get("ACCELERATE_MIXED_PRECISION", "no")
    if mixed == "no":
        return wishes
    if mixed not in MIXED.values():
        raise ValueError(f"accelerate launch --mixed_precision {mixed} is not supported; give bf16, fp16 or no")
    return agreed(wishes, "precision", mixed, f"accelerate launch --mixed_precision {mixed}")


def agreed(wishes: Wishes, name: str, value: Any, who: str) -> Wishes:
    """`wishes` with one more; ValueError where it was wished otherwise before."""
    before = vars(wishes)[name]
    if before is not None and before != value:
        raise ValueError(f"{name} {before} ({wishes.reason(name)}) and {value} ({who}) are both asked for; keep one")
    return with_reason(wishes, who, **{name: value}) if before is None else wishes


def as_before(wishes: Wishes, checkpoint: Path | None) -> Wishes:
    """`wishes` with the precision that a checkpoint was trained in; ValueError where another one is asked for.

    A checkpoint from before precisions were recorded leaves the choice to the machine.
    """
    kept = None if checkpoint is None else read_record(checkpoint)
    if checkpoint is None or kept is None:
        return wishes
    before = kept.get("precision")  # None where the run was begun by Python, which need not choose
    if before is not None and wishes.precision not in (None, before):
        raise ValueError(
            f"{checkpoint} was trained in {before}, and {wishes.precision} is asked for "
            f"({wishes.reason('precision')}); leave it out, or give another output_dir"
        )
    wished = {name: kept.get(name) for name in ("precision", "compile_layers") if vars(wishes)[name] is None}
    return with_reason(wishes, f"as {checkpoint.name} was trained", **wished)


def read_record(checkpoint: Path) -> dict[str, Any] | None:
    """What a checkpoint was trained on; None where it does not say."""
    if (checkpoint / TRAINER_STATE).is_file():  # written last, so whole where it is
        state = read_object(checkpoint / TRAINER_STATE)
        kept = state.get("stateful_callbacks", {}).get(HardwareRecord.__name__)
        return None if kept is None else kept["attributes"]["chosen"]
    path = checkpoint / HARDWARE
    return read_object(path) if path.is_file() else None


def write_record(folder: Path) -> None:
    """Leave what was chosen in a folder."""
    write_text(folder / HARDWARE, json.dumps(record(), indent=1) + "\n")


class HardwareRecord(TrainerCallback, ExportableState):
    """Keeps what was chosen in every checkpoint, and in output_dir."""

    def state(self) -> dict[str, Any]:
        """Kept in a checkpoint's trainer_state.json."""
        return {"args": {}, "attributes": {"chosen": record()}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A place for it in the state of a checkpoint that had none."""
        kept: Any = state.stateful_callbacks  # HF makes its list a dict
        kept.setdefault(type(self).__name__, self.state())

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Beside the weights, for people."""
        if state.is_world_process_zero:
            write_record(Path(str(args.output_dir)) / f"checkpoint-{state.global_step}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Beside the result."""
        if state.is_world_process_zero:
            write_record(Path(str(args.output_dir)))
