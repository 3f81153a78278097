"""Names of the Hugging Face hub where a folder is expected: `ORG/NAME` or `ORG/NAME@REVISION`.

Downloads, caches, tokens and offline mode are `huggingface_hub`'s, splits of data sets those that `datasets` finds.
"""

import os
import re
import sys
from pathlib import Path
from textwrap import shorten
from typing import Any

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[\w.-]+?)(?:@([\w./-]+))?")
_OURS = ("out", "data", "results", "weights", "recipes", "data_prep", "eval")  # folders of this repository's commands
_DATA = (".jsonl", ".parquet")
MODEL_FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "*.txt", "*.tiktoken", "README.md")
DATA_FILES = ("*.md", "*.parquet", "*.jsonl", "*.png", "*.jpg", "*.jpeg", "*.webp")
# the last is the HTTP client's own base class, of whose errors only some are OSErrors
_UNREACHABLE: tuple[type[Exception], ...] = (OSError, *HfHubHTTPError.__bases__)
TIMEOUT = 10  # seconds until a hub that does not answer cannot be reached


def is_hub_name(name: str | os.PathLike) -> bool:
    """Whether `name` can only be the hub's: `ORG/NAME`, and neither a path that is here nor in a folder of ours."""
    text = os.fspath(name)
    org = text.split("/")[0]
    if not _NAME.fullmatch(text) or text.endswith(_DATA) or org in _OURS:
        return False
    return not Path(text).exists() and not Path(org).is_dir()


def model_folder(name: str | os.PathLike, flag: str = "") -> Path:
    """The folder `name`, or the one into which the hub's model of that name was downloaded; `flag` begins errors.

    Raises ValueError, in one line, if the hub cannot be reached and its cache has no copy, or has no such repository.
    """
    return download(os.fspath(name), "model", flag, MODEL_FILES) if is_hub_name(name) else Path(name)


def hub_name(folder: str | os.PathLike) -> tuple[str, str] | None:
    """`ORG/NAME` and the commit of a model's folder in the hub's cache; None for other folders."""
    match = re.search(r"/models--([^/]+)--([^/]+)/snapshots/([^/]+)$", Path(folder).resolve().as_posix())
    return None if match is None else (f"{match[1]}/{match[2]}", match[3])


def data_files(name: str, flag: str = "") -> list[str]:
    """`name` itself, or the files of the split `train` of the hub's data set of that name.

    Raises ValueError as `model_folder`, and for a data set without rows in parquet or JSONL.
    """
    if not is_hub_name(name):
        return [name]
    folder = download(name, "dataset", flag, DATA_FILES)
    from datasets import load_dataset_builder  # slow to import
    from datasets.exceptions import DatasetNotFoundError

    try:
        found = load_dataset_builder(str(folder)).config.data_files or {}
    except (DatasetNotFoundError, FileNotFoundError, ValueError):
        found = {}
    files = [str(file) for file in found.get("train", ()) if str(file).endswith(_DATA)]
    if not files:
        raise ValueError(
            f"{flag} {name}".strip()
            + f" has no split `train` in parquet or JSONL ({folder}); convert it, for instance "
            "with data_prep/convert_captions.py"
        )
    return files


def upload(folder: str | os.PathLike, name: str) -> str:
    """Put a folder on the hub as the model `name`, private where it is new; returns its address.

    Raises ValueError, in one line, without a login, where the hub refuses it, or cannot be reached.
    """
    remedy = f"log in with `hf auth login`, then: hf upload {name} {folder}"
    try:
        hub = HfApi()
        hub.create_repo(name, private=True, exist_ok=True)
        return str(hub.upload_folder(repo_id=name, folder_path=str(folder)).commit_url)
    except HFValidationError as error:
        raise ValueError(f"{name} is no name of the hub ({error}); give ORG/NAME") from None
    except _UNREACHABLE as error:
        reason = shorten(" ".join(str(error).split()) or type(error).__name__, 90, placeholder="...")
        raise ValueError(f"{folder} is written but not on the hub ({reason}); {remedy}") from None


def download(name: str, kind: str, flag: str, patterns: tuple[str, ...]) -> Path:
    """The cached snapshot of a repository of the hub, brought up to date where the hub can be reached."""
    match = _NAME.fullmatch(name)
    assert match, f"{name} is no name of the hub"
    repository, revision = match[1], match[2]
    start = f"{flag} {name}".strip()
    options: dict[str, Any] = {"repo_type": kind, "allow_patterns": list(patterns)}
    try:
        commit = HfApi().repo_info(repository, repo_type=kind, revision=revision, timeout=TIMEOUT).sha
        sys.stderr.write(f"{start}: revision {str(commit)[:8]} of the hub; what the cache lacks is downloaded\n")
        return Path(snapshot_download(repository, revision=commit, etag_timeout=TIMEOUT, **options))
    except HFValidationError as error:
        raise ValueError(f"{start} is no folder here, and no name of the hub: {error}") from None
    except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError) as error:
        raise ValueError(
            f"{start} is no folder here and not open on the hub ({type(error).__name__}); check the name, or log in "
            "with `hf auth login`"
        ) from None
    except _UNREACHABLE as error:
        reason = shorten(" ".join(str(error).split()) or type(error).__name__, 70, placeholder="...")
    try:
        return Path(snapshot_download(repository, revision=revision, local_files_only=True, **options))
    except LocalEntryNotFoundError:
        arguments = f"{repository}{' --repo-type dataset' if kind == 'dataset' else ''}"
        arguments += f" --revision {revision}" if revision else ""
        raise ValueError(
            f"{start} is no folder here and the hub cannot be reached ({reason}); where it can, run: hf download "
            f"{arguments} --local-dir DIR"
        ) from None
