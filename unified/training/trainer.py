"""HF's `Trainer` with the loss of every modality and scale in the log, and sample images at every evaluation."""

import ctypes
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, OPTIMIZER_NAME_BIN, SCHEDULER_NAME
from transformers.trainer_utils import EvalLoopOutput
from trl.models import unwrap_model_for_generation

from unified.checkpoints.adapters import adapter_positions, is_adapter
from unified.files.images import write_image
from unified.files.records import TRAINER_STATE
from unified.files.weights import check_weights
from unified.inference.text_to_image import contact_sheet, draw
from unified.models.frozen_tokenizer import check_frozen
from unified.models.modeling import UnifiedForCausalLM
from unified.models.new_rows import load_whole_matrices
from unified.models.processing import UnifiedProcessor
from unified.training.arguments import DpoArguments, UnifiedTrainingArguments
from unified.training.engines import check_deepspeed, decay_groups, engine_of, optimizer_of_deepspeed
from unified.training.finite import FiniteTrainer
from unified.training.inherited import check_metric
from unified.training.run_folder import checkpoints_of
from unified.training.run_state import check_states
from unified.training.self_correction import SelfCorrection
from unified.training.sharding import check_fsdp, gathered
from unified.training.trackers import report_image


def newest_checkpoint(args: UnifiedTrainingArguments | DpoArguments, model: nn.Module) -> str | None:
    """Checkpoint from which a run of `model` resumes; None to start.

    Raises ValueError for damaged files, for files that could run something, and for other `lora_positions`.
    """
    folder = newest_folder(args)
    if folder is None:
        return None
    check_weights(folder)
    check_states(folder)
    if isinstance(model, PeftModel) and is_adapter(folder):
        requested, trained = getattr(model.peft_config["default"], "positions", "all"), adapter_positions(folder)
        if requested != trained:
            raise ValueError(
                f"{folder} was trained with lora_positions {trained} and this run has {requested}; "
                f"set it to {trained} or use another output_dir"
            )
    return str(folder)


def newest_folder(args: UnifiedTrainingArguments | DpoArguments) -> Path | None:
    """The newest checkpoint of a run with `resume`, not checked; None to start.

    An incomplete checkpoint of a killed run, without the state that HF writes last, is skipped.
    """
    found = checkpoints_of(args.output_dir, holding=TRAINER_STATE) if args.resume else []
    return found[-1] if found else None


def check_complete(
    args: UnifiedTrainingArguments | DpoArguments, folder: str | None, changed: Sequence[str] = ()
) -> None:
    """Raise ValueError for a checkpoint without all that a run needs to go on as if it had not stopped.

    DeepSpeed checks its own files. Where the number of processes has `changed`, random numbers begin anew.
    """
    if folder is None:
        return
    state: dict[str | None, list[str]] = {
        None: [OPTIMIZER_NAME, SCHEDULER_NAME],
        "FSDP": [OPTIMIZER_NAME_BIN, SCHEDULER_NAME],
        "DeepSpeed": [],
    }
    rng = "rng_state.pth" if args.world_size == 1 else f"rng_state_{args.process_index}.pth"
    needed = [*state[engine_of(args)], *([] if "processes" in changed else [rng])]
    missing = [name for name in needed if not (Path(folder) / name).is_file()]
    if missing:
        raise ValueError(
            f"{folder} has no {missing[0]}, so the run cannot go on as if it had not stopped (save_only_model leaves "
            "it out); start another run with --model and this folder, or remove it"
        )


class SetEpochCallback(TrainerCallback):
    """Calls the training set's `set_epoch`; accelerate does not with several processes or in the resumed epoch."""

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        kwargs["train_dataloader"].dataset.set_epoch(int(state.epoch or 0))


class TrimMemoryCallback(TrainerCallback):
    """Returns glibc's free memory to the system (malloc_trim) at every log step of a training on the CPU.

    Rows of many lengths fragment its heap: SmolLM2's grew by 70 MB per step, and shrank from 7.5 to 4.1 GB here.
    """

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None) if platform.libc_ver()[0] == "glibc" else None

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self.libc is not None and args.device.type == "cpu":
            self.libc.malloc_trim(0)


def write_samples(trainer: Any, core: UnifiedForCausalLM, processor: UnifiedProcessor) -> None:
    """Generate images of `args.sample_prompts` on every rank (as ZeRO-3 requires) and save them on the first.

    `trainer` is HF's or one of TRL's, with our arguments; `core` is the unwrapped model.
    """
    args, training = trainer.args, core.training
    path = Path(args.output_dir) / "samples" / f"{trainer.state.global_step:06d}.png"
    whole = gathered(trainer.model)
    with (
        unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator),
        whole,
        trainer.accelerator.autocast(),
    ):
        core.eval()
        images = draw(core, processor, args.sample_prompts, args.sampling(), seed=args.seed)
        core.train(training)
    if args.activation_checkpointing:  # TRL disables it to generate, and enables it again without its options
        options = dict(args.activation_checkpointing_kwargs or {})
        chosen = {name: options.pop(name) for name in ("every_n_layers", "offload") if name in options}
        core.activation_checkpointing_enable(activation_checkpointing_kwargs=options or None, **chosen)
    if trainer.is_world_process_zero():
        sheet = contact_sheet(images, args.sample_prompts)
        write_image(sheet, path)
        report_image(trainer, "samples", sheet)


def check_launch(args: TrainingArguments) -> None:
    """Raise ValueError for arguments that HF's Trainer supports and this one does not."""
    if args.n_gpu > 1:
        raise ValueError(
            f"this process sees {args.n_gpu} GPUs, and nn.DataParallel is not supported; `accelerate launch "
            f"--num_processes {args.n_gpu}` one process for each, or set CUDA_VISIBLE_DEVICES=0 to use one"
        )
    if args.dataloader_persistent_workers:
        raise ValueError(
            "dataloader_persistent_workers True keeps the workers' epoch 0: every epoch would drop the same captions "
            "and train the same positions; set it to False"
        )


class UnifiedTrainer(FiniteTrainer):
    """`Trainer` for rows of text and images; `processing_class` is a `UnifiedProcessor`."""

    args: UnifiedTrainingArguments
    model: Any  # a UnifiedForCausalLM, possibly wrapped by PEFT

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_launch(self.args)
        check_deepspeed(self.accelerator, self.args)
        self.add_callback(SetEpochCallback)
        self.add_callback(TrimMemoryCallback)
        self.core: UnifiedForCausalLM = self.accelerator.unwrap_model(self.model)
        if not isinstance(self.core, UnifiedForCausalLM):
            self.core = self.core.get_base_model()
        check_frozen(self.core.model.vq_model)
        check_fsdp(self.accelerator, self.core)
        scales = [f"scale_{scale + 1}_loss" for scale in range(len(self.core.config.patch_nums))]
        check_metric(self.args, ["loss", "text_loss", "image_loss", *scales])
        noise = self.args.code_noise
        self.self_correction = SelfCorrection(self.core, noise) if noise else None
        groups = 1 + len(self.core.config.patch_nums)
        self.groups = {mode: torch.zeros(2, groups, device=self.args.device) for mode in ("train", "eval")}
        self.balance = torch.zeros(2, device=self.args.device)  # sum and count of losses of a mixture of experts
        self.images_seen, self.last_log = 0.0, time.monotonic()

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor | None:
        """The loss's divisor: the sum of loss weights, instead of tokens, over a step's batches and all ranks."""
        if not batch_samples:
            return None
        divisors = [self.core.loss_divisor(b["labels"], b.get("keep_positions")) for b in batch_samples]
        total = torch.stack(divisors).sum().to(device)
        return self.accelerator.gather(total).sum() if self.args.average_tokens_across_devices else total

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """HF's loss; accumulates the group losses for the log."""
        if model.training and self.self_correction is not None:
            inputs = self.self_correction(inputs, self.args.seed, self.state.global_step)
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self.groups["train" if model.training else "eval"] += torch.stack([outputs.group_losses, outputs.group_counts])
        if outputs.balance_loss is not None:
            self.balance += torch.stack([outputs.balance_loss.detach(), torch.ones_like(outputs.balance_loss)])
        return (loss, outputs) if return_outputs else loss

    def group_means(self, mode: str) -> dict[str, float]:
        """Mean loss of text, of image codes, and of every scale since the last call, over all ranks."""
        losses, counts = self.accelerator.reduce(self.groups[mode], reduction="sum").tolist()
        self.groups[mode].zero_()
        logs = {}
        if counts[0]:
            logs["text_loss"] = losses[0] / counts[0]
        if sum(counts[1:]):
            logs["image_loss"] = sum(losses[1:]) / sum(counts[1:])
            logs |= {f"scale_{k}_loss": losses[k] / counts[k] for k in range(1, len(counts)) if counts[k]}
        if mode == "train":
            h, w = self.core.config.patch_nums[0]
            images, now = counts[1] / (h * w), time.monotonic()
            self.images_seen += images
            logs |= {"images_seen": self.images_seen, "images_per_second": images / (now - self.last_log)}
            self.last_log = now
            balance, batches = self.accelerator.reduce(self.balance, reduction="sum").tolist()
            self.balance.zero_()
            logs |= {"balance_loss": balance / batches} if batches else {}
        return {key: round(value, 5) for key, value in logs.items()}

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """As HF's, with the group losses among the metrics."""
        kwargs["metric_key_prefix"] = metric_key_prefix
        output = super().evaluation_loop(*args, **kwargs)
        means = {f"{metric_key_prefix}_{name}": value for name, value in self.group_means("eval").items()}
        return output._replace(metrics=(output.metrics or {}) | means)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the group losses to HF's logs of a training step."""
        super().log(logs | self.group_means("train") if "loss" in logs else logs, start_time)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Also restore `images_seen` from the checkpoint."""
        super()._load_optimizer_and_scheduler(checkpoint)
        seen = [entry["images_seen"] for entry in self.state.log_history if "images_seen" in entry]
        self.images_seen = seen[-1] if checkpoint and seen else 0.0

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW, or what DeepSpeed's configuration says, of `parameter_groups`."""
        if (made_later := optimizer_of_deepspeed(self)) is not None:
            made_later.params = self.parameter_groups()
        elif self.optimizer is None:
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            self.optimizer = cls(self.parameter_groups(), **options)
            if self.core.model.new_rows is not None:
                load_whole_matrices(self.optimizer, self.core.model.new_rows)
        optimizer: Any = self.optimizer  # HF's type allows none
        return optimizer

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Trained weights with a separate learning rate for the new modules; biases, norms and these do not decay."""
        core = self.core
        modules: list[Any] = [core.get_input_embeddings(), core.get_output_embeddings(), core.model.image_embedding]
        modules += [core.model.new_rows] if core.model.new_rows is not None else []
        new_ids = {id(parameter) for module in modules for parameter in module.parameters()}
        new = [p for p in self.model.parameters() if p.requires_grad and id(p) in new_ids]
        groups = [
            {**group, "params": [p for p in group["params"] if id(p) not in new_ids]} for group in decay_groups(self)
        ]
        groups += [{"params": new, "weight_decay": 0.0, "lr": self.args.new_parts_learning_rate}]
        return [group for group in groups if group["params"]]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """HF's evaluation, then a grid of images of `args.sample_prompts`; its time is none of the log's."""
        began = time.monotonic()
        with torch.compiler.set_stance("force_eager"):  # layers are compiled for training batches
            metrics = super().evaluate(*args, **kwargs)
            if self.args.sample_prompts:
                assert isinstance(self.processing_class, UnifiedProcessor)
                write_samples(self, self.core, self.processing_class)
        self.last_log += time.monotonic() - began
        return metrics
