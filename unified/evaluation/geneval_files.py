"""GenEval's files: prompt sets, and folders of the images that were made from them.

A prompt set is JSONL, a prompt's metadata a line. A folder has `00000/metadata.jsonl` (one line of the set) and
`00000/samples/0000.png`, `0001.png` and so on for every prompt, numbered from 0 without gaps.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified.evaluation.metrics import check_geneval_metadata
from unified.files.image_integrity import check_whole
from unified.files.jsonl import parse_object, read_lines

PROMPT_SET = "prompts.jsonl"  # in a folder: the set it was made from, by eval/generate_images.py
# what may lie beside `samples`; grid.png is the published generator's
BESIDE_SAMPLES = ("metadata.jsonl", "samples", "seeds.json", "grid.png")


@dataclass(frozen=True)
class Sample:
    """One image of a prompt: where it lies, its name within the folder, and what it should show."""

    path: Path
    name: str
    metadata: dict[str, Any]


def read_captions(path: str | Path) -> list[dict[str, Any]]:
    """Objects of a JSONL with a `prompt` each, whatever else they hold; ValueError names the line that is none."""
    if not Path(path).is_file():
        raise ValueError(f"--prompts {path} is not a file; give a JSONL with a `prompt` in every line")
    prompts: list[dict[str, Any]] = []
    for number, metadata in read_lines(path):
        text = metadata.get("prompt")
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f'{path}:{number}: no prompt; write {{"prompt": "..."}}')
        prompts.append(metadata)
    if not prompts:
        raise ValueError(f"--prompts {path} is empty; write a prompt a line")
    return prompts


def read_prompts(path: str | Path, plain: bool = False) -> list[dict[str, Any]]:
    """Metadata of every prompt of a set; `plain`: a prompt is enough.

    Raises ValueError naming file and line where one is not in GenEval's form, or without a prompt.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} is not a file; give a JSONL of prompts, see eval/write_prompts.py")
    prompts = [_checked(metadata, f"{path}:{number}", plain) for number, metadata in read_lines(path)]
    if not prompts:
        raise ValueError(f"{path} holds no prompts; write one with eval/write_prompts.py")
    return prompts


def _checked(metadata: dict[str, Any], where: str, plain: bool) -> dict[str, Any]:
    if not plain:
        try:
            check_geneval_metadata(metadata)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
    prompt = metadata.get("prompt")
    if not isinstance(prompt, str) or (plain and not prompt.strip()):
        raise ValueError(f"{where}: no `prompt`; write what the image is asked for with")
    return metadata


def read_settings(folder: str | Path) -> dict[str, Any]:
    """How a folder's images were made, as eval/generate_images.py says; empty where others made them."""
    path = Path(folder) / "settings.json"
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError):
        raise ValueError(f"{path} is no JSON object; delete it, or generate the folder again") from None


def read_folder(
    folder: str | Path,
    per_prompt: int | None = None,
    prompts: Sequence[dict[str, Any]] | None = None,
    plain: bool = False,
) -> list[Sample]:
    """Every image of a folder in GenEval's layout, in order.

    Args:
        per_prompt: images every prompt must have; None: as `settings.json` says, else as many as the first one has.
        prompts: the set the folder was made from, which it must match prompt by prompt; None: as `PROMPT_SET` says.
        plain: whether prompts may lack GenEval's metadata of what an image should show.

    Raises ValueError naming the file or folder that is missing, does not belong there or does not match.
    """
    folders = _prompt_folders(Path(folder))
    per_prompt = per_prompt or read_settings(folder).get("samples")
    if prompts is None and Path(folder, PROMPT_SET).is_file():
        prompts = read_prompts(Path(folder, PROMPT_SET), plain)
    if prompts is not None and len(prompts) != len(folders):
        raise ValueError(f"{folder} has {len(folders)} prompts, its prompt set {len(prompts)}; generate the rest")
    samples: list[Sample] = []
    for index, path in enumerate(folders):
        metadata = _read_metadata(path, None if prompts is None else prompts[index], plain)
        images = _images(path)
        per_prompt = per_prompt or len(images)
        if len(images) != per_prompt:
            raise ValueError(f"{path / 'samples'} has {len(images)} images instead of {per_prompt}; generate the rest")
        samples += [Sample(image, image.relative_to(folder).as_posix(), metadata) for image in images]
    return samples


def _prompt_folders(root: Path) -> list[Path]:
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; give the --out of eval/generate_images.py")
    for path in root.glob("*.partial"):
        if path.is_dir():
            raise ValueError(f"{path} is half-written; let eval/generate_images.py finish, or delete it")
    folders = {path.name: path for path in root.iterdir() if path.is_dir() and path.name.isdecimal()}
    if not folders:
        raise ValueError(f"{root} has no prompt folders 00000, 00001, ...; give the --out of eval/generate_images.py")
    return _numbered(folders, root, 5, "")


def _numbered(paths: dict[str, Path], parent: Path, digits: int, suffix: str) -> list[Path]:
    """Paths by name in the order of their numbers, which must be 0, 1, 2, ..."""
    ordered = sorted(paths, key=lambda name: (int(name.removesuffix(suffix)), name))
    for number, name in enumerate(ordered):
        if int(name.removesuffix(suffix)) != number:
            missing = parent / f"{number:0{digits}d}{suffix}"
            raise ValueError(
                f"{missing} is missing, or {parent / name} does not belong there; generate it, or move it"
            )
    return [paths[name] for name in ordered]


def _read_metadata(folder: Path, wanted: dict[str, Any] | None, plain: bool) -> dict[str, Any]:
    path = folder / "metadata.jsonl"
    if not path.is_file():
        raise ValueError(f"{path} is missing; generate the folder again")
    metadata = _checked(parse_object(path.read_bytes(), str(path)), str(path), plain)
    if wanted is not None and metadata != wanted:
        raise ValueError(
            f"{path} asks for {metadata['prompt']!r}, line {int(folder.name) + 1} of the prompt set for "
            f"{wanted['prompt']!r}; give the set that the images were made from"
        )
    return metadata


def _images(folder: Path) -> list[Path]:
    for path in folder.iterdir():
        if path.name not in BESIDE_SAMPLES:
            raise ValueError(f"{path} does not belong there; move it (a prompt's images lie in `samples`)")
    samples = folder / "samples"
    images = {path.name: path for path in samples.iterdir()} if samples.is_dir() else {}
    for name, path in images.items():
        if path.suffix != ".png" or not path.stem.isdecimal() or not path.is_file():
            raise ValueError(f"{samples / name} is no sample; move it (samples are 0000.png, 0001.png, ...)")
    if not images:
        raise ValueError(f"{samples} has no images; generate them")
    _check_seeds(folder / "seeds.json", len(images))
    return _numbered(images, samples, 4, ".png")


def _check_seeds(path: Path, images: int) -> None:
    if not path.exists():  # the file is ours alone
        return
    try:
        count = len(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError):
        raise ValueError(f"{path} is no JSON list of seeds; generate the prompt's folder again") from None
    if count != images:
        raise ValueError(f"{path} has {count} seeds for {images} images; generate the prompt's folder again")


def check_image(path: Path) -> str:
    """SHA-256 of a PNG that is whole by its checksums. Raises ValueError naming one that is not."""
    data = path.read_bytes()
    try:
        check_whole(data, "PNG")
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's three ways to say that a PNG is broken
        raise ValueError(f"{path} is not a whole PNG ({error}); delete it and generate it again") from None
    return hashlib.sha256(data).hexdigest()
