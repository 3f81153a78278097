"""Arguments of recipes/sft.py and recipes/dpo.py."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from transformers import TrainingArguments
from trl import DPOConfig

from unified.arguments.fields import Bounds, CheckedArguments, above, arg, arg_of, at_least
from unified.arguments.needs import WithNeeds
from unified.inference.arguments import SamplingArguments, sampling_of
from unified.models.configuration import UnifiedConfig
from unified.models.image_sampling import ImageSampling
from unified.training.inherited import NEEDS, check_inherited, check_scheduler


@dataclass
class ModelArguments(CheckedArguments):
    """The checkpoint to train, and its loss."""

    model: str = arg("out/unified", "folder made by `unified extend`, or an earlier stage's output or adapter")
    dtype: Literal["auto", "float32", "bfloat16"] = arg(
        "float32", "dtype of the weights; float32 masters with autocast train best, bfloat16 halves the memory"
    )
    quantize: Literal["4bit", "8bit"] | None = arg(
        None, "with tuning lora: keep the frozen layers of the backbone in 4 bit (nf4, QLoRA) or 8 bit (bitsandbytes)"
    )
    attn_implementation: Literal["sdpa", "grouped", "eager"] | None = arg(
        None, "None: grouped on a CPU (unified/models/attention.py), elsewhere the backbone's default"
    )
    compile_layers: bool | None = arg(
        None, "torch.compile the backbone's layers: half a minute, then faster; needs g++; None: for long runs"
    )
    modality_stride: int = arg(
        UnifiedConfig.modality_stride,
        "compute -log p(image) on every n-th image position, weighted n times; saves time",
        at_least(1),
    )
    text_loss_weight: float = arg(UnifiedConfig.text_loss_weight, "weight of text tokens in the loss", at_least(0))
    scale_loss_weights: list[float] | None = arg(
        UnifiedConfig.scale_loss_weights, "weight of every scale's codes in the loss; None is all 1", at_least(0)
    )


@dataclass
class DataArguments(CheckedArguments):
    """Training and evaluation data: encoded rows, see data_prep/encode_images.py."""

    train_files: list[str] = arg(
        [], "encoded parquet files or folders, text-only JSONL; repeat a file to oversample it"
    )
    eval_files: list[str] = arg([], "held-out files of the same formats; empty: no evaluation")
    max_length: int = arg(512, "positions of a packed row; a longer example is an error before training", at_least(1))
    max_bad: int = arg(
        0, "rows that may be left out: too long, with nothing to train, refused by the chat template", at_least(0)
    )
    pack: bool = arg(True, "pack several examples into a row of max_length; False: one example per row")
    caption_dropout: float = arg(
        0.1, "share of images trained without their caption, for classifier-free guidance", Bounds(at_least=0, below=1)
    )
    last_scale_fraction: float = arg(
        1.0, "share of an image's last scale trained per step; less is faster per image", Bounds(above=0, at_most=1)
    )


@dataclass
class TuningArguments(WithNeeds):
    """Arguments shared by recipes/sft.py and recipes/dpo.py."""

    NEEDS = NEEDS

    base: str | None = arg(
        None, "folder or hub name of the base of the adapter `model`; None: where the adapter says it is"
    )
    train_text_rows: bool = arg(
        False, "with tuning full, train the text rows of the embedding too; language drifts sooner"
    )
    lora_positions: Literal["all", "image_tokens", "after_image", "split_ranks"] | None = arg(
        None,
        "positions LoRA is applied to, see models/position_gated_lora.py; only `all` can be merged; "
        "None: as the adapter `model`, else all",
    )
    lora_rank: int | None = arg(None, "LoRA rank; None: as the adapter `model`, else 32", at_least(1))
    lora_alpha: int | None = arg(
        None, "LoRA scale is alpha / rank; None: as the adapter `model`, else 64", at_least(1)
    )
    lora_target_modules: list[str] | None = arg(
        None,
        "suffixes of linear layers' names; None: as the adapter `model`, else all of attention, recurrence and MLP",
    )
    lora_dropout: float = arg(
        0.0, "LoRA dropout; also of an adapter that is trained further", Bounds(at_least=0, below=1)
    )
    resume: bool = arg(False, "continue from the newest checkpoint in output_dir, or start if there is none")
    allow_changed: list[str] = arg([], "settings that may differ from the checkpoint's with --resume; kept on record")
    sample_prompts: list[str] = arg([], "prompts of images generated at every evaluation")
    sample_temperature: float = arg_of(SamplingArguments, "temperature", prefix="these images: ")
    sample_top_k: int = arg_of(SamplingArguments, "top_k", prefix="these images: ")
    sample_guidance_scale: float = arg_of(SamplingArguments, "guidance_scale", 3.0, prefix="these images: ")
    logging_nan_inf_filter: bool = arg(False, "must stay off: it hides losses that are not finite")
    remove_unused_columns: bool = arg(False, "must stay off: the collator needs every column")
    dataloader_pin_memory: bool = arg(
        torch.accelerator.is_available(), "HF's; without an accelerator torch would warn"
    )

    def sampling(self) -> ImageSampling:
        """How the images of `sample_prompts` are sampled; ValueError for values that have no meaning."""
        return sampling_of(self, "sample_")


@dataclass
class UnifiedTrainingArguments(TuningArguments, TrainingArguments):
    """HF's TrainingArguments and our additions; see transformers for the inherited ones."""

    output_dir: str = arg("out/sft", "folder of checkpoints, logs, samples and the result")
    tuning: Literal["full", "lora", "align"] = arg(
        "full", "full: all weights; lora: LoRA and the new modules; align: the new modules only"
    )
    new_parts_learning_rate: float = arg(
        2e-3, "learning rate of image embedding and trainable token rows", at_least(0)
    )
    first_trained_layer: int = arg(
        0,
        "train the backbone's layers from this one on, without the image embedding: less work, and less is forgotten",
        at_least(0),
    )
    start_share: float = arg(
        0.0,
        "share of the adapter `model` in the result, the rest is what was trained: the mean of both forgets less",
        Bounds(at_least=0, below=1),
    )
    code_noise: float = arg(
        0.0,
        "corrupt up to this share of input codes (not the last scale's), for self-correction",
        Bounds(at_least=0, below=1),
    )
    max_minutes: float | None = arg(
        None,
        "wall-time limit: max_steps is reduced if all do not fit, and the schedule covers the reduced number",
        above(0),
    )
    speed_steps: int = arg(
        0, "2 or more: measure the speed of this many steps, write speed.json and stop", at_least(2, 0)
    )
    label_names: list[str] | None = arg(["labels"], "HF's; with PEFT, HF does not find the model's")
    report_to: list[str] = arg(["tensorboard"], "HF's; trackers, or none")

    def __post_init__(self) -> None:
        self.sampling()
        check_inherited(self)
        super().__post_init__()
        check_scheduler(self)
        if self.activation_checkpointing_kwargs:  # TRL's default, where torch's would be True
            options: dict[str, Any] = {"use_reentrant": False, **self.activation_checkpointing_kwargs}  # type: ignore[dict-item]
            self.activation_checkpointing_kwargs = options
            if self.first_trained_layer and options["use_reentrant"]:
                raise ValueError(
                    f"first_trained_layer {self.first_trained_layer} with use_reentrant true in "
                    "activation_checkpointing_kwargs computes no gradient behind frozen layers; set it to false"
                )


@dataclass
class DpoArguments(TuningArguments, DPOConfig):
    """TRL's DPOConfig and our additions; see trl for the inherited ones."""

    output_dir: str = arg("out/dpo", "folder of checkpoints, logs, samples and the result")
    model: str = arg("out/sft", "checkpoint or adapter to train; its initial weights are the reference model")
    dtype: Literal["auto", "float32", "bfloat16"] = arg("float32", "dtype of the weights, see recipes/sft.py")
    train_files: list[str] = arg([], "pairs of data_prep/build_preferences.py, or in TRL's formats; files or folders")
    eval_files: list[str] = arg([], "held-out files of the same formats")
    held_out_share: float = arg(
        0.0, "share of the training prompts kept for evaluation; not with eval_files", Bounds(at_least=0, below=1)
    )
    max_length: int = arg(
        512, "positions of prompt and answer; a longer pair is an error before training", at_least(1)
    )
    max_bad: int = arg(0, "pairs that may be left out: too long, or with nothing to score", at_least(0))
    num_scales: int | None = arg(
        None, "number of scales, coarse to fine, whose codes count in log-probs; None: all", at_least(1)
    )
    tuning: Literal["full", "lora"] = arg(
        "lora", "lora: of the backbone only; full: all weights, with a reference model"
    )
    kl_pairs: int = arg(
        16, "pairs of every modality on which evaluation measures the KL to the reference", at_least(0)
    )
    bf16: bool = arg(False, "TRL's default is on; here as in recipes/sft.py")
    # None, as HF's is and TRL's not, so that HF's newer name, activation_checkpointing, counts too
    gradient_checkpointing: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "TRL's default is on; here as in recipes/sft.py", "nargs": "?", "const": True}
    )
    report_to: list[str] = arg(["tensorboard"], "HF's; trackers, or none")

    def __post_init__(self) -> None:
        self.sampling()
        check_inherited(self)
        super().__post_init__()
        check_scheduler(self)
