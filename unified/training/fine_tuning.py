"""A fine-tuning run in this process: arguments to a trainer, started anew or resumed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerState, set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from unified.checkpoints.adapters import is_adapter, trained_chats
from unified.checkpoints.averaging import mix_in
from unified.checkpoints.loading import load_processor
from unified.checkpoints.quantization import quantization
from unified.data.chat_dataset import ChatDataset, SFTCollator, list_data_files, load_encoded_rows
from unified.data.shard_metadata import adopt_fit
from unified.files.records import TRAINER_STATE
from unified.files.weights import fingerprint
from unified.hardware.arguments import HardwareArguments
from unified.models.attention import prefer_grouped
from unified.models.chat_fingerprint import adopt_chats
from unified.models.configuration import UnifiedConfig
from unified.models.modeling import UnifiedForCausalLM
from unified.training.arguments import DataArguments, ModelArguments, UnifiedTrainingArguments
from unified.training.backbone_needs import suit
from unified.training.compiled_layers import cast_frozen_weights, compile_layers
from unified.training.description import Description
from unified.training.engines import engine_of, recorded
from unified.training.finite import FiniteTrainer, check_batches, check_steps
from unified.training.hardware_choice import HardwareRecord, choose_for_trainer
from unified.training.inherited import evaluates
from unified.training.loss_plots import OF_TRAINER, plot_history
from unified.training.memory import train_within_memory
from unified.training.other_ranks import one_line_when_others_end
from unified.training.planned_end import cut_off, know_the_end
from unified.training.quantized import check_quantized, keep_trainable
from unified.training.run_folder import check_folder, locked
from unified.training.run_record import OPTIMIZER, Recorder, RunRecord, begin, digest
from unified.training.self_correction import check_code_noise
from unified.training.shutdown import shut_down
from unified.training.throughput import WARM_UP, ThroughputCallback
from unified.training.trackers import Reached, check_trackers
from unified.training.trainer import UnifiedTrainer, check_complete, newest_checkpoint, newest_folder
from unified.training.tuning import check_masters, check_start_share, prepare, resolve_checkpoint


def weights_of(config: UnifiedConfig) -> list[float]:
    """The loss weights, of text and then of scales."""
    return [config.text_loss_weight, *(config.scale_loss_weights or [1.0])]


def load_model(
    checkpoint: Path, model_args: ModelArguments, max_length: int, device: torch.device
) -> UnifiedForCausalLM:
    """The checkpoint with the run's loss settings in its config, and the attention implementation for `device`."""
    config = UnifiedConfig.from_pretrained(
        checkpoint,
        modality_stride=model_args.modality_stride,
        text_loss_weight=model_args.text_loss_weight,
        scale_loss_weights=model_args.scale_loss_weights,
    )
    config.check_loss()  # from_pretrained does not validate its overrides
    weights = weights_of(config)
    if not any(weights):
        raise ValueError(f"loss weights {weights} are all 0, so nothing would be trained; give one above 0")
    context = config.text_config.max_position_embeddings
    if max_length > context:
        raise ValueError(f"max_length {max_length} exceeds the backbone's context of {context}; lower max_length")
    attention = model_args.attn_implementation
    model = UnifiedForCausalLM.from_pretrained(
        checkpoint,
        config=config,
        dtype=model_args.dtype,
        attn_implementation=attention,
        **quantization(model_args.quantize, device),
    )
    keep_trainable(model)
    if attention is None:
        prefer_grouped(model, device)
    return model


def build_trainer(
    model_args: ModelArguments, data_args: DataArguments, args: UnifiedTrainingArguments
) -> UnifiedTrainer:
    """The trainer of a run; raises ValueError for invalid data and arguments before the first step."""
    check_trackers(args.report_to)
    set_seed(args.seed)
    engine = engine_of(args)
    if model_args.compile_layers and engine is not None:
        raise ValueError(
            f"compile_layers True does not work with {engine}, which gathers weights as layers run; set it to False"
        )
    if not data_args.train_files:
        raise ValueError("train_files is empty; name encoded parquet files made by data_prep/encode_images.py")
    checkpoint = resolve_checkpoint(model_args.model, args)
    check_quantized(model_args.quantize, args)
    model = load_model(checkpoint, model_args, data_args.max_length, args.device)
    processor = load_processor(model_args.model, checkpoint)
    train_files, eval_files = (
        [file for path in paths for file in list_data_files(path)]
        for paths in (data_args.train_files, data_args.eval_files)
    )
    adopt_fit(processor, train_files, eval_files)
    adopt_chats(processor, model.config, trained_chats(Path(model_args.model), model.config), model_args.model)
    data_args, fraction = suit(model, data_args), data_args.last_scale_fraction
    datasets = []
    context = model.config.text_config.max_position_embeddings
    for files, evaluation in ((data_args.train_files, False), (data_args.eval_files, True)):
        faults: dict[int, str] = {}
        rows = load_encoded_rows(files, model.config, faults) if files else None
        dropout = 0.0 if evaluation else data_args.caption_dropout
        datasets.append(ChatDataset(rows, processor, dropout, args.seed, evaluation, files, faults) if files else None)
        if datasets[-1] is not None:  # evaluation sees whole images, which may take more room
            longest, share = (context, 1.0) if evaluation else (data_args.max_length, fraction)
            weigh = model.loss_divisor if 0 in weights_of(model.config) else None
            datasets[-1].check_lengths(longest, share, weigh, data_args.max_bad)
    check_code_noise(model.config, args.code_noise)
    if model_args.compile_layers:
        compile_layers(model)
    trainer = UnifiedTrainer(
        model=prepare(model, args, Path(model_args.model) if is_adapter(model_args.model) else None),
        args=args,
        train_dataset=datasets[0],
        eval_dataset=datasets[1],
        data_collator=SFTCollator(processor, data_args.max_length, fraction, seed=args.seed, pack=data_args.pack),
        processing_class=processor,
    )
    assert datasets[0] is not None
    trainer.name_rows = datasets[0].name_rows
    if not trainer.is_deepspeed_enabled:
        check_masters(trainer.model)
    if trainer.accelerator.mixed_precision == "bf16" and not trainer.is_deepspeed_enabled:
        cast_frozen_weights(trainer.model, torch.bfloat16)
    return trainer


def measure_speed(model_args: ModelArguments, data_args: DataArguments, args: UnifiedTrainingArguments) -> None:
    """Train a few steps and write output_dir/speed.json only."""
    args.save_strategy, args.eval_strategy = SaveStrategy.NO, IntervalStrategy.NO
    args.max_steps, args.report_to = WARM_UP + args.speed_steps, []
    trainer = build_trainer(model_args, data_args, args)
    halves = {"bf16": torch.bfloat16, "fp16": torch.float16}
    dtype = halves.get(trainer.accelerator.mixed_precision, trainer.core.dtype)
    trainer.add_callback(
        ThroughputCallback(trainer.core, model_args.model, Path(args.output_dir), args.speed_steps, dtype)
    )
    with train_within_memory(trainer, data_args.max_length, args.tuning):
        trainer.train()
    shut_down(trainer.accelerator)


def fit_to_machine(
    hardware: HardwareArguments, model_args: ModelArguments, args: UnifiedTrainingArguments
) -> UnifiedTrainingArguments:
    """`args` with the device and precision chosen for the run; whether layers compile goes into `model_args`."""
    attention, compiled = model_args.attn_implementation, model_args.compile_layers
    choice, args = choose_for_trainer(hardware, args, newest_folder(args), attention, compiled, args.max_minutes)
    model_args.compile_layers = choice.compile_layers
    return args


def rows_of(trainer: UnifiedTrainer) -> str:
    """The digest of what is trained on."""
    data: Any = trainer.train_dataset
    return digest(data.rows)


def eval_rows_of(trainer: UnifiedTrainer) -> str:
    """The digest of what is evaluated on; empty for nothing."""
    data: Any = trainer.eval_dataset
    return "" if data is None else digest(data.rows)


def base_of(model: str, checkpoint: Path) -> str:
    """The fingerprint of what is trained, with an adapter's base, the `checkpoint` below it."""
    return fingerprint(*dict.fromkeys([Path(model), checkpoint]))


def finish(trainer: FiniteTrainer, record: RunRecord, newest: Path | None, start: str = "", share: float = 0) -> None:
    """Save the result, with a `share` of its `start`, and how it was made; ValueError where nothing was trained."""
    state, folder = trainer.state, Path(str(trainer.args.output_dir))
    check_steps(state.global_step, 0 if newest is None else -1)
    trainer.save_model()
    trainer.save_state()
    ended = state.global_step >= state.max_steps and not trainer.control.should_epoch_stop
    if trainer.is_world_process_zero():
        if share:
            mix_in(start, share, folder)
        record.write(folder, state.global_step if ended and not cut_off(folder) else None)


def fine_tune(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: UnifiedTrainingArguments,
    command: str = "",
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainerState:
    """Train and save to output_dir; with `args.resume` from its newest checkpoint. `command` goes on with it.

    Returns HF's state, whose `max_steps` are those that were planned; progress.json in output_dir says what was cut.
    """
    folder, newest = Path(str(args.output_dir)), newest_folder(args)
    check_folder(folder, args.resume, newest)
    check_start_share(model_args.model, args)
    if data_args.eval_files and not evaluates(args):
        raise ValueError(
            f"eval_files {', '.join(data_args.eval_files)} would have no effect: nothing is evaluated while "
            "eval_strategy is no; set it to steps or epoch, or leave it out"
        )
    trainer = build_trainer(model_args, data_args, args)
    checkpoint = newest_checkpoint(args, trainer.model)
    settings, base = (model_args, data_args, args), resolve_checkpoint(model_args.model, args)
    made_of = rows_of(trainer), base_of(model_args.model, base), recorded(trainer.accelerator)
    record = RunRecord.of(settings, *made_of, eval_rows_of(trainer))
    check_batches(trainer)
    changes, finished = begin(record, folder, newest, args.allow_changed)
    check_complete(args, checkpoint, [change["name"] for change in changes])
    if finished:
        shut_down(trainer.accelerator)
        path = folder / TRAINER_STATE  # on the first process's machine
        state = TrainerState.load_from_json(str(path)) if path.is_file() else trainer.state
        state.is_world_process_zero = trainer.is_world_process_zero()
        return state
    trainer.describe = Description(record, model_args.model, base, trainer.core.config.chat_fingerprint)
    trainer.renewed = [change["name"] for change in changes if change["name"] in OPTIMIZER]
    know_the_end(trainer, args.max_minutes, command)
    for callback in (HardwareRecord(), Recorder(record), *callbacks):
        trainer.add_callback(callback)
    with locked(folder, new=not args.resume):
        within = train_within_memory(trainer, data_args.max_length, args.tuning)
        with one_line_when_others_end(), within, Reached(args.report_to):
            trainer.train(resume_from_checkpoint=checkpoint)
        finish(trainer, record, newest, model_args.model, args.start_share)
    if trainer.is_world_process_zero():
        plot_history(trainer.state.log_history, OF_TRAINER, Path(args.output_dir))
    shut_down(trainer.accelerator)
    return trainer.state
