"""What a run was made of: settings, rows, base and launch, recorded in its checkpoints and compared when it goes on.

A resumed run has the trajectory it would have had, so what changes it is refused, or allowed by `--allow_changed` and
kept on record. What does not (logging, saving, longer `max_steps`) may change freely.
"""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState

from unified.files.atomic import write_text
from unified.files.digests import sampled_digest
from unified.files.jsonl import read_object
from unified.files.records import RUN, TRAINER_STATE
from unified.models.format_version import upgrade_record
from unified.models.messages import shorten
from unified.training.inherited import REFUSED
from unified.training.run_folder import check_group, step_of

# how long a run is: a resumed one may go further
LENGTH = ("max_steps", "num_train_epochs", "max_minutes")
# what leaves a trajectory as it is; precision has a record of its own (hardware_choice)
FREE = {
    *"""
    output_dir resume allow_changed model vq data_dir train_files eval_files speed_steps logging_strategy logging_steps
    logging_first_step logging_nan_inf_filter log_on_each_node log_level log_level_replica log_steps disable_tqdm
    report_to run_name project save_strategy save_steps save_total_limit save_on_each_node save_only_model
    eval_strategy eval_steps eval_delay eval_on_start eval_scenes ceiling_scenes grid_steps per_device_eval_batch_size
    prediction_loss_only include_num_input_tokens_seen skip_memory_metrics dataloader_num_workers num_workers cache_gb
    max_bad dataloader_persistent_workers
    dataloader_pin_memory dataloader_prefetch_factor dataloader_multiprocessing_context ddp_find_unused_parameters
    ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph ddp_backend ddp_timeout debug do_train do_eval use_cpu
    local_rank sample_prompts sample_temperature sample_top_k sample_guidance_scale kl_pairs bf16 fp16 tf32
    activation_checkpointing activation_checkpointing_kwargs gradient_checkpointing gradient_checkpointing_kwargs
    activation_offloading torch_empty_cache_steps fsdp fsdp_config deepspeed compile_layers
    load_best_model_at_end metric_for_best_model greater_is_better enable_jit_checkpoint attn_implementation
    full_determinism precompute_ref_log_probs precompute_ref_batch_size lpips_path
    """.split(),
    *LENGTH,
    *REFUSED,
}
# what each process of a run may have of its own: where things lie on its machine, how it reads them, what it shows.
# All else decides how many steps there are, or what processes do together in one
OF_A_PROCESS = {
    *"""
    output_dir model base vq data_dir train_files eval_files lpips_path deepspeed fsdp_config report_to run_name
    project disable_tqdm log_level log_level_replica log_on_each_node local_rank use_cpu tf32 debug skip_memory_metrics
    dataloader_num_workers num_workers cache_gb dataloader_persistent_workers dataloader_pin_memory
    dataloader_prefetch_factor dataloader_multiprocessing_context
    """.split()
}
# what a run that goes on can be given anew, if that is said
OPTIMIZER = ("learning_rate", "new_parts_learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon")
CHANGEABLE = {
    *OPTIMIZER,
    *"""
    rows base processes per_device_train_batch_size gradient_accumulation_steps batch_size max_grad_norm
    lr_scheduler_type lr_scheduler_kwargs warmup_steps final_learning_rate gan_learning_rate ema_decay caption_dropout
    last_scale_fraction code_noise text_loss_weight scale_loss_weights modality_stride lora_dropout seed data_seed
    accelerator_config
    max_length pack beta label_smoothing loss_type loss_weights num_scales l1_weight l2_weight vq_weight scale_dropout
    lpips_weight revive_after_steps revive_until tidy_share torn_share tokenizer_share train_sampling_strategy
    """.split(),
}
NAMED = ("model", "train_files", "eval_files", "sample_prompts")  # not compared, for people
Changes = list[dict[str, Any]]


@dataclass
class RunRecord:
    """What a run is made of, by name; `length` is how long it was to be, `changes` what was allowed to change.

    `named` is what it was told of files and prompts, which may be anywhere and is not compared; `steps` how far it is.
    `shared` is what its processes must have in common, and not kept.
    """

    made_of: dict[str, Any]
    length: dict[str, Any]
    changes: Changes = field(default_factory=list)
    named: dict[str, Any] = field(default_factory=dict)
    steps: int = 0
    shared: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, settings: Iterable[Any], rows: str, base: str, launch: Mapping[str, Any], eval_rows: str = ""
    ) -> "RunRecord":
        """Of dataclasses of settings, digests of the rows and of the base, and what is recorded of the launch."""
        known = {f.name: vars(one)[f.name] for one in settings for f in fields(one)}
        values: dict[str, Any] = json.loads(json.dumps(known, default=str))
        around = {"rows": rows, "base": base, **launch, "processes": PartialState().num_processes}
        compared = {name: value for name, value in values.items() if name not in FREE}
        length, named = ({name: values[name] for name in names if name in values} for names in (LENGTH, NAMED))
        shared = {name: value for name, value in values.items() if name not in OF_A_PROCESS}
        return cls(compared | around, length, named=named, shared=shared | around | {"eval rows": eval_rows})

    def kept(self) -> dict[str, Any]:
        """What is written of it."""
        return {name: value for name, value in vars(self).items() if name != "shared"}

    def agree(self) -> None:
        """Raise ValueError, on all ranks, where a process has other settings, rows or another base than the first."""
        first, *others = gather_object([self.shared])
        for rank, other in enumerate(others, start=1):
            for name, value in first.items():
                if other.get(name) != value:
                    raise ValueError(
                        f"process {rank} has {name} {shorten(other.get(name))} and process 0 {shorten(value)}; give "
                        "all of them the same settings, rows and base"
                    )

    def differs(self, before: Mapping[str, Any]) -> list[str]:
        """What is another than `before`; what an earlier version did not record is not compared."""
        return [name for name in self.made_of if name in before and before[name] != self.made_of[name]]

    def go_on(self, kept: "RunRecord", allowed: Sequence[str], checkpoint: Path) -> Changes:
        """Take up the checkpoint's record; returns what has changed, as allowed. ValueError for any other change."""
        before = upgrade_record(kept.made_of)
        changed = self.differs(before)
        for name in changed:
            if name not in allowed:
                may = f", allow it by --allow_changed {name}," if name in CHANGEABLE else ""
                raise ValueError(
                    f"{checkpoint} was trained with {name} {shorten(before[name])}, and this run has "
                    f"{shorten(self.made_of[name])}; give it as it was{may} or use another output_dir"
                )
        step = step_of(checkpoint)
        changes = [
            {"after_step": step, "name": name, "old": before[name], "new": self.made_of[name]} for name in changed
        ]
        self.changes = [*kept.changes, *changes]
        for change in changes:
            told = f"{change['name']} {shorten(change['old'])} -> {shorten(change['new'])} from step {step} on"
            if PartialState().is_main_process:
                sys.stderr.write(f"changed as allowed: {told}\n")
        return changes

    def write(self, folder: Path, finished: int | None = None) -> None:
        """Leave it in a folder, with the step after which the run has `finished`."""
        write_text(folder / RUN, json.dumps({**self.kept(), "finished": finished}, indent=1) + "\n")


def check_same_checkpoint(checkpoint: Path | None) -> None:
    """Raise ValueError, on all ranks, where one goes on from another checkpoint than the first, or from none."""
    names = gather_object([None if checkpoint is None else checkpoint.name])
    for rank, name in enumerate(names):
        if name != names[0]:
            raise ValueError(
                f"process {rank} goes on from {name or 'no checkpoint'} and process 0 from "
                f"{names[0] or 'no checkpoint'}; give all machines one shared folder, or copy the newest to each"
            )


def check_allowed(allowed: Sequence[str]) -> None:
    """Raise ValueError for names in --allow_changed that a run which goes on cannot be given anew."""
    for name in allowed:
        if name not in CHANGEABLE:
            raise ValueError(f"allow_changed {name}: valid are {', '.join(sorted(CHANGEABLE))}")


def kept_record(checkpoint: Path) -> RunRecord | None:
    """The record of a checkpoint; None for one from before there were any, of which nothing can be compared."""
    if (checkpoint / TRAINER_STATE).is_file():
        state = read_object(checkpoint / TRAINER_STATE).get("stateful_callbacks", {}).get(Recorder.__name__)
        kept = None if state is None else state["attributes"]["record"]
    else:
        kept = read_object(checkpoint / RUN) if (checkpoint / RUN).is_file() else None
    return None if kept is None else RunRecord(kept["made_of"], kept["length"], kept["changes"])


def finished_after(folder: Path, record: RunRecord) -> int | None:
    """The step after which the run in `folder` has finished, if it is `record`'s and no longer is asked for."""
    path = folder / RUN
    if not path.is_file():
        return None
    kept = read_object(path)
    same = kept["length"] == record.length and not record.differs(upgrade_record(kept["made_of"]))
    return kept["finished"] if same else None


def begin(record: RunRecord, folder: Path, checkpoint: Path | None, allowed: Sequence[str]) -> tuple[Changes, bool]:
    """Compare a run on all ranks, and with its checkpoint; returns what has changed, and whether it has finished."""
    check_allowed(allowed)
    check_group(folder)
    record.agree()
    check_same_checkpoint(checkpoint)
    if checkpoint is None:
        return [], False
    finished = gather_object([finished_after(folder, record)])[0]  # the first process's file; ranks must not part
    kept, changes = kept_record(checkpoint), []
    if kept is not None:
        changes = record.go_on(kept, allowed, checkpoint)
    elif PartialState().is_main_process:
        sys.stderr.write(f"{checkpoint} has no {RUN}: what it was trained with is not compared\n")
    if finished is not None and PartialState().is_main_process:
        sys.stderr.write(f"{folder}: this run has finished after {finished} steps; nothing is left to train\n")
    return changes, finished is not None


class Recorder(TrainerCallback, ExportableState):
    """Keeps a run's record in every checkpoint of HF's trainer, and in output_dir."""

    def __init__(self, record: RunRecord) -> None:
        self.record = record

    def state(self) -> dict[str, Any]:
        """Kept in a checkpoint's trainer_state.json."""
        return {"args": {}, "attributes": {"record": self.record.kept()}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """A place for it in the state of a checkpoint that had none; and the folder is this run's."""
        kept: Any = state.stateful_callbacks  # HF makes its list a dict
        kept[type(self).__name__] = self.state()
        self.record.steps = state.global_step
        if state.is_world_process_zero:
            self.record.write(Path(str(args.output_dir)))

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """One more step."""
        self.record.steps = state.global_step


def digest(rows: Any) -> str:
    """A data set's rows (a sequence) in words that can be compared."""
    return sampled_digest(len(rows), lambda i: json.dumps(rows[i], sort_keys=True, default=str).encode(), "rows")
