"""What a demo is fine-tuned on: new objects as people bring their own images, and Scenes, both as rows with codes."""

from collections.abc import Sequence
from pathlib import Path

from unified.data.captions import CaptionArguments, write_conversations
from unified.data.encoding import EncodeArguments, encode_rows
from unified.reports.demo import Demo
from unified.scenes.dataset import SceneArguments, render
from unified.scenes.object_folder import ObjectArguments, render_objects

WORDINGS = ["{}", "Draw {}."]  # captions of the objects already are phrases such as "a picture of a star"


def render_new_objects(demo: Demo) -> None:
    """A folder of images with captions, the prompts that ask for them, and conversations about them."""
    args, folder = demo.args, demo.out / "objects"
    render_objects(ObjectArguments(str(folder), seed=args.seed, prompts=str(demo.out / "new.jsonl")))
    rows = str(demo.out / "objects.jsonl")
    write_conversations(
        CaptionArguments(str(folder), rows, repeat=args.repeat, wordings=list(WORDINGS), seed=args.seed)
    )


def encode_new_objects(demo: Demo) -> None:
    """Codes in place of the images of `render_new_objects`."""
    encode(demo, [demo.out / "objects.jsonl"], "objects")


def render_scenes(demo: Demo, split: str, count: int, seed: int) -> None:
    """Scenes and conversations about them; `split` names the folder."""
    args = demo.args
    render(
        SceneArguments(
            str(demo.out / f"scenes_{split}"),
            count,
            seed,
            layout=args.layout,
            classes=",".join(args.classes),
            colours=",".join(args.colours),
            tags=args.tags,
            kinds=args.kinds,
            preview=str(demo.out / f"scenes_{split}.png"),
        )
    )


def encode_scenes(demo: Demo, split: str) -> None:
    """Codes in place of the images of `render_scenes`."""
    encode(demo, sorted((demo.out / f"scenes_{split}").glob("*.parquet")), split)


def encode(demo: Demo, rows: Sequence[Path], name: str) -> None:
    """The images of rows as codes."""
    encode_rows(EncodeArguments(demo.args.vq, str(demo.out / f"encoded_{name}"), list(map(str, rows))))
