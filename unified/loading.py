"""A folder to a model that is ready to use, and back: full checkpoints, and PEFT adapters merged into their base."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.utils import AuxiliaryTrainingWrapper
from safetensors import safe_open

from unified.configuration import UnifiedConfig, VQConfig
from unified.image_lora import IMAGE_LORA
from unified.modeling import UnifiedForCausalLM
from unified.processing import UnifiedProcessor
from unified.vq_model import VQModel

ADAPTER_CONFIG = "adapter_config.json"
FROZEN = "model.vq_model."


def load(
    model_dir: str | os.PathLike, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> tuple[UnifiedForCausalLM, UnifiedProcessor]:
    """Model in eval mode and processor of a checkpoint or of an adapter, merged into its base as far as it can be.

    Args:
        device: the best there is by default: CUDA, then Apple's MPS, then the CPU.
        dtype: of the weights; as stored by default.

    Raises ValueError where `model_dir` (or an adapter's base) is missing, of another kind or incomplete.
    """
    folder = Path(model_dir)
    base = base_of(folder) if (folder / ADAPTER_CONFIG).is_file() else folder
    check_checkpoint(base)
    model = UnifiedForCausalLM.from_pretrained(base, dtype=dtype or "auto")
    if base != folder:
        adapted = PeftModel.from_pretrained(model, folder)
        model = merge_new_parts(adapted) if acts_on_images_only(folder) else adapted.merge_and_unload()
    processor = UnifiedProcessor.from_pretrained(base)
    return model.to(device or best_device()).eval(), processor  # type: ignore[arg-type]  # HF wraps nn.Module.to


def merge_new_parts(adapted: PeftModel) -> UnifiedForCausalLM:
    """The model inside `adapted` with rows and image embedding merged, and only low-rank updates left to compute."""
    model = adapted.get_base_model()
    for name, part in list(model.named_modules()):
        if isinstance(part, AuxiliaryTrainingWrapper):
            whole = part.unload_and_optionally_merge_module(merge=True, safe_merge=False, adapter_names=None)
            model.set_submodule(name, whole)
    return model  # type: ignore[return-value]  # PEFT knows it as some module


def merge(model_dir: str | os.PathLike, out: str | os.PathLike) -> None:
    """Write the adapter `model_dir` and its base to `out` as one full checkpoint with its processor.

    Raises ValueError where `model_dir` holds no adapter, or one of image positions only, or `out` is in the way.
    """
    if not (Path(model_dir) / ADAPTER_CONFIG).is_file():
        raise ValueError(f"{model_dir} has no {ADAPTER_CONFIG}; give the output folder of a LoRA run")
    if acts_on_images_only(Path(model_dir)):
        raise ValueError(
            f"{model_dir} was trained with lora_positions image: text does not use its updates, so they cannot be "
            "merged into the weights; use the folder as it is, or train with lora_positions all"
        )
    check_free(out)
    save(*load(model_dir, device="cpu"), out)


def check_free(out: str | os.PathLike) -> None:
    """Raise ValueError where `out` exists: before the work whose result is to go there."""
    if Path(out).exists():
        raise ValueError(f"{out} exists already; give --out a new folder or remove it")


def save(model: UnifiedForCausalLM, processor: UnifiedProcessor, out: str | os.PathLike) -> None:
    """Write both to the new folder `out`, whole or not at all."""
    partial = Path(f"{out}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    processor.save_pretrained(partial)
    os.replace(partial, out)


def weights_digest(model_dir: str | os.PathLike) -> str:
    """SHA-256 of the files with weights: a checkpoint's, or an adapter's and its base's."""
    folder, digest = Path(model_dir), hashlib.sha256()
    folders = [folder, base_of(folder)] if (folder / ADAPTER_CONFIG).is_file() else [folder]
    for path in (path for folder in folders for path in sorted(folder.glob("*.safetensors"))):
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def load_vq(folder: str | os.PathLike, device: str | torch.device | None = None) -> VQModel:
    """Image tokenizer alone, in float32, on the best device by default; ValueError where there is none."""
    config = Path(folder, "config.json")
    kind = json.loads(config.read_text(encoding="utf-8")).get("model_type") if config.is_file() else None
    if kind != VQConfig.model_type:
        found = "no config.json" if kind is None else f"a model of type {kind!r}"
        raise ValueError(
            f"vq {folder} holds no tokenizer ({found}); give a folder that recipes/train_vq.py or "
            "data_prep/convert_var_vq.py has written"
        )
    vq = VQModel.from_pretrained(folder, dtype=torch.float32).eval()
    return vq.to(device or best_device())  # type: ignore[arg-type]  # HF wraps nn.Module.to


def best_device() -> str:
    """CUDA, then MPS, then the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def acts_on_images_only(adapter: Path) -> bool:
    """Whether an adapter was trained with `lora_positions: image`."""
    return read_adapter_config(adapter)["peft_type"] == IMAGE_LORA


def read_adapter_config(adapter: Path) -> dict[str, Any]:
    """What PEFT wrote of an adapter."""
    return json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))


def base_of(adapter: Path) -> Path:
    """Checkpoint that an adapter was trained on."""
    name = read_adapter_config(adapter)["base_model_name_or_path"]
    if not name or not Path(name).is_dir():
        raise ValueError(
            f"{adapter} is an adapter of {name!r}, which is not a folder here; "
            f"put the base back or correct base_model_name_or_path in {ADAPTER_CONFIG}"
        )
    return Path(name)


def frozen_weights(folder: Path) -> dict[str, torch.Tensor]:
    """The image tokenizer's weights in a checkpoint, by their names there."""
    weights: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            weights |= {name: file.get_tensor(name) for name in file.keys() if name.startswith(FROZEN)}
    return weights


def check_checkpoint(folder: Path) -> None:
    """Raise ValueError unless `folder` holds a unified model, its weights and its processor."""
    remedy = "give a folder written by `unified extend`, recipes/sft.py or `unified merge`"
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; {remedy}")
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json; {remedy}")
    kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    if kind != UnifiedConfig.model_type:
        raise ValueError(f"{folder} holds a model of type {kind!r}, not {UnifiedConfig.model_type!r}; {remedy}")
    for needed in ("*.safetensors", "processor_config.json"):
        if not any(folder.glob(needed)):
            raise ValueError(f"{folder} has no {needed}; {remedy}")
