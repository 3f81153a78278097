"""A folder to a model that is ready to use, and back: full checkpoints, and PEFT adapters merged into their base."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import PeftModel
from peft.utils import AuxiliaryTrainingWrapper
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from unified.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    BASE_RECORD,
    base_of,
    check_base,
    is_adapter,
    make_record,
    positions_of,
    read_adapter_config,
)
from unified.configuration import UnifiedConfig, VQConfig
from unified.modeling import UnifiedForCausalLM
from unified.processing import UnifiedProcessor
from unified.vq_model import VQModel

FROZEN = "model.vq_model."


def load(
    model_dir: str | os.PathLike, device: str | torch.device | None = None, dtype: str | torch.dtype | None = None
) -> tuple[UnifiedForCausalLM, UnifiedProcessor]:
    """Model in eval mode and processor of a checkpoint or of an adapter, merged into its base as far as it can be.

    Args:
        device: the best there is by default: CUDA, then Apple's MPS, then the CPU.
        dtype: of the weights; as stored by default.

    Raises ValueError as `checkpoint_of`.
    """
    folder, base = Path(model_dir), checkpoint_of(model_dir)
    model = UnifiedForCausalLM.from_pretrained(base, dtype=dtype or "auto")
    if base != folder:
        adapted = PeftModel.from_pretrained(model, folder)
        model = adapted.merge_and_unload() if positions_of(folder) == "all" else merge_new_parts(adapted)
    processor = UnifiedProcessor.from_pretrained(base)
    return model.to(device or best_device()).eval(), processor  # type: ignore[arg-type]  # HF wraps nn.Module.to


def checkpoint_of(model_dir: str | os.PathLike) -> Path:
    """The checkpoint that `model_dir` is or, of an adapter, starts from.

    Raises ValueError where it (or the adapter) is missing, of another kind, incomplete, damaged, or not the base that
    a published adapter was trained on.
    """
    folder = Path(model_dir)
    if not is_adapter(folder):
        check_checkpoint(folder)
        return folder
    check_weights(folder, ADAPTER_WEIGHTS)
    base = base_of(folder)
    check_checkpoint(base)
    check_base(folder, base)
    return base


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

    Raises ValueError where `model_dir` holds no adapter, or one that does not act everywhere, or `out` is in the way.
    """
    check_adapter(model_dir)
    positions = positions_of(Path(model_dir))
    if positions != "all":
        raise ValueError(
            f"{model_dir} was trained with lora_positions {positions}: some text does not use its updates, so they "
            "cannot be merged into the weights; use the folder as it is, or train with lora_positions all"
        )
    check_free(out)
    save(*load(model_dir, device="cpu"), out)


def publish(
    model_dir: str | os.PathLike,
    out: str | os.PathLike,
    dtype: torch.dtype = torch.bfloat16,
    base: str | None = None,
    made_with: Sequence[str] = (),
) -> None:
    """Write the adapter `model_dir` to the new folder `out`, small enough to ship, with processor and base's digest.

    Args:
        dtype: of the weights; training goes on in float32 from any.
        base: where others find the base, relative to the folder they work in; by default what the adapter says.
        made_with: the commands that make it, for those who do not have it.

    Raises ValueError where `model_dir` holds no adapter, as `checkpoint_of`, where `out` is in the way, and where
    `base` is another checkpoint here.
    """
    adapter = Path(model_dir)
    check_adapter(adapter)
    check_free(out)
    source = checkpoint_of(adapter)
    record = make_record(adapter, source, base or str(source), made_with)
    config = read_adapter_config(adapter) | {"base_model_name_or_path": record["base"]}
    weights = {name: value.to(dtype) for name, value in load_file(adapter / ADAPTER_WEIGHTS).items()}
    with new_folder(out) as folder:
        UnifiedProcessor.from_pretrained(source).save_pretrained(folder)
        save_file(weights, folder / ADAPTER_WEIGHTS, {"format": "pt"})
        for name, content in ((ADAPTER_CONFIG, config), (BASE_RECORD, record)):
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def check_adapter(folder: str | os.PathLike) -> None:
    """Raise ValueError where `folder` holds no adapter."""
    if not is_adapter(folder):
        raise ValueError(f"{folder} has no {ADAPTER_CONFIG}; give the output folder of a LoRA run")


def check_free(out: str | os.PathLike) -> None:
    """Raise ValueError where `out` exists: before the work whose result is to go there."""
    if Path(out).exists():
        raise ValueError(f"{out} exists already; give --out a new folder or remove it")


@contextmanager
def new_folder(out: str | os.PathLike) -> Iterator[Path]:
    """An empty neighbour of `out` to fill, which takes its name when the block ends well."""
    partial = Path(f"{out}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    yield partial
    os.replace(partial, out)


def save(model: UnifiedForCausalLM, processor: UnifiedProcessor, out: str | os.PathLike) -> None:
    """Write both to the new folder `out`, whole or not at all."""
    with new_folder(out) as folder:
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


def weights_digest(model_dir: str | os.PathLike) -> str:
    """SHA-256 of the files with weights: a checkpoint's, or an adapter's and its base's."""
    folder, digest = Path(model_dir), hashlib.sha256()
    folders = [folder, base_of(folder)] if is_adapter(folder) else [folder]
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
    check_weights(Path(folder))
    vq = VQModel.from_pretrained(folder, dtype=torch.float32).eval()
    return vq.to(device or best_device())  # type: ignore[arg-type]  # HF wraps nn.Module.to


def best_device() -> str:
    """CUDA, then MPS, then the CPU."""
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


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
    check_weights(folder)


def check_weights(folder: Path, needed: str | None = None) -> None:
    """Raise ValueError where a file of weights in `folder` is cut off or damaged, or `needed` is missing."""
    if needed and not (folder / needed).is_file():
        raise ValueError(f"{folder} has no {needed}; put it back or make the folder again")
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):  # reads the header, and whether the file is as long as it says
                pass
        except SafetensorError as error:
            raise ValueError(
                f"{path} is cut off or damaged ({error}); copy it again, or make the folder {folder} again"
            ) from None
