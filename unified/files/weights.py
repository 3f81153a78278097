"""Files of weights: whether they are whole, and hold all that a model has."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel


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


def refuse_missing(folder: str | os.PathLike, missing: Iterable[str], owner: str = "model") -> None:
    """Raise ValueError where the weights of these names are `missing` in `folder`: they would stay random."""
    names = sorted(missing)
    if names:
        raise ValueError(
            f"{folder} lacks {len(names)} of the {owner}'s weights, {names[0]} first; copy it again, or make it again"
        )


def load_whole(kind: Any, folder: str | os.PathLike, **options: Any) -> Any:
    """`kind.from_pretrained(folder, **options)` of a class or Auto class of transformers.

    Raises ValueError where the files leave a weight random.
    """
    model, report = kind.from_pretrained(folder, output_loading_info=True, **options)
    refuse_missing(folder, report["missing_keys"])
    return model


class WholeModel(PreTrainedModel):
    """A model that loads with all of its weights or not at all."""

    @classmethod
    def from_pretrained(  # type: ignore[override]  # HF spells out what goes through here
        cls, pretrained_model_name_or_path: Any, *args: Any, output_loading_info: bool = False, **kwargs: Any
    ) -> Self:
        """HF's, which only warns of weights that the files do not hold; ValueError where there are such."""
        loaded: Any = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        model, report = loaded
        refuse_missing(pretrained_model_name_or_path, report["missing_keys"])
        return loaded if output_loading_info else model
