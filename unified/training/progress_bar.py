"""The bar of a run of HF's `Trainer`: the steps that are planned, and the figures that matter."""

from collections.abc import Mapping
from typing import Any

from transformers import ProgressCallback, Trainer, TrainerControl, TrainerState, TrainingArguments

# what is shown of a log, in this order, and under what name
FIGURES = {
    "loss": "loss",
    "text_loss": "text",
    "image_loss": "image",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
    "learning_rate": "rate",
    "images_per_second": "images/s",
}
ON_THE_BAR = ("loss", "text", "image", "accuracy")
EVALUATION, BY_MODALITY = "eval_", ("_rewards/margins", "_rewards/accuracies", "_kl")


class TimeLeft(ProgressCallback):
    """HF's bar, over the steps that are planned now, so that its hours are those that are left; its losses behind."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.training_bar is not None and self.training_bar.total != state.max_steps:
            self.training_bar.total = state.max_steps
            self.training_bar.refresh()
        super().on_step_end(args, state, control, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A short line of what was logged, all of which is in the log; and the newest losses on the bar."""
        figures = shown(logs or {})
        if self.training_bar is None or not figures:
            return
        evaluated = any(name.startswith(EVALUATION) for name in logs or {})
        said = ", ".join(f"{name} {value}" for name, value in figures.items())
        self.training_bar.write(f"step {state.global_step}{', held out' if evaluated else ''}: {said}")
        if not evaluated:
            self.training_bar.set_postfix({name: figures[name] for name in ON_THE_BAR if name in figures})


def shown(logs: Mapping[str, Any]) -> dict[str, str]:
    """The figures of a log that are shown: `FIGURES`, and of an evaluation by modality its rewards and KL."""
    found = {}
    for key, value in logs.items():
        name = key.removeprefix(EVALUATION)
        if name in FIGURES:
            found[FIGURES[name]] = f"{float(value):.4g}"
        elif key != name and name.endswith(BY_MODALITY):
            found[name.replace("_rewards/", " ").replace("_", " ")] = f"{float(value):.4g}"
    order = [*FIGURES.values(), *found]
    return {name: found[name] for name in sorted(found, key=order.index)}


def show_figures(trainer: Trainer) -> None:
    """Replace HF's bar, where there is one."""
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(TimeLeft)
