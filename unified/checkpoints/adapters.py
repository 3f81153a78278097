"""LoRA adapters on disk: what they say of themselves, whose they are, and whether a base is the one they learnt on."""

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from peft import PeftModel, get_peft_model_state_dict
from safetensors import safe_open
from transformers import PreTrainedModel

from unified.files.weights import refuse_missing
from unified.models.configuration import UnifiedConfig
from unified.models.format_version import name_in_version_1, upgrade
from unified.models.position_gated_lora import IMAGE_LORA

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE_RECORD = "base.json"


def is_adapter(folder: str | os.PathLike) -> bool:
    """Whether `folder` holds an adapter, not a checkpoint."""
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def read_adapter_config(adapter: Path) -> dict[str, Any]:
    """What PEFT wrote of an adapter; a plain LoRA's is PEFT's own form, which has no `format_version`."""
    path = adapter / ADAPTER_CONFIG
    stored = json.loads(path.read_text(encoding="utf-8"))
    return upgrade(stored, str(path)) if stored.get("peft_type") == IMAGE_LORA else stored


def positions_of(adapter: Path) -> str:
    """Where an adapter's updates act, as `lora_positions` names it: all or one of `POSITIONS`."""
    config = read_adapter_config(adapter)
    return config["positions"] if config.get("peft_type") == IMAGE_LORA else "all"


def base_of(adapter: Path) -> Path:
    """Checkpoint that an adapter was trained on; a relative path starts at the current folder, as PEFT reads it.

    Raises ValueError where it is no folder, with the commands that make it where the adapter knows them.
    """
    name = read_adapter_config(adapter).get("base_model_name_or_path")
    if not name or not Path(name).is_dir():
        remedy = f"put the base back or correct base_model_name_or_path in {ADAPTER_CONFIG}"
        raise ValueError(
            f"{adapter} is an adapter of {name!r}, which is not a folder here; {how_to_make(adapter) or remedy}"
        )
    return Path(name)


def attach(model: PreTrainedModel, adapter: Path, **options: Any) -> PeftModel:
    """`model` with the adapter of a folder; `options` are PEFT's.

    Raises ValueError where its files leave some of the adapter random, of which PEFT only warns.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")
        try:
            adapted: PeftModel = PeftModel.from_pretrained(model, adapter, **options)
        except KeyError as error:  # a module that the adapter holds whole, or its rows
            raise ValueError(
                f"{adapter} lacks the adapter's weight {error}; copy it again, or make it again"
            ) from None
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
        missing = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys() - set(file.keys())
    refuse_missing(adapter, missing, "adapter")
    return adapted


def read_record(adapter: Path) -> dict[str, Any] | None:
    """What `unified publish` wrote of an adapter's base; None where nobody has published it."""
    path = adapter / BASE_RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def how_to_make(adapter: Path) -> str:
    """The commands that make an adapter's base, as a remedy; empty where they are not known."""
    record = read_record(adapter)
    commands = " && ".join(record["made_with"]) if record else ""
    return f"make it with `{commands}`" if commands else ""


def make_record(adapter: Path, base: Path, name: str, made_with: Sequence[str]) -> dict[str, Any]:
    """What a published adapter says of its `base`, which others find at `name` after the commands `made_with`.

    Raises ValueError where `name` is another base here.
    """
    digest = base_digest(adapter, base)
    if Path(name).is_dir() and base_digest(adapter, Path(name)) != digest:
        raise ValueError(f"--base {name} is not {base}, the base of {adapter}; give a copy of that one or a new name")
    return {"base": name, "made_with": list(made_with), "digest": digest}


def check_base(adapter: Path, base: Path) -> None:
    """Raise ValueError where a published adapter was trained on other weights than those of `base`."""
    record = read_record(adapter)
    if record is None:
        return
    found = base_digest(adapter, base)
    if found != record["digest"]:
        made = how_to_make(adapter)
        raise ValueError(
            f"{base} is not the base of the adapter {adapter}: the digest of its weights is {found[:12]}, not "
            f"{record['digest'][:12]}; " + (f"move it away and {made}" if made else "put the adapter's base there")
        )


def base_digest(adapter: Path, base: Path) -> str:
    """SHA-256 of all that `adapter` leaves of `base`: names, shapes and values of weights, in any files and dtype.

    What the adapter replaces does not count: modules it holds whole, and its matrices from the first row it holds on,
    behind which there is no text. `unified extend` draws and computes these, and their last bits differ from one kind
    of CPU to the next; all else it copies. How images are ordered and placed counts, as it shows in no weight.
    """
    settings = UnifiedConfig.from_pretrained(base)
    digests: dict[str, str] = {
        "image_order": settings.image_order,
        "image_positions": name_in_version_1("image_positions", settings.image_positions),
    }
    left = rows_left(read_adapter_config(adapter))
    for path in base.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                if left(name) == 0:
                    continue
                value = file.get_tensor(name).float()  # which holds every value of the halves as it is
                value = value if left(name) is None else value[: left(name)]
                digest = hashlib.sha256(f"{tuple(value.shape)}".encode())
                digest.update(value.numpy())
                digests[name] = digest.hexdigest()
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def rows_left(config: dict[str, Any]) -> Callable[[str], int | None]:
    """Of a base's weight, by its name: how many of its first rows an adapter of `config` leaves; None: all."""
    whole = config.get("modules_to_save") or []
    rows = {matrix: min(ids) for matrix, ids in (config.get("trainable_token_indices") or {}).items()}

    def left(name: str) -> int | None:
        if any(f".{module}." in f".{name}" for module in whole):
            return 0
        return next((first for matrix, first in rows.items() if f".{name}".endswith(f".{matrix}.weight")), None)

    return left
