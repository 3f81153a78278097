"""Files of weights: whether they are whole."""

from pathlib import Path

from safetensors import SafetensorError, safe_open


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
