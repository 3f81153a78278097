"""Loading models from folders: full checkpoints, and PEFT adapters merged into their base."""

import hashlib
import json
import os
from pathlib import Path
from typing import cast

import torch
from peft import PeftModel
from peft.utils import AuxiliaryTrainingWrapper

from unified.checkpoints.adapters import (
    ADAPTER_WEIGHTS,
    adapter_positions,
    attach,
    base_checkpoint,
    check_base,
    is_adapter,
    trained_chats,
)
from unified.checkpoints.quantization import Bits, quantization
from unified.files.hub import model_folder
from unified.files.images import Fit
from unified.files.jsonl import read_object
from unified.files.weights import check_weights
from unified.hardware.device import best_device
from unified.models.chat_fingerprint import check_chats
from unified.models.configuration import UnifiedConfig
from unified.models.engine_files import weight_files
from unified.models.messages import SYSTEM_PROMPT
from unified.models.modeling import UnifiedForCausalLM
from unified.models.processing import UnifiedProcessor

PROCESSOR_CONFIG = "processor_config.json"


def load(
    model_dir: str | os.PathLike,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    base: str | os.PathLike | None = None,
    quantize: Bits | None = None,
) -> tuple[UnifiedForCausalLM, UnifiedProcessor]:
    """Model in eval mode and processor of a checkpoint or of an adapter, merged into its base as far as possible.

    `model_dir` is a folder, or a name of the Hugging Face hub: `ORG/NAME` or `ORG/NAME@REVISION`.

    Args:
        device: the best available by default: CUDA, then Apple's MPS, then the CPU.
        dtype: of the weights; as stored by default.
        base: folder or hub name of an adapter's base; by default the one that it names.
        quantize: "4bit" or "8bit" of bitsandbytes for the backbone's layers, beside which an adapter's stay whole.

    Raises ValueError as `resolve_base_checkpoint`, and for a processor that was changed since the model was made or
    trained: its geometry, chat template or tokenizer.
    """
    folder = model_folder(model_dir)
    checkpoint, place = resolve_base_checkpoint(folder, base), torch.device(device or best_device())
    options = quantization(quantize, place)
    model = UnifiedForCausalLM.from_pretrained(checkpoint, dtype=dtype or "auto", **options)
    if is_adapter(folder):
        adapted = attach(model, folder)
        whole = adapter_positions(folder) == "all" and quantize is None
        model = adapted.merge_and_unload() if whole else merge_new_modules(adapted)
    processor = load_processor(folder, checkpoint)
    try:
        check_chats(processor, model.config, trained_chats(folder, model.config))
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from None
    if quantize is None:  # else it is there already, and bitsandbytes refuses to be moved
        model.to(place)  # type: ignore[arg-type]  # HF wraps nn.Module.to
    return model.eval(), processor


def load_processor(model_dir: str | os.PathLike, checkpoint: str | os.PathLike) -> UnifiedProcessor:
    """The processor of the checkpoint `model_dir`, or of the adapter `model_dir` of the base `checkpoint`.

    An adapter's is its base's, but for `fit`, which belongs to what it was trained on.
    """
    processor = UnifiedProcessor.from_pretrained(checkpoint)
    processor.set_fit(fit_of(Path(model_dir), Path(checkpoint)))
    return processor


def fit_of(folder: Path, checkpoint: Path) -> Fit:
    """The `fit` of the processor in a folder, else of its base `checkpoint`, else what all had before it was kept."""
    for place in (folder, checkpoint):
        path = place / PROCESSOR_CONFIG
        if path.is_file() and (stored := read_object(path).get("fit")) is not None:
            return cast(Fit, stored)
    return "crop"


def resolve_base_checkpoint(model_dir: str | os.PathLike, base: str | os.PathLike | None = None) -> Path:
    """The checkpoint `model_dir`, or the base of the adapter `model_dir`: `base` if given.

    Raises ValueError if it (or the adapter) is missing, of another model type, incomplete, damaged, or not the base
    that the adapter was trained on, and for a `base` of what is no adapter.
    """
    folder = model_folder(model_dir)
    if not is_adapter(folder):
        if base is not None:
            raise ValueError(f"--base {base} is for an adapter, which {folder} is not; leave it out")
        check_checkpoint(folder)
        return folder
    check_weights(folder, ADAPTER_WEIGHTS)
    checkpoint = base_checkpoint(folder, base)
    check_checkpoint(checkpoint)
    check_base(folder, checkpoint)
    return checkpoint


def merge_new_modules(adapted: PeftModel) -> UnifiedForCausalLM:
    """The model inside `adapted` with token rows and image embedding merged, and only LoRA layers left unmerged."""
    model = adapted.get_base_model()
    for name, module in list(model.named_modules()):
        if isinstance(module, AuxiliaryTrainingWrapper):
            merged = module.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
            model.set_submodule(name, merged)
    return model  # type: ignore[return-value]  # PEFT types it as a Module


def weights_digest(model_dir: str | os.PathLike, base: str | os.PathLike | None = None) -> str:
    """SHA-256 of safetensors files, a checkpoint's or an adapter's with its `base`'s; of an unusual prompt, fit.

    The usual ones leave the digest as it was in earlier versions.
    """
    folder, digest = model_folder(model_dir), hashlib.sha256()
    folders = [folder, base_checkpoint(folder, base)] if is_adapter(folder) else [folder]
    for path in (
        path for folder in folders for path in sorted({*folder.glob("*.safetensors"), *weight_files(folder)})
    ):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    system_prompt = read_object(folders[-1] / PROCESSOR_CONFIG).get("system_prompt")
    if system_prompt != SYSTEM_PROMPT:
        digest.update(json.dumps(system_prompt).encode())
    if (fit := fit_of(folder, folders[-1])) != "crop":
        digest.update(f"fit {fit}".encode())
    return digest.hexdigest()


def check_checkpoint(folder: Path) -> None:
    """Raise ValueError unless `folder` contains a unified model, its weights and its processor."""
    remedy = "give a folder written by `unified extend`, recipes/sft.py or `unified merge`"
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; {remedy}")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; {remedy}")
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind != UnifiedConfig.model_type:
        raise ValueError(f"{folder} holds a model of type {kind!r}, not {UnifiedConfig.model_type!r}; {remedy}")
    if not weight_files(folder):
        raise ValueError(f"{folder} has no *.safetensors; {remedy}")
    if not (folder / PROCESSOR_CONFIG).is_file():
        raise ValueError(f"{folder} has no {PROCESSOR_CONFIG}; {remedy}")
    check_weights(folder)
