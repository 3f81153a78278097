"""Model cards: the README.md of a checkpoint or an adapter, made of what its folder, its base and its run say.

A card that somebody has rewritten, without the line `MARK`, is left as it is.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from jinja2 import Environment, PackageLoader, StrictUndefined
from yaml import YAMLError

from unified.checkpoints.adapters import (
    ADAPTER_WEIGHTS,
    adapter_positions,
    is_adapter,
    read_adapter_config,
    read_base_record,
)
from unified.files.atomic import write_text
from unified.files.hub import hub_name
from unified.files.records import ORIGIN, RUN
from unified.files.weights import fingerprint
from unified.models.configuration import UnifiedConfig

CARD = "README.md"
MARK = "<!-- Written by unified; a card without this line is left as it is. -->"
GENERATED = (MARK, "[More Information Needed]", "# Model Card for ")  # in cards of ours, PEFT's, TRL's
RESULTS, SAMPLES = "results", "samples"  # folders of evaluations' JSONs, and of a training's pictures
LICENCE = ("license", "license_name", "license_link")
# settings of a run that change its result, where they have a value
SHOWN = """
    tuning lora_positions lora_rank lora_alpha first_trained_layer start_share train_text_rows loss_type beta
    learning_rate new_parts_learning_rate lr_scheduler_type warmup_steps weight_decay max_grad_norm
    per_device_train_batch_size gradient_accumulation_steps processes engine max_length caption_dropout
    last_scale_fraction modality_stride text_loss_weight scale_loss_weights code_noise quantize seed
""".split()


def write_card(
    folder: str | os.PathLike,
    sources: Sequence[str | os.PathLike],
    run: Mapping[str, Any] | None = None,
    name: str | None = None,
    licence: str | None = None,
) -> None:
    """Write the card of the checkpoint or adapter in `folder`.

    Args:
        sources: where it comes from, nearest first: an adapter's base, a run's start, the LLM; licence and, where
            `folder` has none, the configuration are theirs.
        run: content of run.json of the training that made it, which is kept; by default the one in `folder`.
        name: what users call it, a folder or a name of the hub; by default `folder`.
        licence: as the hub names licences, apache-2.0; by default that of the nearest source that says it.
    """
    folder, places = Path(folder), [Path(source) for source in sources]
    if run is not None and not (folder / RUN).is_file():
        named = {key: shown(value) for key, value in run.get("named", {}).items()}
        write_text(folder / ORIGIN, json.dumps({**run, "named": named}, indent=1) + "\n")
    path = folder / CARD
    if path.is_file() and not any(mark in path.read_text(encoding="utf-8") for mark in GENERATED):
        return
    known = licence_of(places) if licence is None else {"license": licence}
    write_text(path, card_of(folder, places, run or run_of(folder), name or str(folder), known))


def card_of(
    folder: Path, sources: Sequence[Path], run: Mapping[str, Any] | None, name: str, licence: Mapping[str, str]
) -> str:
    """Text of the card."""
    config = UnifiedConfig.from_pretrained(folder if (folder / "config.json").is_file() else sources[0])
    adapter = adapter_facts(folder) if is_adapter(folder) else None
    scores = list(scores_of(folder / RESULTS))
    samples, prompts = samples_of(folder, run)
    data = ModelCardData(
        **{key: licence.get(key) for key in LICENCE},  # type: ignore[arg-type]  # all are texts
        base_model=base_model_of(sources),
        library_name="transformers" if adapter is None else "peft",
        pipeline_tag="any-to-any",
        tags=["unified", "text-to-image", "image-text-to-text", *(["lora"] if adapter is not None else [])],
    )
    environment = Environment(
        loader=PackageLoader("unified.checkpoints"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("model_card.md.jinja").render(
        metadata=data.to_yaml(),
        mark=MARK,
        title=Path(name).name,
        name=Path(name).name if os.path.isabs(name) else name,
        adapter=adapter,
        config=config,
        text=config.text_config,
        tokenizer=config.vq_config,
        licence={key: licence.get(key) for key in LICENCE},
        base_model=base_model_of(sources),
        fingerprint=fingerprint(folder),
        scores=scores,
        samples=samples,
        prompts=prompts,
        prompt=prompts[0] if prompts else "a photo of a cat",
        run=None if run is None else run_facts(run),
    )


def run_of(folder: Path) -> dict[str, Any] | None:
    """How the model in a folder was trained: content of its run.json, or of that of where it comes from; or None."""
    for path in (folder / RUN, folder / ORIGIN):
        if path.is_file():
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found
    return None


def run_facts(run: Mapping[str, Any]) -> dict[str, Any]:
    """What the card says of a training: its steps, data, settings and what was changed on the way."""
    made_of, named = run["made_of"], run.get("named", {})
    settings = {key: made_of[key] for key in SHOWN if key == "seed" or made_of.get(key)}  # what is off is left out
    files = {key: shown(named.get(key, [])) for key in ("train_files", "eval_files")}
    steps = run.get("finished") or run.get("steps") or run.get("length", {}).get("max_steps")
    return {
        "steps": steps,
        "settings": settings,
        "rows": made_of.get("rows"),
        "start": shown(named.get("model", "")),
        "changes": run.get("changes", []),
        **files,
    }


def shown(value: Any) -> Any:
    """A path, or each of several, as a stranger may see it: an absolute one without the folders above its own."""
    if isinstance(value, list):
        return [shown(one) for one in value]
    return str(Path(*Path(value).parts[-2:])) if isinstance(value, str) and os.path.isabs(value) else value


def adapter_facts(folder: Path) -> dict[str, Any]:
    """What the card says of an adapter: its kind, size, base, and the commands that make the base."""
    config, record = read_adapter_config(folder), read_base_record(folder) or {}
    return {
        "kind": config["peft_type"].replace("IMAGE_LORA", "LORA"),
        "rank": config.get("r"),
        "positions": adapter_positions(folder),
        "base": shown(str(config["base_model_name_or_path"])),
        "made_with": record.get("made_with", []),
        "digest": record.get("digest"),
        "megabytes": (folder / ADAPTER_WEIGHTS).stat().st_size / 1e6,
    }


def read_card(folder: Path) -> ModelCard | None:
    """The card in a folder, None without one or where its head is no YAML of a card."""
    path = folder / CARD
    if not path.is_file():
        return None
    try:
        return ModelCard.load(path)
    except (ValueError, YAMLError):
        return None


def licence_of(sources: Iterable[Path]) -> dict[str, str]:
    """Licence as the nearest card says it, with its name and link where it has some; empty if none does."""
    for folder in sources:
        card = read_card(folder)
        data = {} if card is None else card.data.to_dict()
        if data.get("license"):
            return {key: data[key] for key in LICENCE if data.get(key)}
    return {}


def base_model_of(sources: Iterable[Path]) -> str | None:
    """Name on the hub of the nearest source that has one, or that a card of ours names."""
    for folder in sources:
        repository, card = hub_name(folder), read_card(folder)
        if repository is not None:
            return repository[0]
        named = None if card is None or MARK not in card.content else card.data.to_dict().get("base_model")
        if named:
            return str(named)
    return None


def samples_of(folder: Path, run: Mapping[str, Any] | None) -> tuple[str | None, list[str]]:
    """The newest grid of pictures, as a link from the card, and its prompts, as far as they are known."""
    found = sorted(folder.glob(f"{SAMPLES}/*.png")) or sorted(folder.glob("samples.png"))
    prompts = [] if run is None else list(run.get("named", {}).get("sample_prompts", ()))
    return (found[-1].relative_to(folder).as_posix() if found else None), prompts


def scores_of(folder: Path) -> Iterable[dict[str, Any]]:
    """Result JSONs of evaluations: metric, value, standard error, number and file."""
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(result, dict) and {"metric", "value", "n"} <= result.keys():
            yield {key: result.get(key) for key in ("metric", "value", "stderr", "n", "seed")} | {"file": path.name}
