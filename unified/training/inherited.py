"""Keys that recipes inherit from HF's TrainingArguments and TRL's DPOConfig: each is honoured, or refused by name.

A test goes over all of them, so that a new version's new key needs a decision here.
"""

from collections.abc import Collection
from dataclasses import dataclass, fields
from inspect import signature
from typing import Any

from torch.optim.lr_scheduler import ReduceLROnPlateau
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, GreedyLR

from unified.arguments.fields import SHARE, Bounds, above, at_least, check_fields
from unified.arguments.needs import Needs, check_needs

STEPS = Bounds(above=0)  # below 1 they are a share of all steps
BOUNDS = {
    "per_device_train_batch_size": at_least(1),
    "per_device_eval_batch_size": at_least(1),
    "num_train_epochs": above(0),
    "max_steps": at_least(1, -1),
    "learning_rate": at_least(0),
    "warmup_steps": at_least(0),
    "weight_decay": at_least(0),
    "adam_beta1": Bounds(at_least=0, below=1),
    "adam_beta2": Bounds(at_least=0, below=1),
    "adam_epsilon": above(0),
    "max_grad_norm": at_least(0),
    "gradient_accumulation_steps": at_least(1),
    "torch_empty_cache_steps": at_least(1),
    "logging_steps": STEPS,
    "eval_steps": STEPS,
    "save_steps": STEPS,
    "eval_delay": at_least(0),
    "save_total_limit": at_least(1),
    "seed": Bounds(at_least=0, below=2**32),
    "data_seed": Bounds(at_least=0, below=2**32),
    "dataloader_num_workers": at_least(0),
    "dataloader_prefetch_factor": at_least(1),
    "ddp_timeout": at_least(1),
    "ddp_bucket_cap_mb": at_least(1),
    "precompute_ref_batch_size": at_least(1),
    "beta": above(0),
    "label_smoothing": Bounds(at_least=0, below=0.5),
    "loss_weights": at_least(0),
    "ld_alpha": SHARE,
    "discopop_tau": above(0),
    "ref_model_mixup_alpha": SHARE,
    "ref_model_sync_steps": at_least(1),
}


@dataclass(frozen=True)
class Refused:
    """A key that only these values may be given for, and why and what instead."""

    kept: tuple[Any, ...]
    why: str


HUB = "recipes talk to no hub; train, then `unified publish` the result"
METRICS = "of a compute_metrics, which recipes have none of; leave it out"
COLLATOR = "pairs are encoded by our collator, which this would not reach; leave it out"
GIVEN = "the recipe gives TRL a model that is loaded; leave it out"
REFUSED = {
    "resume_from_checkpoint": Refused((None,), "use --resume True, which goes on from the newest in output_dir"),
    "do_predict": Refused((False,), "recipes train; score the result with the scripts in eval"),
    "ignore_data_skip": Refused((False,), "a resumed run would train on rows it has had; leave it out"),
    "restore_callback_states_from_checkpoint": Refused((False,), "recipes restore what they need; leave it out"),
    "logging_nan_inf_filter": Refused((False,), "it hides losses that are not finite, at which training stops"),
    "auto_find_batch_size": Refused((False,), "the batch would change unasked; set per_device_train_batch_size"),
    "label_smoothing_factor": Refused((0.0,), "the loss of text and codes has none; leave it out"),
    "neftune_noise_alpha": Refused((None,), "it would reach images as well as text; see code_noise"),
    "optim_target_modules": Refused((None,), "optimizers of chosen layers are not supported; use another optim"),
    "torch_compile": Refused((False,), "sft.py compiles layers by compile_layers True"),
    "torch_compile_backend": Refused((None,), "sft.py compiles layers by compile_layers True"),
    "torch_compile_mode": Refused((None,), "sft.py compiles layers by compile_layers True"),
    "use_liger_kernel": Refused((False,), "it knows no model of this package; leave it out"),
    "liger_kernel_config": Refused((None,), "it knows no model of this package; leave it out"),
    "use_cache": Refused((False,), "training keeps no cache; leave it out"),
    "bf16_full_eval": Refused((False,), "HF ignores it while training; bf16 evaluates in bf16, too"),
    "fp16_full_eval": Refused((False,), "HF ignores it while training; fp16 evaluates in fp16, too"),
    "eval_do_concat_batches": Refused((True,), METRICS),
    "eval_use_gather_object": Refused((False,), METRICS),
    "eval_accumulation_steps": Refused((None,), METRICS),
    "include_for_metrics": Refused(([],), METRICS),
    "batch_eval_metrics": Refused((False,), METRICS),
    "push_to_hub": Refused((False,), HUB),
    "hub_token": Refused((None,), HUB),
    "hub_private_repo": Refused((None,), HUB),
    "hub_model_id": Refused((None,), HUB),
    "hub_strategy": Refused(("every_save",), HUB),
    "hub_always_push": Refused((False,), HUB),
    "hub_revision": Refused((None,), HUB),
    "trackio_space_id": Refused((None,), HUB),
    "trackio_bucket_id": Refused((None,), HUB),
    "trackio_static_space_id": Refused((None,), HUB),
    "parallelism_config": Refused((None,), "tensor and context parallelism are not supported; use ZeRO"),
    "dataloader_in_order": Refused((True,), "a resumed run would train on other rows; leave it out"),
    "remove_unused_columns": Refused((False,), "the collator needs every column; set it to False"),
    "label_names": Refused((None, ["labels"]), "labels are called `labels` here; leave it out"),
    "length_column_name": Refused(("length",), "lengths are counted, not read from a column; leave it out"),
    "model_init_kwargs": Refused((None,), GIVEN),
    "trust_remote_code": Refused((False,), GIVEN),
    "router_aux_loss_coef": Refused((None,), "DPO adds no balance loss of experts; leave it out"),
    "dataset_num_proc": Refused((None,), COLLATOR),
    "truncation_mode": Refused(("keep_start",), "a pair that is too long is an error, not cut; leave it out"),
    "padding_free": Refused((False,), COLLATOR),
    "pad_to_multiple_of": Refused(("auto", None), COLLATOR),
    "pad_token": Refused((None,), COLLATOR),
}
# dataloader_persistent_workers: by TRL's trainer; ours refuses it (trainer.check_launch)
HONOURED = """
    output_dir per_device_train_batch_size num_train_epochs max_steps learning_rate lr_scheduler_type
    lr_scheduler_kwargs warmup_steps optim optim_args weight_decay adam_beta1 adam_beta2 adam_epsilon
    gradient_accumulation_steps average_tokens_across_devices max_grad_norm bf16 fp16 tf32 activation_checkpointing
    activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs torch_empty_cache_steps
    logging_strategy logging_steps logging_first_step log_on_each_node include_num_input_tokens_seen log_level
    log_level_replica disable_tqdm report_to run_name project eval_strategy eval_steps eval_delay
    per_device_eval_batch_size prediction_loss_only eval_on_start save_only_model save_strategy save_steps
    save_on_each_node save_total_limit enable_jit_checkpoint load_best_model_at_end metric_for_best_model
    greater_is_better full_determinism seed data_seed use_cpu accelerator_config dataloader_drop_last
    dataloader_num_workers dataloader_pin_memory dataloader_prefetch_factor dataloader_multiprocessing_context
    dataloader_persistent_workers
    train_sampling_strategy ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph
    ddp_backend ddp_timeout fsdp fsdp_config deepspeed debug skip_memory_metrics do_train do_eval local_rank
    disable_dropout max_length precompute_ref_log_probs precompute_ref_batch_size loss_type loss_weights ld_alpha
    f_divergence_type f_alpha_divergence_coef label_smoothing beta use_weighting discopop_tau activation_offloading
    sync_ref_model ref_model_mixup_alpha ref_model_sync_steps
""".split()


# schedules of a metric, of which HF sets one by itself, and what takes their kwargs
BY_METRIC: dict[str, Any] = {"reduce_lr_on_plateau": ReduceLROnPlateau, "greedy": GreedyLR}
WITHOUT_WARM_UP = ("constant", *BY_METRIC)
WITHOUT_BETAS = ("sgd", "adagrad", "rmsprop", "adafactor")
SMOOTHED = ("robust", "exo_pair", "aot", "aot_unpaired")


def losses(args: Any) -> list[str]:
    """DPO's loss_type, which may be one or several."""
    return [args.loss_type] if isinstance(args.loss_type, str) else args.loss_type


def evaluates(args: Any) -> bool:
    """Whether a run of HF's Trainer evaluates."""
    return args.eval_strategy != "no" or args.eval_on_start


NEEDS = (
    Needs("save_steps", lambda args: args.save_strategy == "steps", "set save_strategy to steps", "save_strategy"),
    Needs(
        "save_total_limit save_only_model load_best_model_at_end",
        lambda args: args.save_strategy != "no",
        "nothing is saved in between while save_strategy is no; set it to steps or epoch",
        "save_strategy",
    ),
    Needs(
        "logging_steps",  # which eval_steps are where nothing else is said
        lambda args: "steps" in (args.logging_strategy, args.eval_strategy),
        "set logging_strategy to steps",
        "logging_strategy",
    ),
    Needs("num_train_epochs", lambda args: args.max_steps < 0, "max_steps counts; set that to -1", "max_steps"),
    Needs(
        "kl_pairs",
        lambda args: evaluates(args) or not args.kl_pairs,
        "nothing is evaluated while eval_strategy is no; set it to steps or epoch",
        "eval_strategy eval_on_start",
    ),
    Needs(
        "learning_rate weight_decay",
        lambda args: args.tuning != "align",
        "with tuning align the new parts learn alone, at their own rate, without decay; set new_parts_learning_rate",
        "tuning",
    ),
    Needs("eval_steps", lambda args: args.eval_strategy == "steps", "set eval_strategy to steps", "eval_strategy"),
    Needs(
        "eval_delay", lambda args: args.eval_strategy != "no", "set eval_strategy to steps or epoch", "eval_strategy"
    ),
    Needs(
        "sample_prompts held_out_share eval_files",
        evaluates,
        "nothing is evaluated while eval_strategy is no; set it to steps or epoch",
        "eval_strategy eval_on_start",
    ),
    Needs(
        "sample_temperature sample_top_k sample_guidance_scale",
        lambda args: args.sample_prompts,
        "no image is generated in training; give sample_prompts",
        "sample_prompts",
    ),
    Needs(
        "activation_checkpointing_kwargs gradient_checkpointing_kwargs",
        lambda args: args.gradient_checkpointing if (on := args.activation_checkpointing) is None else on,
        "set activation_checkpointing to True",
        "activation_checkpointing gradient_checkpointing",
    ),
    Needs(
        "greater_is_better",
        lambda args: args.metric_for_best_model or args.load_best_model_at_end or args.lr_scheduler_type in BY_METRIC,
        "give metric_for_best_model",
        "metric_for_best_model load_best_model_at_end lr_scheduler_type",
    ),
    Needs(
        "warmup_steps",
        lambda args: args.lr_scheduler_type not in WITHOUT_WARM_UP,
        "this lr_scheduler_type has no warm-up; set it to constant_with_warmup",
        "lr_scheduler_type",
    ),
    Needs(
        "adam_beta1 adam_beta2 adam_epsilon",
        lambda args: args.optim not in WITHOUT_BETAS,
        "this optim takes none; use an AdamW",
        "optim",
    ),
    Needs(
        "lora_positions lora_rank lora_alpha lora_target_modules lora_dropout",
        lambda args: args.tuning == "lora",
        "only tuning lora has such; set tuning to lora",
        "tuning",
    ),
    Needs(
        "train_text_rows",
        lambda args: args.tuning == "full",
        "only tuning full trains text rows; set tuning to full",
        "tuning",
    ),
    Needs(
        "dataloader_prefetch_factor dataloader_multiprocessing_context",
        lambda args: args.dataloader_num_workers,
        "set dataloader_num_workers above 0",
        "dataloader_num_workers",
    ),
    Needs(
        "precompute_ref_batch_size",
        lambda args: args.precompute_ref_log_probs,
        "set precompute_ref_log_probs to True",
        "precompute_ref_log_probs",
    ),
    Needs(
        "ref_model_mixup_alpha ref_model_sync_steps",
        lambda args: args.sync_ref_model,
        "set sync_ref_model to True",
        "sync_ref_model",
    ),
    Needs(
        "f_alpha_divergence_coef",
        lambda args: args.f_divergence_type == "alpha_divergence",
        "set f_divergence_type to alpha_divergence",
        "f_divergence_type",
    ),
    Needs("discopop_tau", lambda args: "discopop" in losses(args), "it is of loss_type discopop", "loss_type"),
    Needs(
        "label_smoothing",
        lambda args: {*losses(args)} & {*SMOOTHED},
        f"it is of loss_type {', '.join(SMOOTHED)}",
        "loss_type",
    ),
)


def check_scheduler(args: Any) -> None:
    """Raise ValueError for lr_scheduler_kwargs that the schedule does not take. Called behind HF's `__post_init__`."""
    kind = args.lr_scheduler_type.value
    schedule: Any = BY_METRIC.get(kind, TYPE_TO_SCHEDULER_FUNCTION[kind])
    known = signature(schedule).parameters.keys() - {"optimizer", "num_warmup_steps", "num_training_steps"}
    for name in args.lr_scheduler_kwargs or {}:
        if name not in known:
            raise ValueError(
                f"lr_scheduler_kwargs {name}: lr_scheduler_type {kind} has no such; it takes "
                + ", ".join(sorted(known))
            )


def check_metric(args: Any, names: Collection[str]) -> None:
    """Raise ValueError where evaluation does not give `metric_for_best_model`, which HF sets where it needs one.

    `names` are those that it gives, without HF's `eval_`, which a setting may have or not.
    """
    name = (args.metric_for_best_model or "").removeprefix("eval_")
    if name and evaluates(args) and name not in names:
        raise ValueError(f"metric_for_best_model {name} is not evaluated; give one of {', '.join(names) or 'none'}")


def check_inherited(args: Any) -> None:
    """Raise ValueError, by name, for a number out of bounds and for a key that could only be ignored.

    Called before HF's own `__post_init__`, which turns some values into others.
    """
    check_fields(args, BOUNDS)
    for known in fields(args):
        refused, value = REFUSED.get(known.name), vars(args)[known.name]
        if refused is not None and value not in refused.kept:
            raise ValueError(f"{known.name} {value}: {refused.why}")
    check_needs(args, NEEDS)
    if args.do_eval and args.eval_strategy == "no":
        raise ValueError("do_eval True without eval_strategy: set eval_strategy to steps or epoch")
