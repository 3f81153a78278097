"""What recipes/sft.py and recipes/dpo.py can be told."""

from dataclasses import dataclass
from typing import Literal

import torch
from transformers import TrainingArguments
from trl import DPOConfig

from unified.arguments.fields import arg


@dataclass
class ModelArguments:
    """The checkpoint recipes start from."""

    model: str = arg("out/unified", "folder made by `unified extend`, or an earlier stage's output or adapter")
    dtype: Literal["auto", "float32", "bfloat16"] = arg(
        "float32", "dtype of the weights; float32 masters with autocast train best, bfloat16 halves the memory"
    )
    attn_implementation: Literal["sdpa", "grouped", "eager"] | None = arg(
        None, "None: on a CPU grouped (unified/models/attention.py), elsewhere the backbone's own choice"
    )
    compile_layers: bool = arg(False, "let torch compile the layers: half a minute first, then faster; needs g++")
    modality_stride: int = arg(1, "compute -log p(image) on every n-th image position, n times weighted; saves time")
    text_loss_weight: float = arg(1.0, "weight of text tokens in the loss")
    scale_loss_weights: list[float] | None = arg(None, "weight of every scale's codes in the loss; None is all 1")


@dataclass
class DataArguments:
    """What is trained on: encoded rows, see data_prep/encode_images.py."""

    train_files: list[str] = arg([], "encoded parquet files or folders, JSONL of text; named twice: twice as often")
    eval_files: list[str] = arg([], "the same, held out; empty: no evaluation")
    max_length: int = arg(512, "positions of a packed row; a longer example is an error before training")
    pack: bool = arg(True, "put several examples in a row of max_length; without, one example a row")
    caption_dropout: float = arg(0.1, "share of pictures trained without their caption, for guidance")
    last_scale_fraction: float = arg(1.0, "share of an image's last scale trained per step; less is faster per image")


@dataclass
class TuningArguments:
    """What recipes/sft.py and recipes/dpo.py are told alike."""

    train_text_rows: bool = arg(False, "let `full` move the old rows of the embedding too; language drifts sooner")
    lora_positions: Literal["all", "image_tokens", "after_image", "split_ranks"] | None = arg(
        None,
        "where updates act, see models/position_gated_lora.py; `all` merges; None: as the adapter `model`, else all",
    )
    lora_rank: int | None = arg(None, "rank of the updates; None: as the adapter `model`, else 32")
    lora_alpha: int | None = arg(None, "scale is alpha / rank; None: as the adapter `model`, else 64")
    lora_target_modules: list[str] | None = arg(
        None, "linear layers by name's ending; None: as the adapter `model`, else all of attention and MLP"
    )
    lora_dropout: float = arg(0.0, "dropout in front of the updates; also of an adapter that goes on")
    resume: bool = arg(False, "continue from the newest checkpoint in output_dir, or start where there is none")
    sample_prompts: list[str] = arg([], "prompts drawn at every evaluation")
    sample_temperature: float = arg(1.0, "temperature of these pictures")
    sample_top_k: int = arg(0, "of how many codes they choose; 0: all")
    sample_guidance_scale: float = arg(3.0, "their classifier-free guidance; 1 is none")
    remove_unused_columns: bool = arg(False, "must stay off: the collator needs every column")
    dataloader_pin_memory: bool = arg(
        torch.accelerator.is_available(), "HF's; without an accelerator torch would warn"
    )


@dataclass
class UnifiedTrainingArguments(TuningArguments, TrainingArguments):
    """HF's TrainingArguments and what ours add; see transformers for the inherited ones."""

    output_dir: str = arg("out/sft", "where checkpoints, logs, samples and the result go")
    tuning: Literal["full", "lora", "align"] = arg(
        "full", "full: all weights; lora: low-rank updates and the new parts; align: the new parts alone"
    )
    new_parts_learning_rate: float = arg(2e-3, "learning rate of image embedding and matrix rows")
    code_noise: float = arg(0.0, "up to this share of all but the last scale's codes is fed wrong, to learn to mend")
    max_minutes: float | None = arg(
        None, "end within this wall time: fewer steps where all do not fit, with their whole schedule"
    )
    speed_steps: int = arg(0, "above 0: measure the speed of so many steps, write speed.json and train no further")
    label_names: list[str] | None = arg(["labels"], "HF's; PEFT hides the model's own")
    report_to: str = arg("tensorboard", "HF's; one tracker or none")


@dataclass
class DpoArguments(TuningArguments, DPOConfig):
    """One run of recipes/dpo.py: TRL's DPOConfig and what ours add; see trl for the inherited ones."""

    output_dir: str = arg("out/dpo", "where checkpoints, logs, samples and the result go")
    model: str = arg("out/sft", "checkpoint or adapter to improve; as it is now, it is the reference too")
    dtype: Literal["auto", "float32", "bfloat16"] = arg("float32", "dtype of the weights, see recipes/sft.py")
    train_files: list[str] = arg([], "pairs of data_prep/build_preferences.py, or in TRL's formats; files or folders")
    eval_files: list[str] = arg([], "the same, held out")
    held_out_share: float = arg(0.0, "share of the training prompts kept for evaluation; not with eval_files")
    max_length: int = arg(512, "positions of prompt and answer; a longer pair is an error before training")
    num_scales: int | None = arg(None, "codes of so many scales, coarse to fine, count in log-probs; None: all")
    tuning: Literal["full", "lora"] = arg("lora", "lora: of the backbone alone; full: takes a second model")
    kl_pairs: int = arg(16, "pairs of every modality on which evaluation measures the KL to the reference")
    bf16: bool = arg(False, "TRL's default is on; here as in recipes/sft.py")
    activation_checkpointing: bool | None = arg(False, "TRL's default is on; here as in recipes/sft.py")
    report_to: str = arg("tensorboard", "HF's; one tracker or none")
