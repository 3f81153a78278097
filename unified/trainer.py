"""Training: HF's `Trainer` with the loss of every modality and scale in the log, and pictures at every evaluation."""

import ctypes
import platform
import time
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import EvalLoopOutput, get_last_checkpoint
from trl.models import unwrap_model_for_generation

from unified.adapters import is_adapter, positions_of, read_adapter_config
from unified.arguments import DpoArguments, UnifiedTrainingArguments
from unified.drawing import contact_sheet, draw
from unified.generation import ImageSampling
from unified.image_lora import ImageLinear, ImageLoraConfig, check_rank, set_apart
from unified.loading import FROZEN, check_weights, checkpoint_of, frozen_weights
from unified.modeling import UnifiedForCausalLM
from unified.pictures import write_picture
from unified.processing import UnifiedProcessor

# of a new adapter; one that goes on keeps its own
LORA_DEFAULTS: dict[str, Any] = {
    "lora_positions": "all",
    "lora_rank": 32,
    "lora_alpha": 64,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
WIDER = {("image", "onward"), ("image", "apart")}  # the changes of an adapter's positions with which it can go on
NEW_PARTS = ("image_embedding", "embed_tokens", "lm_head", "trainable_tokens_delta")


def freeze_text_rows(model: UnifiedForCausalLM) -> None:
    """Let the embedding and output matrices learn only the rows that `unified extend` added.

    Text rows get a gradient of exactly 0, so Adam leaves them as they are; without this, the tiny gradients that
    every image position sends to every text row are blown up to full steps and the language drifts.
    """
    vocabulary = model.config.vocabulary
    rows = torch.arange(vocabulary.size)
    learns = vocabulary.is_image(rows) | torch.isin(rows, torch.tensor(vocabulary.special_ids))
    matrices = (model.get_input_embeddings(), model.get_output_embeddings())
    for weight in {matrix.get_parameter("weight") for matrix in matrices}:  # one where they are tied
        weight.register_hook(lambda gradient: gradient * learns[:, None].to(gradient))


def prepare_full(model: UnifiedForCausalLM, train_text_rows: bool) -> UnifiedForCausalLM:
    """Every weight but the image tokenizer's learns."""
    if not train_text_rows:
        freeze_text_rows(model)
    return model


def prepare_align(model: UnifiedForCausalLM) -> UnifiedForCausalLM:
    """Only what is new learns: image input states and the rows of codes and special tokens."""
    model.requires_grad_(False)
    model.model.image_embedding.requires_grad_(True)
    for matrix in (model.get_input_embeddings(), model.get_output_embeddings()):
        matrix.weight.requires_grad_(True)
    freeze_text_rows(model)
    return model


def backbone_layers(model: UnifiedForCausalLM, endings: list[str]) -> list[str]:
    """Full names of the backbone's layers whose names end so: tokenizer and image embedding hold linear layers too."""
    names = [name for name, _ in model.named_modules() if "language_model." in name and name.endswith(tuple(endings))]
    if not names:
        raise ValueError(f"lora_target_modules {endings} match nothing in the backbone; name its linear layers")
    return names


def lora_config(model: UnifiedForCausalLM, args: UnifiedTrainingArguments | DpoArguments, **more: Any) -> LoraConfig:
    """Low-rank updates of the backbone's linear layers where `args.lora_positions` says, and `more` of PEFT's keys."""
    chosen = LORA_DEFAULTS | {name: vars(args)[name] for name in LORA_DEFAULTS if vars(args)[name] is not None}
    positions = chosen["lora_positions"]
    if positions != "all":
        if model.config.image_order == "raster":
            raise ValueError(f"lora_positions {positions} needs images in blocks, but image_order is raster; use all")
        more["positions"] = positions
    layers = backbone_layers(model, chosen["lora_target_modules"])
    kind = LoraConfig if positions == "all" else ImageLoraConfig
    sizes = {"r": chosen["lora_rank"], "lora_alpha": chosen["lora_alpha"], "lora_dropout": args.lora_dropout}
    return kind(target_modules=layers, task_type="CAUSAL_LM", **sizes, **more)


def prepare_lora(model: UnifiedForCausalLM, args: UnifiedTrainingArguments) -> PeftModel:
    """A PEFT model: low-rank updates of the backbone, plus all of what `prepare_align` trains, in one adapter."""
    vocabulary = model.config.vocabulary
    rows = [*vocabulary.special_ids, *vocabulary.image_ids]
    table = model.get_input_embeddings()
    name = next(name.rsplit(".", 1)[-1] for name, module in model.named_modules() if module is table)
    token_rows: dict[str, list[int]] = {name: rows}
    if not model.config.tie_word_embeddings:
        token_rows["lm_head"] = rows
    config = lora_config(
        model,
        args,
        trainable_token_indices=token_rows,
        modules_to_save=["image_embedding"],
    )
    return get_peft_model(model, config)


def start_of(model: str, args: UnifiedTrainingArguments | DpoArguments) -> Path:
    """The checkpoint that a run from `model` loads, which is its base where it is an adapter.

    Raises ValueError as `checkpoint_of`, and for an adapter with which a run with `args` cannot go on.
    """
    if is_adapter(model):
        check_continuing(Path(model), args)
    return checkpoint_of(model)


def check_continuing(adapter: Path, args: UnifiedTrainingArguments | DpoArguments) -> None:
    """Raise ValueError unless a run with `args` can go on with `adapter`; `continue_lora` compares its layers."""
    config, positions = read_adapter_config(adapter), positions_of(adapter)
    if args.tuning != "lora":
        remedy = "`unified merge` it first, or go on with tuning lora"
        if positions != "all":
            remedy = f"go on with tuning lora, as one with lora_positions {positions} cannot be merged"
        raise ValueError(f"tuning {args.tuning} needs a checkpoint but {adapter} is an adapter; {remedy}")
    if positions == "all" and config.get("peft_type") != "LORA":
        raise ValueError(f"{adapter} is an adapter of type {config.get('peft_type')}; only LoRA can go on")
    if args.lora_positions == "apart":
        check_rank(config["r"])
    own = {"lora_positions": positions, "lora_rank": config["r"], "lora_alpha": config["lora_alpha"]}
    for name, value in own.items():
        if vars(args)[name] not in (None, value) and (value, vars(args)[name]) not in WIDER:
            raise ValueError(
                f"{name} {vars(args)[name]} is not that of the adapter {adapter}, {value}; leave {name} out to go on "
                "with the adapter, or give its base as model for a new one"
            )


def continue_lora(
    model: UnifiedForCausalLM, args: UnifiedTrainingArguments | DpoArguments, adapter: Path
) -> PeftModel:
    """`model` with its adapter, all of which goes on learning: updates and rows in float32, whatever the file holds.

    One of image positions goes on from images onward, or with ranks apart, where `args.lora_positions` says so.
    Raises ValueError where `args` names other layers than the adapter's.
    """
    config = PeftConfig.from_pretrained(str(adapter))
    config.lora_dropout = args.lora_dropout
    if widened := (positions_of(adapter), args.lora_positions) in WIDER:
        config.positions = args.lora_positions
    endings = args.lora_target_modules
    wanted = None if endings is None else set(backbone_layers(model, endings))
    adapted = PeftModel.from_pretrained(model, adapter, config=config, is_trainable=True, torch_device="cpu")
    found = {name for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    if wanted not in (None, found):
        own = sorted({name.rsplit(".", 1)[-1] for name in found})
        raise ValueError(
            f"lora_target_modules {endings} are {len(wanted or ())} layers but the adapter {adapter} has {len(found)} "
            f"({', '.join(own)}); leave lora_target_modules out to go on with the adapter, or give its base as model "
            "for a new one"
        )
    if widened and args.lora_positions == "apart":
        for layer in model.modules():
            if isinstance(layer, ImageLinear):
                set_apart(layer, "default")
    return adapted


def prepare(model: UnifiedForCausalLM, args: UnifiedTrainingArguments, adapter: Path | None = None) -> nn.Module:
    """The model with what `args.tuning` says set to learn; with `adapter`, whose base it is, that one goes on."""
    if adapter is not None:
        return continue_lora(model, args, adapter)
    if args.tuning == "lora":
        return prepare_lora(model, args)
    return prepare_align(model) if args.tuning == "align" else prepare_full(model, args.train_text_rows)


def newest_checkpoint(args: UnifiedTrainingArguments | DpoArguments, model: nn.Module) -> str | None:
    """Where a run of `model` that resumes goes on; None where it starts.

    Raises ValueError where the files there are damaged, and where an adapter there acts at other positions.
    """
    folder = get_last_checkpoint(args.output_dir) if args.resume else None
    if folder is None:
        return None
    check_weights(Path(folder))
    if isinstance(model, PeftModel) and is_adapter(folder):
        own, found = getattr(model.peft_config["default"], "positions", "all"), positions_of(Path(folder))
        if own != found:
            raise ValueError(
                f"{folder} was trained with lora_positions {found} and this run has {own}; go on with {found} or give "
                "another output_dir"
            )
    return folder


class DataEpoch(TrainerCallback):
    """Tells the training set its epoch: accelerate does not with several processes, nor in the epoch of a resume."""

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        kwargs["train_dataloader"].dataset.set_epoch(int(state.epoch or 0))


class ReturnMemory(TrainerCallback):
    """Gives glibc's free memory back to the system at every log line of a training on the CPU.

    Rows of many lengths leave holes in its heap: SmolLM2's grew by 70 MB a step, and shrank from 7.5 to 4.1 GB here.
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
    """Write pictures of the fixed prompts; every rank generates (ZeRO-3 needs them all), the first one writes.

    `trainer` is HF's or one of TRL's, with our arguments; `core` the model inside its wrappers.
    """
    args, training = trainer.args, core.training
    path = Path(args.output_dir) / "samples" / f"{trainer.state.global_step:06d}.png"
    sampling = ImageSampling(args.sample_temperature, args.sample_top_k, guidance=args.sample_guidance)
    with unwrap_model_for_generation(trainer.model_wrapped, trainer.accelerator), trainer.accelerator.autocast():
        core.eval()
        images = draw(core, processor, args.sample_prompts, sampling, seed=args.seed)
        core.train(training)
    if trainer.is_world_process_zero():
        write_picture(contact_sheet(images, args.sample_prompts), path)


class UnifiedTrainer(Trainer):
    """`Trainer` for rows of text and images; `processing_class` is a `UnifiedProcessor`."""

    args: UnifiedTrainingArguments
    model: Any  # a UnifiedForCausalLM, which PEFT may have wrapped

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(DataEpoch)
        self.add_callback(ReturnMemory)
        self.core: UnifiedForCausalLM = self.accelerator.unwrap_model(self.model)
        if not isinstance(self.core, UnifiedForCausalLM):
            self.core = self.core.get_base_model()
        groups = 1 + len(self.core.config.patch_nums)
        self.groups = {mode: torch.zeros(2, groups, device=self.args.device) for mode in ("train", "eval")}
        self.images_seen, self.last_log = 0.0, time.monotonic()

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor | None:
        """The loss's divisor: the sum of weights, not of tokens, over all batches of a step and all ranks."""
        if not batch_samples:
            return None
        divisors = [self.core.loss_divisor(b["labels"], b.get("keep_positions")) for b in batch_samples]
        total = torch.stack(divisors).sum().to(device)
        return self.accelerator.gather(total).sum() if self.args.average_tokens_across_devices else total

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """HF's loss; keeps what the model says of every group for the log."""
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        self.groups["train" if model.training else "eval"] += torch.stack([outputs.group_losses, outputs.group_counts])
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
        return {key: round(value, 5) for key, value in logs.items()}

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """HF's, with the groups' losses among the metrics."""
        kwargs["metric_key_prefix"] = metric_key_prefix
        output = super().evaluation_loop(*args, **kwargs)
        means = {f"{metric_key_prefix}_{name}": value for name, value in self.group_means("eval").items()}
        return output._replace(metrics=(output.metrics or {}) | means)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the groups' losses to what HF logs of a training step."""
        super().log(logs | self.group_means("train") if "loss" in logs else logs, start_time)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Also take up the count of images where the checkpoint left it."""
        super()._load_optimizer_and_scheduler(checkpoint)
        seen = [entry["images_seen"] for entry in self.state.log_history if "images_seen" in entry]
        self.images_seen = seen[-1] if checkpoint and seen else 0.0

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None) -> None:
        """HF's, with the image tokenizer as it was: DeepSpeed in bf16 rounds all weights, which changes its codes."""
        if state_dict is not None and any(name.startswith(FROZEN) for name in state_dict):
            state_dict = state_dict | frozen_weights(Path(str(self.core.name_or_path)))
        super()._save(output_dir, state_dict)

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with an own learning rate for the new parts."""
        if self.optimizer is None:
            cls, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            named = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
            new = [p for n, p in named if any(part in n for part in NEW_PARTS)]
            old = [p for n, p in named if not any(part in n for part in NEW_PARTS)]
            groups = [
                {"params": old, "weight_decay": self.args.weight_decay},
                {"params": new, "weight_decay": 0.0, "lr": self.args.new_parts_learning_rate},
            ]
            self.optimizer = cls([group for group in groups if group["params"]], **options)
        return self.optimizer

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """HF's evaluation, then a sheet of pictures of `args.sample_prompts`."""
        metrics = super().evaluate(*args, **kwargs)
        if self.args.sample_prompts:
            assert isinstance(self.processing_class, UnifiedProcessor)
            write_samples(self, self.core, self.processing_class)
        return metrics
