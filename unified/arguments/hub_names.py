"""Names of the Hugging Face hub as values of flags and YAML keys: downloaded, or found in the cache."""

from dataclasses import fields
from typing import Any

from unified.arguments.fields import LABEL

MODELS = ("model", "llm", "base", "vq")
DATA = ("train_files", "eval_files", "inputs", "pairs")


def find_on_hub(settings: Any) -> None:
    """Replace `ORG/NAME` in a dataclass's fields of models and data by the folder or files; others stay as they are.

    Raises ValueError as `unified.files.hub.model_folder` and `data_files`.
    """
    labels = {known.name for known in fields(settings) if known.metadata.get(LABEL)}
    for name, value in list(vars(settings).items()):
        values = value if isinstance(value, list) else [value]
        if (
            name in labels
            or name not in (*MODELS, *DATA)
            or not any(isinstance(one, str) and "/" in one for one in values)
        ):
            continue
        from unified.files.hub import data_files, model_folder  # slow to import

        if name in DATA:
            found = [file for one in values for file in data_files(one, f"--{name}")]
            setattr(settings, name, found if isinstance(value, list) else found[0])
        else:
            setattr(settings, name, str(model_folder(value, f"--{name}")))
