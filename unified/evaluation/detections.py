"""Detections: the form every detector returns, how a detector is loaded, and its detections on disk.

Detections are kept before any threshold, so that rules can be changed without detecting again.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from unified.evaluation.coco_detector import CLASS_NAMES, CLIP, DETECTOR, CocoDetector, CocoSettings
from unified.evaluation.detector import DetectorConfig, SceneDetector
from unified.files.atomic import write_text
from unified.hardware.device import best_device

SCENES_WEIGHTS = "weights/scenes-detector"

# class -> [x1, y1, x2, y2, score, index into metrics.GENEVAL_COLOURS] of every box, in pixels of the image
Detections = dict[str, list[list[float]]]


class Detector(Protocol):
    """Finds objects of known classes and names their colours."""

    name: str

    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        """Detections of every image, in order; images may differ in size."""
        ...


@dataclass
class DetectionArguments:
    """Which detector finds objects in the images."""

    detector: str = field(
        default="scenes",
        metadata={"help": "scenes: ours, for Scenes; coco: GenEval's, for photographs; or a folder of a trained one"},
    )
    coco_model: str = field(default=DETECTOR, metadata={"help": "coco: Mask2Former's folder or hub id"})
    clip_model: str = field(default=CLIP, metadata={"help": "coco: folder or hub id of the CLIP that names colours"})
    detect_batch_size: int = field(default=32, metadata={"help": "images the detector gets at once"})

    def __post_init__(self) -> None:
        if self.detect_batch_size < 1:
            raise ValueError(f"detect_batch_size={self.detect_batch_size} must be at least 1; 32 is the default")
        if self.detector != "coco" and (self.coco_model, self.clip_model) != (DETECTOR, CLIP):
            raise ValueError(f"--coco_model and --clip_model belong to --detector coco, not {self.detector!r}")

    def load(self) -> Detector:
        """The detector; raises ValueError as `load_detector` does."""
        return load_detector(self.detector, self.coco_model, self.clip_model)

    def identity(self) -> dict[str, Any]:
        """What detections depend on: kind, settings and weights, local ones by their SHA-256, without loading them."""
        if self.detector != "coco":
            return {"detector": "scenes", "weights": checkpoint_digest(scenes_folder(self.detector))}
        names = {"coco_model": self.coco_model, "clip_model": self.clip_model}
        models = {key: checkpoint_digest(Path(n)) if Path(n).is_dir() else n for key, n in names.items()}
        return {"detector": "coco", **models, **dataclasses.asdict(CocoSettings())}

    def class_names(self) -> list[str]:
        """Classes the detector can find at all."""
        if self.detector == "coco":
            return list(CLASS_NAMES)
        return json.loads((scenes_folder(self.detector) / "config.json").read_text(encoding="utf-8"))["class_names"]


def load_detector(name: str = "scenes", coco_model: str = DETECTOR, clip_model: str = CLIP) -> Detector:
    """`scenes`, a folder with a Scenes detector's weights, or `coco`: Mask2Former with CLIP's colours.

    `coco_model` and `clip_model` are folders or hub ids. The detector is on the best device there is.
    Raises ValueError for another name and where weights are missing.
    """
    if name == "coco":
        return CocoDetector.load(coco_model, clip_model)
    detector = SceneDetector.from_pretrained(scenes_folder(name)).eval()
    return detector.to(best_device())  # type: ignore[arg-type]  # HF wraps nn.Module.to


def scenes_folder(name: str) -> Path:
    """Folder of the Scenes detector that `name` stands for. Raises ValueError where there is none."""
    folder = Path(SCENES_WEIGHTS if name == "scenes" else name)
    config = folder / "config.json"
    kind = json.loads(config.read_text(encoding="utf-8")).get("model_type") if config.is_file() else None
    if kind != DetectorConfig.model_type or not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"detector {name!r}: {folder} holds no trained Scenes detector; choose coco, scenes (from the "
            "repository's folder), or a folder that recipes/train_detector.py has written"
        )
    return folder


def checkpoint_digest(folder: Path) -> str:
    """`sha256:` over a checkpoint's configuration and weights."""
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("config.json"), *folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(path.name.encode())
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


class DetectionLog:
    """Detections of files in a JSONL file that grows: a first line that says who detected, then a line an image.

    A job that was stopped opens it again and goes on. An image is known by its name and its content, so that another
    image of the same name is detected anew.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Opens the log of `identity`'s detector, or begins it.

        Raises ValueError for a log of another detector, and for one that is damaged before its last line.
        """
        self.path = path
        self._found: dict[str, tuple[str, Detections]] = {}
        identity = json.loads(json.dumps(dict(identity)))  # as a file gives it back
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        if lines and not lines[-1].endswith("\n"):
            lines.pop()  # the job was killed while it wrote
        if not lines:
            lines = [json.dumps(identity) + "\n"]
        self._read(lines, identity)
        write_text(path, "".join(lines))

    def _read(self, lines: list[str], identity: Mapping[str, Any]) -> None:
        try:
            header, *entries = map(json.loads, lines)
            header = {**header}  # a TypeError for what is no object
            self._found = {entry["filename"]: (entry["sha256"], entry["detections"]) for entry in entries}
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f"{self.path} is no file of detections, or damaged; delete it to detect again") from None
        for key in {**header, **identity}:
            if header.get(key) != identity.get(key):
                raise ValueError(
                    f"{self.path} was made with {key} {header.get(key)!r}, not {identity.get(key)!r}; "
                    "give another --detections or delete it"
                )

    def has(self, filename: str, sha256: str) -> bool:
        """Whether there are detections of this very image."""
        return filename in self._found and self._found[filename][0] == sha256

    def found(self, filename: str) -> Detections:
        """The latest detections of this image."""
        return self._found[filename][1]

    def add(self, filenames: Sequence[str], digests: Sequence[str], detections: Sequence[Detections]) -> None:
        """Keep a batch's detections, in memory and on disk."""
        entries = list(zip(filenames, digests, detections, strict=True))
        self._found |= {name: (digest, found) for name, digest, found in entries}
        with open(self.path, "a", encoding="utf-8") as file:
            for name, digest, found in entries:
                file.write(json.dumps({"filename": name, "sha256": digest, "detections": found}) + "\n")
