"""DPO of a unified checkpoint on preference pairs of images and answers, by TRL's own `DPOTrainer`.

One process:    accelerate launch recipes/dpo.py --config recipes/configs/smollm2_scenes/3_dpo.yaml --train_files PAIRS
Two CPU ranks:  DS_ACCELERATOR=cpu accelerate launch --config_file recipes/accelerate_configs/cpu_zero3.yaml \\
                    recipes/dpo.py --config recipes/configs/tiny_dpo.yaml --ddp_backend gloo \\
                    --model CHECKPOINT --train_files PAIRS --output_dir out/tiny_dpo
8 GPUs, ZeRO-2: accelerate launch --config_file recipes/accelerate_configs/zero2.yaml \\
                    recipes/dpo.py --config recipes/configs/qwen2_7b_var256/3_dpo.yaml --tuning lora
8 GPUs, ZeRO-3: accelerate launch --config_file recipes/accelerate_configs/zero3.yaml \\
                    recipes/dpo.py --config recipes/configs/qwen2_7b_var256/3_dpo.yaml

Pairs come from data_prep/build_preferences.py, and from JSONL or parquet in TRL's preference formats; pairs of images,
of text, of both, and about images may be mixed in one batch. Bad ones are refused by file and row before the first
step. Every key of TRL's `DPOConfig` can be set: `beta`; `loss_type: [sigmoid]`, `[ipo]`, or with an SFT term on the
chosen answer `[sigmoid, sft]` and `loss_weights: [1.0, 8.0]`. The reference is the model itself: a new adapter of
`tuning: lora` is turned off, `full` loads a second model, or none with `precompute_ref_log_probs: true`. Where `model`
is an adapter, of sft.py or of an earlier round, `tuning: lora` trains it on, all of it, against a copy of itself: so
is one of image positions aligned, and text stays the base's. `--resume True` goes on from the newest checkpoint.

Evaluation reports every modality separately: `eval_image_loss`, `eval_image_rewards/margins`,
`..._rewards/accuracies`, and `eval_image_kl`: KL(policy || reference) in nats per token along the chosen answers; so
for text, understanding, mixed. In training's own lines TRL averages over the whole batch. Pictures of sample_prompts
go to output_dir/samples. Weights of single scales in the log-prob are not offered: TRL sums log-probs of tokens that
count or do not. What it allows is `num_scales: 2`: only the codes of the two coarsest scales count.
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from datasets import Dataset, load_from_disk
from peft import PeftModel
from peft.tuners.trainable_tokens import TrainableTokensLayer
from peft.utils.integrations import gather_params_ctx
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments, set_seed
from transformers.integrations import is_deepspeed_zero3_enabled
from trl import DPOTrainer
from trl.trainer.utils import use_adapter

from unified import UnifiedConfig, UnifiedForCausalLM, UnifiedProcessor
from unified.arguments.parser import parse, run_main
from unified.checkpoints.adapters import is_adapter, trained_chats
from unified.checkpoints.loading import load_processor
from unified.data.chat_dataset import list_data_files, name_rows
from unified.data.preferences import (
    PAIR_FEATURES,
    PairCollator,
    by_modality,
    check_lengths,
    for_trl,
    load_pairs,
    split_held_out,
)
from unified.data.shard_metadata import adopt_fit
from unified.hardware.arguments import HardwareArguments
from unified.models.attention import prefer_grouped
from unified.models.chat_fingerprint import adopt_chats
from unified.reports.endings import last_preferences, say_end, uses
from unified.training.arguments import DpoArguments
from unified.training.description import Description
from unified.training.engines import check_deepspeed, decay_groups, optimizer_of_deepspeed, recorded
from unified.training.fine_tuning import base_of, finish
from unified.training.finite import FiniteTrainer, check_batches
from unified.training.hardware_choice import HardwareRecord, choose_for_trainer
from unified.training.inherited import check_metric, evaluates
from unified.training.loss_plots import OF_PREFERENCES, plot_history
from unified.training.memory import train_within_memory
from unified.training.other_ranks import one_line_when_others_end
from unified.training.progress_bar import show_figures
from unified.training.run_folder import check_folder, locked
from unified.training.run_record import OPTIMIZER, Recorder, RunRecord, begin, digest
from unified.training.sharding import check_fsdp
from unified.training.shutdown import shut_down
from unified.training.trackers import Reached, check_trackers
from unified.training.trainer import check_complete, newest_checkpoint, newest_folder, write_samples
from unified.training.tuning import check_masters, continue_lora, lora_config, prepare_full, resolve_checkpoint

REWARDS = ("rewards/margins", "rewards/accuracies", "rewards/chosen", "rewards/rejected")


class FiniteDpoTrainer(FiniteTrainer, DPOTrainer):
    """TRL's, that stops at a loss or gradient norm that is not finite, and tells nobody that it runs."""

    def _send_telemetry(self) -> None:
        """TRL asks a host on the internet here, unless HF_HUB_DISABLE_TELEMETRY says no; here it must say yes: 0."""
        if os.environ.get("HF_HUB_DISABLE_TELEMETRY") == "0":
            super()._send_telemetry()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """HF's; an optimizer of DeepSpeed's configuration gets the same groups."""
        if (made_later := optimizer_of_deepspeed(self)) is not None:
            made_later.params = decay_groups(self)
        return super().create_optimizer(model)


class Report(TrainerCallback):
    """After every evaluation of a modality: its rewards by its name, its KL to the reference; then pictures, once."""

    def __init__(self, eval_pairs: dict[str, Dataset], collator: PairCollator, processor: UnifiedProcessor) -> None:
        self.eval_pairs, self.collator, self.processor = eval_pairs, collator, processor
        self.trainer: DPOTrainer | None = None  # set once it exists

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        metrics = kwargs["metrics"]
        name = next(name for name in self.eval_pairs if f"eval_{name}_loss" in metrics)
        logs = {f"eval_{name}_{key}": metrics[f"eval_{key}"] for key in REWARDS}
        if args.kl_pairs:
            logs[f"eval_{name}_kl"] = self.mean_kl(self.eval_pairs[name], args.kl_pairs)
        self.trainer.log(logs)
        if name == list(self.eval_pairs)[-1] and args.sample_prompts:
            core = self.trainer.accelerator.unwrap_model(self.trainer.model)
            core = core.get_base_model() if isinstance(core, PeftModel) else core
            write_samples(self.trainer, core, self.processor)

    @torch.no_grad()
    def mean_kl(self, pairs: Dataset, count: int) -> float:
        """Mean KL(policy || reference) over the tokens of the first chosen answers; every rank computes all of it."""
        values = []
        for index in range(min(count, len(pairs))):
            batch = self.collator([pairs[index]])
            mask = batch.pop("completion_mask")[0].to(self.trainer.accelerator.device)
            inputs = {key: value[: len(value) // 2].to(mask.device) for key, value in batch.items()}  # the chosen half
            inputs["logits_to_keep"] = mask[1:].nonzero().squeeze(1)
            policy, reference = self.log_probs(inputs, False), self.log_probs(inputs, True)
            values.append((policy.exp() * (policy - reference)).sum(dim=-1))
        return float(torch.cat(values).mean())

    def log_probs(self, inputs: dict[str, Tensor], of_reference: bool) -> Tensor:
        """Log-probs (n, V) of policy or reference at the positions `logits_to_keep`."""
        trainer, adapter = self.trainer, nullcontext()
        model = trainer.model
        if of_reference and isinstance(model, PeftModel):
            adapter = reference_adapter(model)
        elif of_reference:
            model = trainer.ref_model
        with adapter, trainer.accelerator.autocast():
            return model(**inputs, use_cache=False).logits[0].float().log_softmax(dim=-1)


def reference_adapter(model: PeftModel) -> AbstractContextManager[None]:
    """The reference inside: TRL's copy of an adapter that goes on, or none where the adapter is new."""
    return use_adapter(model, "ref" if "ref" in model.peft_config else None)


class SaveProcessor(TrainerCallback):
    """Saves the processor beside every checkpoint, to which TRL leaves it out of some."""

    def __init__(self, processor: UnifiedProcessor) -> None:
        self.processor = processor

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object) -> None:
        if state.is_world_process_zero:
            self.processor.save_pretrained(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def check(args: DpoArguments) -> Path:
    """The checkpoint that is trained or whose adapter is; ValueError for settings that cannot be honoured."""
    check_trackers(args.report_to)
    checkpoint = resolve_checkpoint(args.model, args)
    if is_adapter(args.model) and is_deepspeed_zero3_enabled():
        raise ValueError(f"{args.model} is an adapter, which TRL cannot train on under ZeRO-3; launch with zero2.yaml")
    if not args.train_files:
        raise ValueError("train_files is empty; name pairs made by data_prep/build_preferences.py")
    if args.eval_files and args.held_out_share:
        raise ValueError(f"held_out_share {args.held_out_share} and eval_files are both given; keep one")
    if args.tuning == "full" and args.precompute_ref_log_probs and args.kl_pairs and evaluates(args):
        raise ValueError(
            f"kl_pairs {args.kl_pairs} needs the reference, which full tuning with precompute_ref_log_probs does not "
            "keep; set kl_pairs 0"
        )
    context = UnifiedConfig.from_pretrained(checkpoint).text_config.max_position_embeddings
    if args.max_length > context:
        raise ValueError(f"max_length {args.max_length} is beyond the backbone's context of {context}; lower it")
    return checkpoint


def build_trainer(
    args: DpoArguments, checkpoint: Path, data: dict[str, Any], report: Report, processor: UnifiedProcessor
) -> DPOTrainer:
    """TRL's trainer for what `args.tuning` says: of all weights, of a new adapter, of the one that `args.model` is."""

    def load() -> UnifiedForCausalLM:
        model = UnifiedForCausalLM.from_pretrained(checkpoint, dtype=args.dtype)
        prefer_grouped(model, args.device)
        return model

    args.router_aux_loss_coef = 0.0  # TRL's balance loss asks for names that not all mixtures of experts have
    model: Any = load()
    adopt_chats(processor, model.config, trained_chats(Path(args.model), model.config), args.model)
    given: dict[str, Any] = {}
    if is_adapter(args.model):
        model = continue_lora(model, args, Path(args.model))
        put_rows_into_base(model)
    elif args.tuning == "lora":
        given["peft_config"] = lora_config(model, args)  # of the backbone alone
    else:
        model = prepare_full(model, args.train_text_rows)
        given["ref_model"] = None if args.precompute_ref_log_probs else load()
        if args.sync_ref_model and given["ref_model"] is not None:  # TRL copies parameters one by one, in their order
            prepare_full(given["ref_model"], args.train_text_rows)
    trainer = FiniteDpoTrainer(model=model, args=args, **data, **given, callbacks=[report, SaveProcessor(processor)])
    trainer.add_callback(HardwareRecord())
    show_figures(trainer)
    trainer.name_rows = lambda rows: name_rows(args.train_files, rows, "pairs")
    core = trainer.model.get_base_model() if isinstance(trainer.model, PeftModel) else trainer.model
    check_fsdp(trainer.accelerator, core, reads_matrix=True)
    check_deepspeed(trainer.accelerator, args)
    if not trainer.is_deepspeed_enabled:
        check_masters(trainer.model)
    report.trainer = trainer
    return trainer


@torch.no_grad()
def put_rows_into_base(adapted: PeftModel) -> None:
    """Write an adapter's trainable token rows into its base, where they change nothing: the adapter replaces them.

    TRL makes its reference as a new adapter of that base and copies what has `.default.` inside its name, which rows
    have not.
    """
    for layer in adapted.modules():
        if isinstance(layer, TrainableTokensLayer) and layer.tied_adapter is None:
            weight = layer.get_base_layer().weight
            rows = torch.as_tensor(layer.token_indices["default"], device=weight.device)
            with gather_params_ctx(weight):
                weight.index_copy_(0, rows, layer.trainable_tokens_delta["default"].to(weight))


def load_data(args: DpoArguments, checkpoint: Path, collator: PairCollator) -> tuple[Dataset, dict[str, Dataset]]:
    """Checked pairs for training, and for evaluation by modality."""
    config = UnifiedConfig.from_pretrained(checkpoint)
    files, faults = args.train_files, dict[int, str]()
    train, held_out = split_held_out(load_pairs(files, config, faults), args.held_out_share)
    train = check_lengths(
        train, collator, lambda rows: name_rows(args.train_files, rows, "pairs"), args.max_bad, faults
    )
    faults = {}
    if args.eval_files:
        files, held_out = args.eval_files, load_pairs(args.eval_files, config, faults)
    if held_out is not None:
        held_out = check_lengths(
            held_out, collator, lambda rows: name_rows(files, rows, "pairs"), args.max_bad, faults
        )
    return train, by_modality(held_out) if held_out is not None else {}


def shaped(pairs: Dataset, name: str, args: DpoArguments) -> Dataset:
    """Pairs as TRL's trainer takes them; for precomputed log-probs on disk, where all ranks find the same cache."""
    rows, folder = for_trl(pairs, args.precompute_ref_log_probs), Path(args.output_dir) / "pairs" / name
    if not args.precompute_ref_log_probs:
        return rows
    state = PartialState()
    if state.is_main_process:
        shutil.rmtree(folder, ignore_errors=True)
        rows.save_to_disk(folder)
    state.wait_for_everyone()
    return load_from_disk(folder)


def main() -> None:
    hardware, args = parse((HardwareArguments, DpoArguments))
    folder, newest = Path(args.output_dir), newest_folder(args)
    _, args = choose_for_trainer(hardware, args, newest)
    check_folder(folder, args.resume, newest)
    set_seed(args.seed)
    checkpoint = check(args)
    processor = load_processor(args.model, checkpoint)
    train_files, eval_files = (
        [file for path in paths for file in list_data_files(path, "pairs")]
        for paths in (args.train_files, args.eval_files or [])
    )
    adopt_fit(processor, train_files, eval_files)
    collator = PairCollator(processor, args.max_length, args.num_scales)
    train, held_out = load_data(args, checkpoint, collator)
    data = {
        "train_dataset": shaped(train, "train", args),
        "eval_dataset": {name: shaped(pairs, name, args) for name, pairs in held_out.items()} or None,
        "data_collator": collator,
        # TRL has text to tokenize when it precomputes: see `for_trl`
        "processing_class": processor.tokenizer if args.precompute_ref_log_probs else processor,
    }
    check_metric(args, [*(f"{name}_loss" for name in held_out), *REWARDS])
    trainer = build_trainer(args, checkpoint, data, Report(held_out, collator, processor), processor)
    resumed = newest_checkpoint(args, trainer.model)
    rows = digest(train.select_columns(list(PAIR_FEATURES)))
    evaluated = ", ".join(
        f"{name} {digest(pairs.select_columns(list(PAIR_FEATURES)))}" for name, pairs in held_out.items()
    )
    made_of = rows, base_of(args.model, checkpoint), recorded(trainer.accelerator)
    record = RunRecord.of([args], *made_of, evaluated)
    check_batches(trainer)
    changes, finished = begin(record, folder, newest, args.allow_changed)
    check_complete(args, resumed, [change["name"] for change in changes])
    if not finished:
        trainer.renewed = [change["name"] for change in changes if change["name"] in OPTIMIZER]
        trainer.add_callback(Recorder(record))
        trainer.describe = Description(record, args.model, checkpoint, trainer.model.config.chat_fingerprint)
        with locked(folder, new=not args.resume):
            train_and_save(trainer, resumed, record, newest, processor)
    shut_down(trainer.accelerator)
    if trainer.state.is_world_process_zero and not finished:
        figures = last_preferences(trainer.state.log_history)
        say_end(args.output_dir, figures, *uses(args.output_dir, args.sample_prompts))


def train_and_save(
    trainer: FiniteDpoTrainer, resumed: str | None, record: RunRecord, newest: Path | None, processor: UnifiedProcessor
) -> None:
    """Train, from a checkpoint or from the beginning, and leave the result."""
    args = trainer.args
    within = train_within_memory(trainer, args.max_length, args.tuning)
    with one_line_when_others_end(), within, Reached(args.report_to):
        trainer.train(resume_from_checkpoint=resumed)
    finish(trainer, record, newest)
    if trainer.is_world_process_zero():
        processor.save_pretrained(args.output_dir)
        shutil.rmtree(Path(args.output_dir) / "ref", ignore_errors=True)  # TRL's copy of the adapter it started from
        plot_history(trainer.state.log_history, OF_PREFERENCES, Path(args.output_dir))


if __name__ == "__main__":
    run_main(main)
