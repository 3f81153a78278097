"""A fine-tuning in this process: settings to a trainer, and a run from its start or from where it stopped."""

import time
from pathlib import Path

import torch
from accelerate.utils import broadcast
from transformers import AutoProcessor, TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from unified.checkpoints.adapters import is_adapter
from unified.data.chat_dataset import ChatDataset, SFTCollator, load_encoded_rows
from unified.models.attention import prefer_grouped
from unified.models.configuration import UnifiedConfig
from unified.models.modeling import UnifiedForCausalLM
from unified.training.arguments import DataArguments, ModelArguments, UnifiedTrainingArguments
from unified.training.compiled_layers import compile_layers, round_frozen
from unified.training.self_correction import check_noise
from unified.training.shutdown import shut_down
from unified.training.throughput import WARM_UP, ThroughputCallback
from unified.training.trainer import UnifiedTrainer, newest_checkpoint
from unified.training.tuning import prepare, start_of


class StopAfter(TrainerCallback):
    """Saves and stops once `minutes` of training have passed."""

    def __init__(self, minutes: float) -> None:
        self.end = time.monotonic() + 60 * minutes

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        late = broadcast(torch.tensor(time.monotonic() > self.end, dtype=torch.int, device=args.device))
        if late:  # by the first process's clock, as all must stop at the same step
            control.should_save = control.should_training_stop = True
            control.should_evaluate = args.eval_strategy != "no"


def load_model(
    checkpoint: Path, model_args: ModelArguments, max_length: int, device: torch.device
) -> UnifiedForCausalLM:
    """The checkpoint with the run's loss settings in its configuration, and the attention that suits its `device`."""
    config = UnifiedConfig.from_pretrained(
        checkpoint,
        modality_stride=model_args.modality_stride,
        text_loss_weight=model_args.text_loss_weight,
        scale_loss_weights=model_args.scale_loss_weights,
    )
    config.check_loss()  # from_pretrained sets what it overrides unchecked
    context = config.text_config.max_position_embeddings
    if max_length > context:
        raise ValueError(f"max_length {max_length} is beyond the backbone's context of {context}; lower max_length")
    attention = model_args.attn_implementation
    model = UnifiedForCausalLM.from_pretrained(
        checkpoint, config=config, dtype=model_args.dtype, attn_implementation=attention
    )
    if attention is None:
        prefer_grouped(model, device)
    return model


def build_trainer(
    model_args: ModelArguments, data_args: DataArguments, args: UnifiedTrainingArguments
) -> UnifiedTrainer:
    """The trainer of a run; ValueError for what cannot be trained on, before the first step."""
    set_seed(args.seed)
    if model_args.compile_layers and args.deepspeed_plugin is not None:
        raise ValueError("compile_layers True is not for DeepSpeed, which gathers weights as layers run; leave it off")
    if not data_args.train_files:
        raise ValueError("train_files is empty; name encoded parquet files made by data_prep/encode_images.py")
    checkpoint = start_of(model_args.model, args)
    model = load_model(checkpoint, model_args, data_args.max_length, args.device)
    processor = AutoProcessor.from_pretrained(checkpoint)
    fraction = data_args.last_scale_fraction
    datasets = []
    for files, dropout in ((data_args.train_files, data_args.caption_dropout), (data_args.eval_files, 0.0)):
        rows = load_encoded_rows(files, model.config) if files else None
        datasets.append(ChatDataset(rows, processor, caption_dropout=dropout, seed=args.seed) if files else None)
        if datasets[-1] is not None:
            datasets[-1].check_lengths(data_args.max_length, fraction)
    check_noise(model.config, args.code_noise)
    if model_args.compile_layers:
        compile_layers(model)
    trainer = UnifiedTrainer(
        model=prepare(model, args, Path(model_args.model) if is_adapter(model_args.model) else None),
        args=args,
        train_dataset=datasets[0],
        eval_dataset=datasets[1],
        data_collator=SFTCollator(processor, data_args.max_length, fraction, seed=args.seed, pack=data_args.pack),
        processing_class=processor,
        callbacks=[StopAfter(args.max_minutes)] if args.max_minutes else None,
    )
    if trainer.accelerator.mixed_precision == "bf16" and not trainer.is_deepspeed_enabled:
        round_frozen(trainer.model, torch.bfloat16)
    return trainer


def measure_speed(model_args: ModelArguments, data_args: DataArguments, args: UnifiedTrainingArguments) -> None:
    """Train a few steps for output_dir/speed.json alone."""
    args.save_strategy, args.eval_strategy = SaveStrategy.NO, IntervalStrategy.NO
    args.max_steps = WARM_UP + args.speed_steps
    trainer = build_trainer(model_args, data_args, args)
    halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = halves.get(trainer.accelerator.mixed_precision, trainer.core.dtype)
    trainer.add_callback(
        ThroughputCallback(trainer.core, model_args.model, Path(args.output_dir), args.speed_steps, dtype)
    )
    trainer.train()
    shut_down(trainer.accelerator)


def fine_tune(model_args: ModelArguments, data_args: DataArguments, args: UnifiedTrainingArguments) -> TrainerState:
    """Train, from the newest checkpoint in output_dir where `args.resume` says so; leaves the result there.

    Returns HF's state: its `global_step` is below its `max_steps` where time has cut the run.
    """
    trainer = build_trainer(model_args, data_args, args)
    trainer.train(resume_from_checkpoint=newest_checkpoint(args, trainer.model))
    trainer.save_model()
    trainer.save_state()
    shut_down(trainer.accelerator)
    return trainer.state
