"""The engine, besides DDP, that a run is launched with: which it is, what of its configuration counts."""

import json
from collections.abc import Mapping
from typing import Any, Literal

from accelerate import Accelerator
from accelerate.utils import DistributedType, parse_flag_from_env
from accelerate.utils.deepspeed import DummyOptim
from transformers import SchedulerType, Trainer, TrainingArguments
from transformers.training_args import OptimizerNames

# of DeepSpeed's optimizers, what the run's arguments say, which HF holds against the configuration
OF_ARGUMENTS = ("lr", "betas", "eps", "weight_decay")
# of DeepSpeed's configuration, what says how and how fast a run is computed, and what the run's arguments say
FREE = {
    *"""
    zero_optimization zero_allow_untested_optimizer zero_force_ds_cpu_optimizer steps_per_print wall_clock_breakdown
    memory_breakdown dump_state tensorboard wandb csv_monitor comet comms_logger flops_profiler autotuning aio
    checkpoint activation_checkpointing train_batch_size train_micro_batch_size_per_gpu gradient_accumulation_steps
    gradient_clipping fp16 bf16 torch_autocast data_types communication_data_type
    """.split(),
}

# DeepSpeed's schedules, and what HF calls them; of their parameters "auto" is the run's own, and so is linear warm-up
SCHEDULES = {"WarmupLR": "constant_with_warmup", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}


def engine_of(args: TrainingArguments) -> Literal["DeepSpeed", "FSDP"] | None:
    """The engine that a run is launched with, by arguments or by `accelerate launch`; known before any model is.

    Raises ValueError where CPUs are asked for in a way that leaves DeepSpeed out, while its ZeRO-3 would still split
    weights as they load.
    """
    if args.deepspeed_plugin is not None:
        asked = "use_cpu true" if args.use_cpu else "ACCELERATE_USE_CPU in the environment"
        if args.use_cpu or parse_flag_from_env("ACCELERATE_USE_CPU"):
            raise ValueError(
                f"{asked} turns off the DeepSpeed that this run is launched with; take it away, and on CPUs set "
                "DS_ACCELERATOR=cpu and --ddp_backend gloo"
            )
        return "DeepSpeed"
    launched = parse_flag_from_env("ACCELERATE_USE_FSDP")
    return "FSDP" if launched or args.fsdp_plugin_args is not None else None


def recorded(accelerator: Accelerator) -> dict[str, Any]:
    """What a launch file chose, for a record: the engine, and of DeepSpeed's configuration what changes a run."""
    kind = accelerator.distributed_type
    if kind != DistributedType.DEEPSPEED:
        return {"engine": "FSDP" if kind == DistributedType.FSDP else "none or DDP", "deepspeed": {}}
    plugin = accelerator.state.deepspeed_plugin
    config = json.loads(json.dumps(plugin.deepspeed_config))
    for name in OF_ARGUMENTS:
        config.get("optimizer", {}).get("params", {}).pop(name, None)
    return {
        "engine": f"ZeRO-{plugin.zero_stage}",
        "deepspeed": {name: value for name, value in config.items() if name not in FREE},
    }


def check_deepspeed(accelerator: Accelerator, args: TrainingArguments) -> None:
    """Raise ValueError for a DeepSpeed configuration that would take no notice of the run's own settings.

    A scheduler that says "auto" gives way to the run's own, of the same name: see `check_schedule`.
    """
    if accelerator.distributed_type != DistributedType.DEEPSPEED:
        return
    config = accelerator.state.deepspeed_plugin.deepspeed_config
    if "scheduler" in config:
        check_schedule(config["scheduler"], args)
        del config["scheduler"]  # DeepSpeed's knows one rate for all weights, and no max_minutes
    own = args.optim in (OptimizerNames.ADAMW_TORCH, OptimizerNames.ADAMW_TORCH_FUSED) and not args.optim_args
    if "optimizer" in config and not own:
        given = f"optim_args {args.optim_args}" if args.optim_args else f"optim {OptimizerNames(args.optim).value}"
        raise ValueError(
            f"the DeepSpeed configuration has an optimizer, {config['optimizer'].get('type')}, and the run {given}; "
            "keep one"
        )


def check_schedule(scheduler: Mapping[str, Any], args: TrainingArguments) -> None:
    """Raise ValueError where DeepSpeed's `scheduler` is not the run's own: another one, or with numbers of its own.

    HF has filled in what is "auto" and known before the training: a warm-up from 0 to the run's rate.
    """
    kind, own = scheduler.get("type"), SchedulerType(args.lr_scheduler_type).value
    remedy = "remove it, and set lr_scheduler_type and warmup_steps"
    if SCHEDULES.get(str(kind)) != own:
        named = f", which is lr_scheduler_type {SCHEDULES[str(kind)]}," if kind in SCHEDULES else ""
        raise ValueError(
            f"the DeepSpeed configuration has a scheduler, {kind}{named} and the run lr_scheduler_type {own}; {remedy}"
        )
    known = {"warmup_min_lr": 0, "warmup_max_lr": args.learning_rate, "warmup_type": "linear"}
    for name, value in scheduler.get("params", {}).items():
        if value not in ("auto", known.get(name)):
            raise ValueError(
                f"the DeepSpeed configuration's scheduler has {name} {value}, where only auto counts; {remedy}"
            )


def decay_groups(trainer: Trainer) -> list[dict[str, Any]]:
    """The trained weights in two groups for an optimizer; biases and norms, in the second one, do not decay."""
    model: Any = trainer.model
    decayed = set(trainer.get_decay_parameter_names(model))
    trained = [(name in decayed, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for decays, p in trained if decays], "weight_decay": trainer.args.weight_decay},
        {"params": [p for decays, p in trained if not decays], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def optimizer_of_deepspeed(trainer: Trainer) -> DummyOptim | None:
    """The place of an optimizer that DeepSpeed makes as its configuration says, which takes `params` in groups."""
    optimizer: Any = trainer.optimizer
    return optimizer if isinstance(optimizer, DummyOptim) else None
