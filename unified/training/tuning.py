"""What of a model learns: all weights, what is new alone, or low-rank updates as a new adapter or one that goes on."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.integrations import is_deepspeed_zero3_enabled

from unified.checkpoints.adapters import attach, is_adapter, positions_of, read_adapter_config
from unified.checkpoints.loading import checkpoint_of
from unified.models.modeling import UnifiedForCausalLM
from unified.models.position_gated_lora import ImageLinear, ImageLoraConfig, check_rank, split_ranks
from unified.training.arguments import DpoArguments, UnifiedTrainingArguments

# of a new adapter; one that goes on keeps its own
LORA_DEFAULTS: dict[str, Any] = {
    "lora_positions": "all",
    "lora_rank": 32,
    "lora_alpha": 64,
    "lora_target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
}
WIDER = {
    ("image_tokens", "after_image"),
    ("image_tokens", "split_ranks"),
}  # the changes of an adapter's positions with which it can go on


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
    return in_float32(get_peft_model(model, config, autocast_adapter_dtype=not is_deepspeed_zero3_enabled()))


def in_float32(adapted: PeftModel) -> PeftModel:
    """`adapted` with all that learns in float32: PEFT leaves modules that it saves whole in the model's dtype.

    Under ZeRO-3 as it is: DeepSpeed wants one dtype of all that learns, and keeps float32 masters itself.
    """
    if not is_deepspeed_zero3_enabled():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()
    return adapted


def start_of(model: str, args: UnifiedTrainingArguments | DpoArguments) -> Path:
    """The checkpoint that a run from `model` loads, which is its base where it is an adapter.

    Raises ValueError as `checkpoint_of`, for an adapter with which a run with `args` cannot go on, and for settings of
    low-rank updates in a run that has none.
    """
    if is_adapter(model):
        check_continuing(Path(model), args)
    given = [name for name in (*LORA_DEFAULTS, "lora_dropout") if vars(args)[name]]
    if args.tuning != "lora" and given:
        raise ValueError(f"{', '.join(given)} given, but tuning is {args.tuning}; give tuning lora or leave these out")
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
    if args.lora_positions == "split_ranks":
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
    adapted = in_float32(
        attach(
            model,
            adapter,
            config=config,
            is_trainable=True,
            torch_device="cpu",
            autocast_adapter_dtype=not is_deepspeed_zero3_enabled(),
        )
    )
    found = {name for name, layer in model.named_modules() if isinstance(layer, LoraLayer)}
    if wanted not in (None, found):
        own = sorted({name.rsplit(".", 1)[-1] for name in found})
        raise ValueError(
            f"lora_target_modules {endings} are {len(wanted or ())} layers but the adapter {adapter} has {len(found)} "
            f"({', '.join(own)}); leave lora_target_modules out to go on with the adapter, or give its base as model "
            "for a new one"
        )
    if widened and args.lora_positions == "split_ranks":
        for layer in model.modules():
            if isinstance(layer, ImageLinear):
                split_ranks(layer, "default")
    return adapted


def prepare(model: UnifiedForCausalLM, args: UnifiedTrainingArguments, adapter: Path | None = None) -> nn.Module:
    """The model with what `args.tuning` says set to learn; with `adapter`, whose base it is, that one goes on."""
    if adapter is not None:
        return continue_lora(model, args, adapter)
    if args.tuning == "lora":
        return prepare_lora(model, args)
    return prepare_align(model) if args.tuning == "align" else prepare_full(model, args.train_text_rows)
