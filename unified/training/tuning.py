"""Trainable parameters: all weights, the new modules only, or LoRA as a new adapter or one that is trained further."""

import sys
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.pytorch_utils import Conv1D

from unified.checkpoints.adapters import adapter_positions, attach, is_adapter, read_adapter_config
from unified.checkpoints.loading import resolve_base_checkpoint
from unified.models.modeling import UnifiedForCausalLM
from unified.models.new_rows import INPUT, freeze_below_adapter, new_row_ids
from unified.models.position_gated_lora import ImageLinear, ImageLoraConfig, check_rank, split_ranks
from unified.models.trainable_token_rows import rows_on_any_device
from unified.training.arguments import DpoArguments, UnifiedTrainingArguments

# of a new adapter; an adapter that is trained further keeps its own
LORA_DEFAULTS: dict[str, Any] = {
    "lora_positions": "all",
    "lora_rank": 32,
    "lora_alpha": 64,
    "lora_target_modules": None,  # `default_layers`
}
# names of layers that choose experts or weigh them: of these a small update changes much
ROUTERS = ("gate", "router", "shared_expert_gate")
LINEAR = (nn.Linear, Conv1D)  # GPT-2's are the latter
NARROW = 32  # a layer this many times narrower than its input, as a gate with one number a head, has no low rank
POSITION_UPGRADES = {
    ("image_tokens", "after_image"),
    ("image_tokens", "split_ranks"),
}  # (old, new): supported changes of `lora_positions` of an adapter that is trained further


def prepare_full(model: UnifiedForCausalLM, train_text_rows: bool) -> UnifiedForCausalLM:
    """Train all weights except the image tokenizer's and, unless `train_text_rows`, the text rows.

    Adam would scale the tiny gradients of image positions with respect to text rows up to full steps, and the language
    would drift.
    """
    if not train_text_rows:
        model.separate_new_rows()
        for name, parameter in model.named_parameters():
            if name.endswith("embed_tokens_per_layer.weight"):  # Gemma 3n's and 4's rows of text, for every layer
                parameter.requires_grad_(False)
    return model


def prepare_align(model: UnifiedForCausalLM) -> UnifiedForCausalLM:
    """Train only the new parameters: image embedding and the rows of codes and special tokens."""
    model.requires_grad_(False)
    model.model.image_embedding.requires_grad_(True)
    model.separate_new_rows()
    return model


def is_bypassed(mixer: nn.Module, name: str) -> bool:
    """Whether a kernel multiplies by the weight of `name` inside `mixer`, past PEFT's layer: Mamba 2's output."""
    fused = "mamba2_split_conv1d_scan_combined" in vars(sys.modules[type(mixer).__module__])
    return fused and name == "out_proj" and "A_log" in dict(mixer.named_parameters(recurse=False))


def default_layers(model: UnifiedForCausalLM) -> list[str]:
    """Full names of all linear layers of the backbone's attention, recurrence and MLP, which LoRA updates by default.

    Without `ROUTERS`, `NARROW` layers and those that `is_bypassed`.
    """
    blocks = [name for name, layer in model.named_modules() if isinstance(layer, GradientCheckpointingLayer)]
    found = []
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear) or not name.startswith(tuple(f"{block}." for block in blocks)):
            continue
        parent, _, last = name.rpartition(".")
        narrow = layer.out_features * NARROW <= layer.in_features
        if last not in ROUTERS and not narrow and not is_bypassed(model.get_submodule(parent), last):
            found.append(name)
    return found


def backbone_layers(model: UnifiedForCausalLM, suffixes: list[str]) -> list[str]:
    """Full names of the backbone's linear layers with these suffixes, of each of which there must be one."""
    layers = [name for name, layer in model.named_modules() if "language_model." in name and isinstance(layer, LINEAR)]
    unmatched = [suffix for suffix in suffixes if not any(name.endswith(suffix) for name in layers)]
    if unmatched or not suffixes:
        raise ValueError(
            f"lora_target_modules {unmatched} match nothing in the backbone; name its linear layers (of the output "
            "matrix the new rows are trained whole)"
        )
    found = [name for name in layers if name.endswith(tuple(suffixes))]
    for name in found:
        parent, _, last = name.rpartition(".")
        if is_bypassed(model.get_submodule(parent), last):
            raise ValueError(
                f"lora_target_modules {suffixes} name {name}, which Mamba 2's kernel multiplies by itself, past an "
                "adapter; leave lora_target_modules out, or name layers one by one"
            )
    return found


def lora_config(model: UnifiedForCausalLM, args: UnifiedTrainingArguments | DpoArguments, **more: Any) -> LoraConfig:
    """LoRA config of the backbone's linear layers for `args.lora_positions`, with `more` of PEFT's keys."""
    chosen = LORA_DEFAULTS | {name: vars(args)[name] for name in LORA_DEFAULTS if vars(args)[name] is not None}
    positions = chosen["lora_positions"]
    if positions != "all":
        if model.config.image_order == "raster":
            raise ValueError(f"lora_positions {positions} needs images in blocks, but image_order is raster; use all")
        more["positions"] = positions
    named = chosen["lora_target_modules"]
    layers = default_layers(model) if named is None else backbone_layers(model, named)
    if not layers:
        raise ValueError(
            f"the backbone {model.config.text_config.model_type} has no linear layers for LoRA; set tuning to full"
        )
    config_class = LoraConfig if positions == "all" else ImageLoraConfig
    sizes = {"r": chosen["lora_rank"], "lora_alpha": chosen["lora_alpha"], "lora_dropout": args.lora_dropout}
    return config_class(target_modules=layers, task_type="CAUSAL_LM", **sizes, **more)


def prepare_lora(model: UnifiedForCausalLM, args: UnifiedTrainingArguments) -> PeftModel:
    """A PEFT model: LoRA of the backbone, plus the parameters that `prepare_align` trains, in one adapter."""
    ids, table = new_row_ids(model.config), model.get_input_embeddings()
    name = next(name.rsplit(".", 1)[-1] for name, module in model.named_modules() if module is table)
    token_rows = {name if matrix == INPUT else matrix: rows for matrix, rows in ids.items()}
    config = lora_config(
        model,
        args,
        trainable_token_indices=token_rows,
        modules_to_save=["image_embedding"],
    )
    with rows_on_any_device():
        adapted: Any = get_peft_model(model, config, autocast_adapter_dtype=not is_deepspeed_zero3_enabled())
    return trainable_to_float32(freeze_below(adapted))


def freeze_below(adapted: PeftModel) -> PeftModel:
    """Freeze the matrices below an adapter's token rows, so that no engine parts, reduces or decays them."""
    core: Any = adapted.get_base_model()
    freeze_below_adapter(core.get_input_embeddings(), core.lm_head, core.config.tie_word_embeddings)
    return adapted


def trainable_to_float32(adapted: PeftModel) -> PeftModel:
    """Cast trainable parameters to float32: PEFT leaves `modules_to_save` in the model's dtype.

    No-op with ZeRO-3: DeepSpeed needs one dtype for all trainable parameters, and keeps float32 master weights.
    """
    if not is_deepspeed_zero3_enabled():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return adapted


def resolve_checkpoint(model: str, args: UnifiedTrainingArguments | DpoArguments) -> Path:
    """The checkpoint that a run from `model` loads: `model` itself, or an adapter's base.

    Raises ValueError as `resolve_base_checkpoint`, for an adapter that `args` cannot train further, and for sampling
    settings of no meaning.
    """
    args.sampling()
    if is_adapter(model):
        check_continuing(Path(model), args)
    return resolve_base_checkpoint(model, args.base)


def check_continuing(adapter: Path, args: UnifiedTrainingArguments | DpoArguments) -> None:
    """Raise ValueError unless a run with `args` can train `adapter` further; `continue_lora` checks its layers."""
    config, positions = read_adapter_config(adapter), adapter_positions(adapter)
    if args.tuning != "lora":
        remedy = "`unified merge` it first, or set tuning to lora"
        if positions != "all":
            remedy = f"set tuning to lora, as an adapter with lora_positions {positions} cannot be merged"
        raise ValueError(f"tuning {args.tuning} needs a checkpoint but {adapter} is an adapter; {remedy}")
    if positions == "all" and config.get("peft_type") != "LORA":
        raise ValueError(
            f"{adapter} is an adapter of type {config.get('peft_type')}; only LoRA can be trained further"
        )
    if args.lora_positions == "split_ranks":
        check_rank(config["r"])
    stored = {"lora_positions": positions, "lora_rank": config["r"], "lora_alpha": config["lora_alpha"]}
    for name, value in stored.items():
        if vars(args)[name] not in (None, value) and (value, vars(args)[name]) not in POSITION_UPGRADES:
            raise ValueError(
                f"{name} {vars(args)[name]} is not that of the adapter {adapter}, {value}; leave {name} out to train "
                "the adapter further, or pass its base as model for a new one"
            )


def continue_lora(
    model: UnifiedForCausalLM, args: UnifiedTrainingArguments | DpoArguments, adapter: Path
) -> PeftModel:
    """`model` with its adapter, trainable and in float32, whatever dtype is stored.

    `args.lora_positions` may change image_tokens to after_image or split_ranks, see `POSITION_UPGRADES`.
    Raises ValueError if `args` names other layers than the adapter's.
    """
    config = PeftConfig.from_pretrained(str(adapter))
    config.lora_dropout = args.lora_dropout
    if upgraded := (adapter_positions(adapter), args.lora_positions) in POSITION_UPGRADES:
        config.positions = args.lora_positions
    suffixes = args.lora_target_modules
    requested = None if suffixes is None else set(backbone_layers(model, suffixes))
    options = {"is_trainable": True, "torch_device": "cpu", "autocast_adapter_dtype": not is_deepspeed_zero3_enabled()}
    with rows_on_any_device():
        attached = attach(model, adapter, config=config, **options)
    adapted = trainable_to_float32(freeze_below(attached))
    found = {name for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    if requested not in (None, found):
        stored = sorted({name.rsplit(".", 1)[-1] for name in found})
        raise ValueError(
            f"lora_target_modules {suffixes} are {len(requested or ())} layers but the adapter {adapter} has "
            f"{len(found)} ({', '.join(stored)}); leave lora_target_modules out to train the adapter further, or pass "
            "its base as model for a new one"
        )
    if upgraded and args.lora_positions == "split_ranks":
        for layer in model.modules():
            if isinstance(layer, ImageLinear):
                split_ranks(layer, "default")
    return adapted


def check_masters(model: nn.Module) -> None:
    """Raise ValueError for trainable weights in half precision, of which AdamW's small updates are rounded away.

    Not under DeepSpeed, which keeps float32 masters.
    """
    halves = {p.dtype for p in model.parameters() if p.requires_grad} & {torch.bfloat16, torch.float16}
    if halves:
        raise ValueError(
            f"trainable weights in {str(halves.pop()).removeprefix('torch.')} lose most updates to rounding; set "
            "dtype to float32 with bf16 True (autocast), launch with DeepSpeed, or set tuning to lora"
        )


def freeze_lower_layers(model: UnifiedForCausalLM, count: int) -> None:
    """Train the backbone's layers from `count` on: what is below has no gradient, and the image embedding stays.

    Raises ValueError where no layer would be trained.
    """
    backbone = model.get_submodule("model.language_model")
    layers = [layer for layer in backbone.modules() if isinstance(layer, GradientCheckpointingLayer)]
    if count >= len(layers):
        raise ValueError(f"first_trained_layer {count}, but the backbone has {len(layers)} layers; give fewer")
    for layer in layers[:count]:
        layer.requires_grad_(False)
    model.model.image_embedding.requires_grad_(False)
    if not model.config.tie_word_embeddings:  # input rows of new tokens lie below as well
        model.get_input_embeddings().requires_grad_(False)
        if model.model.new_rows is not None:
            model.model.new_rows[INPUT].requires_grad_(False)
    layers[count].register_forward_pre_hook(_without_gradient, with_kwargs=True)


def _without_gradient(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """The input of a layer, apart from the graph of what is below it."""
    if args:
        return (args[0].detach(), *args[1:]), kwargs
    return args, kwargs | {"hidden_states": kwargs["hidden_states"].detach()}


def check_start_share(model: str, args: UnifiedTrainingArguments) -> None:
    """Raise ValueError for a `start_share` of a run that does not train an adapter further as it is."""
    if not args.start_share:
        return
    if not is_adapter(model):
        raise ValueError(
            f"start_share {args.start_share:g} needs an adapter as model, which {model} is not; set it to 0"
        )
    if args.lora_positions not in (None, adapter_positions(Path(model))):
        raise ValueError(f"start_share {args.start_share:g} with other lora_positions than {model}'s; set it to 0")


def prepare(model: UnifiedForCausalLM, args: UnifiedTrainingArguments, adapter: Path | None = None) -> nn.Module:
    """`model` with the trainable parameters of `args.tuning`; with an `adapter` of it, that one is trained further."""
    prepared = _prepare(model, args, adapter)
    if args.first_trained_layer:
        freeze_lower_layers(model, args.first_trained_layer)
    return prepared


def _prepare(model: UnifiedForCausalLM, args: UnifiedTrainingArguments, adapter: Path | None) -> nn.Module:
    if adapter is not None:
        return continue_lora(model, args, adapter)
    if args.tuning == "lora":
        return prepare_lora(model, args)
    if args.tuning == "align" and args.first_trained_layer:
        raise ValueError(
            f"first_trained_layer {args.first_trained_layer}, but tuning align trains no layer; set it to 0"
        )
    return prepare_align(model) if args.tuning == "align" else prepare_full(model, args.train_text_rows)
