"""What a training that runs out of memory says: sizes by part, and the settings that would change them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import ProgressCallback, Trainer, TrainingArguments

from unified.hardware.memory import one_line_when_full, sizes_of
from unified.training.engines import engine_of


@contextmanager
def train_within_memory(trainer: Trainer, max_length: int, tuning: str) -> Iterator[None]:
    """Context of `trainer.train()`, in which an error of memory becomes one line, and no bar outlives an error."""
    settings = lighter_settings(trainer.args, max_length, tuning)
    try:
        model: Any = trainer.model  # HF's type allows none
        with one_line_when_full(lambda: sizes_of(model, trainer.optimizer), settings):
            yield
    finally:
        for callback in trainer.callback_handler.callbacks:
            if isinstance(callback, ProgressCallback) and callback.training_bar is not None:
                callback.training_bar.close()


def lighter_settings(args: TrainingArguments, max_length: int, tuning: str) -> list[str]:
    """Settings of a run that would take less memory, those that change least of its result first."""
    batch, accumulated = args.per_device_train_batch_size, args.gradient_accumulation_steps
    found = []
    if batch > 1:
        half, more = batch // 2, accumulated * batch // (batch // 2)
        found.append(f"per_device_train_batch_size {half} with gradient_accumulation_steps {more}")
    if not args.activation_checkpointing:
        found.append("activation_checkpointing True")
    found.append(f"max_length below {max_length}")
    if tuning == "full":
        found.append("tuning lora")
    if engine_of(args) is None:
        found.append("ZeRO over several GPUs (accelerate's DeepSpeed)")
    return found
