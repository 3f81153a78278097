"""LoRA adapters on disk: their config, their base checkpoint, and whether it is the one they were trained on."""

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

from unified.files.atomic import write_text
from unified.files.hub import hub_name, is_hub_name, model_folder
from unified.files.weights import refuse_missing
from unified.models.configuration import UnifiedConfig
from unified.models.format_version import name_in_version_1, upgrade
from unified.models.position_gated_lora import IMAGE_LORA

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
BASE_RECORD = "base.json"
BASE_VARIABLE = "UNIFIED_BASE"  # for commands without a flag of their own


def is_adapter(folder: str | os.PathLike) -> bool:
    """Whether `folder` holds an adapter, not a checkpoint."""
    return (Path(folder) / ADAPTER_CONFIG).is_file()


def read_adapter_config(adapter: Path) -> dict[str, Any]:
    """Content of adapter_config.json; a plain LoRA's is PEFT's, without `format_version`."""
    path = adapter / ADAPTER_CONFIG
    stored = json.loads(path.read_text(encoding="utf-8"))
    return upgrade(stored, str(path)) if stored.get("peft_type") == IMAGE_LORA else stored


def adapter_positions(adapter: Path) -> str:
    """`lora_positions` of an adapter: all or one of `POSITIONS`."""
    config = read_adapter_config(adapter)
    return config["positions"] if config.get("peft_type") == IMAGE_LORA else "all"


def base_checkpoint(adapter: Path, base: str | os.PathLike | None = None) -> Path:
    """Checkpoint that an adapter was trained on: the folder or hub name `base`, else the one that the adapter names.

    Raises ValueError if it is nowhere, with the commands that make it if the adapter has them.
    """
    given = base or os.environ.get(BASE_VARIABLE)
    if given:
        return model_folder(given, "--base")
    name, found = base_name(adapter), found_base(adapter)
    if found is not None:
        return found
    if name and is_hub_name(name) and not build_instructions(adapter):
        revision = read_adapter_config(adapter).get("revision")
        return model_folder(f"{name}@{revision}" if revision else name, f"{adapter} is an adapter of")
    remedy = f"restore the base or correct base_model_name_or_path in {ADAPTER_CONFIG}"
    raise ValueError(
        f"{adapter} is an adapter of {name!r}, which is not a folder here; {build_instructions(adapter) or remedy}, "
        f"or say where it is: --base DIR, or {BASE_VARIABLE}=DIR"
    )


def base_name(adapter: Path) -> str | None:
    """How an adapter names its base."""
    name: str | None = read_adapter_config(adapter).get("base_model_name_or_path")
    return name


def found_base(adapter: Path) -> Path | None:
    """The folder on this machine that an adapter's base seems to be; None if there is none."""
    return next((place for place in base_places(adapter, base_name(adapter)) if place.is_dir()), None)


def base_places(adapter: Path, name: str | None) -> list[Path]:
    """Where an adapter's base `name` may lie, the surest place first.

    That is where its training found it, seen from the adapter; then `name` in the current folder, as PEFT takes it;
    then beside the adapter, and in the folders above it.
    """
    record, here = read_base_record(adapter) or {}, adapter.resolve()
    known = [here / record["from_here"]] if record.get("base") == name and "from_here" in record else []
    return known + [place / name for place in (Path(), here, *here.parents) if name]


def attach(model: PreTrainedModel, adapter: Path, **options: Any) -> PeftModel:
    """`model` with the adapter of a folder; `options` are PEFT's.

    Raises ValueError for missing weights of the adapter, of which PEFT only warns.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Found missing adapter keys")
        try:
            adapted: PeftModel = PeftModel.from_pretrained(model, adapter, **options)
        except KeyError as error:  # of `modules_to_save` or trainable token rows
            raise ValueError(
                f"{adapter} lacks the adapter's weight {error}; copy it again, or make it again"
            ) from None
    with safe_open(adapter / ADAPTER_WEIGHTS, framework="pt") as file:
        missing = get_peft_model_state_dict(adapted, save_embedding_layers=False).keys() - set(file.keys())
    refuse_missing(adapter, missing, "adapter")
    return adapted


def read_base_record(adapter: Path) -> dict[str, Any] | None:
    """`base.json` of an adapter; None for one of an earlier version that is not published."""
    path = adapter / BASE_RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def trained_chats(folder: Path, config: UnifiedConfig) -> str:
    """`chat_fingerprint` of the training of a checkpoint with this `config`, or of an adapter; empty if not known."""
    record = read_base_record(folder) if is_adapter(folder) else None
    return str(config.chat_fingerprint if record is None else record.get("chat_fingerprint", config.chat_fingerprint))


def build_instructions(adapter: Path) -> str:
    """The commands that make an adapter's base, for error messages; empty if not recorded."""
    commands = " && ".join((read_base_record(adapter) or {}).get("made_with", ()))
    return f"make it with `{commands}`" if commands else ""


def make_base_record(adapter: Path, base: Path, name: str, made_with: Sequence[str]) -> dict[str, Any]:
    """Content of a published adapter's `base.json`: path `name` of `base`, commands that make it there, its digest.

    Raises ValueError if there is another checkpoint at `name`.
    """
    digest = base_digest(adapter, base)
    if Path(name).is_dir() and base_digest(adapter, Path(name)) != digest:
        raise ValueError(f"--base {name} is not {base}, the base of {adapter}; give a copy of that one or a new name")
    known = read_base_record(adapter) or {}
    chats = {key: known[key] for key in ("chat_fingerprint",) if key in known}
    return {"base": name, "made_with": list(made_with), "digest": digest, **chats}


def name_base(
    adapter: Path, base: Path, chat_fingerprint: str, made_with: Sequence[str] = (), digest: str | None = None
) -> str:
    """Write which `base` the adapter in a folder was trained on, and with which `chat_fingerprint`.

    That is where it is seen from there, and its digest.

    A base from the hub's cache is named as the hub does, with its revision. Returns the digest, which the next call
    may be given.
    """
    digest, path = digest or base_digest(adapter, base), adapter / ADAPTER_CONFIG
    config, repository = json.loads(path.read_text(encoding="utf-8")), hub_name(base)
    record: dict[str, Any] = {"base": config["base_model_name_or_path"], "made_with": list(made_with)}
    record |= {"chat_fingerprint": chat_fingerprint}
    if repository is not None:
        record["base"], config["revision"] = repository
        config["base_model_name_or_path"] = record["base"]
        write_text(path, json.dumps(config, indent=2) + "\n")
    else:
        record["from_here"] = os.path.relpath(base.resolve(), adapter.resolve())
    write_text(adapter / BASE_RECORD, json.dumps(record | {"digest": digest}, indent=2) + "\n")
    return digest


def move_base_record(adapter: Path, copy: Path) -> None:
    """Have the `copy` of an adapter's `base.json` say where the base is seen from there."""
    record = read_base_record(adapter)
    if record is not None and "from_here" in record:
        place = adapter.resolve() / record["from_here"]
        record["from_here"] = os.path.relpath(place, copy.resolve())
        write_text(copy / BASE_RECORD, json.dumps(record, indent=2) + "\n")


def check_base(adapter: Path, base: Path) -> None:
    """Raise ValueError if an adapter with a record was trained on other weights than those of `base`."""
    record = read_base_record(adapter)
    if record is None:
        return
    found = base_digest(adapter, base)
    if found != record["digest"]:
        instructions = build_instructions(adapter)
        raise ValueError(
            f"{base} is not the base of the adapter {adapter}: the digest of its weights is {found[:12]}, not "
            f"{record['digest'][:12]}; "
            + (f"move it away and {instructions}" if instructions else "use the adapter's base")
        )


def base_digest(adapter: Path, base: Path) -> str:
    """SHA-256 of the weights of `base` that `adapter` does not replace: names, shapes, values, in any files and dtype.

    Excluded are `modules_to_save` and matrices from the first trainable token row on, after which there is no text:
    `unified extend` samples and computes these, and their last bits depend on the CPU; all other weights it copies.
    `image_order` and `image_positions` are included, as they do not show in any weight.
    """
    settings = UnifiedConfig.from_pretrained(base)
    digests: dict[str, str] = {
        "image_order": settings.image_order,
        "image_positions": name_in_version_1("image_positions", settings.image_positions),
    }
    rows_of = kept_rows(read_adapter_config(adapter))
    if not any(base.glob("*.safetensors")):
        raise ValueError(f"{base} has no *.safetensors, which a base needs; load it and save it with save_pretrained")
    for path in base.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():
                if rows_of(name) == 0:
                    continue
                value = file.get_tensor(name).float()  # exact for bfloat16 and float16
                value = value if rows_of(name) is None else value[: rows_of(name)]
                digest = hashlib.sha256(f"{tuple(value.shape)}".encode())
                digest.update(value.numpy())
                digests[name] = digest.hexdigest()
    return hashlib.sha256(json.dumps(digests, sort_keys=True).encode()).hexdigest()


def kept_rows(config: dict[str, Any]) -> Callable[[str], int | None]:
    """Maps a base weight's name to the number of its first rows that an adapter of `config` keeps; None: all."""
    replaced = config.get("modules_to_save") or []
    rows = {matrix: min(ids) for matrix, ids in (config.get("trainable_token_indices") or {}).items()}

    def rows_of(name: str) -> int | None:
        if any(f".{module}." in f".{name}" for module in replaced):
            return 0
        return next((first for matrix, first in rows.items() if f".{name}".endswith(f".{matrix}.weight")), None)

    return rows_of
