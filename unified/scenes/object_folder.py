"""A folder of images with captions, as people bring their own, of objects that Scenes has not."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from unified.arguments.needs import Needs, WithNeeds
from unified.data.mixtures import read_names
from unified.data.rows import init_output_folder
from unified.files.atomic import write_text
from unified.files.images import write_image
from unified.scenes.glyphs import COLOURS, NEW_OBJECTS
from unified.scenes.new_objects import captions, new_object_scenes
from unified.scenes.prompts import write_prompts
from unified.scenes.rendering import Scene, check_names, draw_scene, named


@dataclass
class ObjectArguments(WithNeeds):
    """What is rendered."""

    NEEDS = (Needs("seed", lambda args: args.count, "all pictures are kept; give --count", "count"),)

    out: str = field(metadata={"help": "folder of the pictures; created if missing"})
    colours: str = field(
        default="red,yellow,green,blue", metadata={"help": "comma-separated colours shown beside the natural ones"}
    )
    pairs: bool = field(default=True, metadata={"help": "also two objects side by side"})
    count: int = field(default=0, metadata={"help": "pictures, at least the six natural ones; 0: all there are"})
    seed: int = field(default=0, metadata={"help": "which pictures --count keeps"})
    prompts: str | None = field(default=None, metadata={"help": "JSONL for the test prompts"})

    def __post_init__(self) -> None:
        check_names("colour", self.colour_names, COLOURS)
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed} must not be negative; give 0 or more")

    @property
    def colour_names(self) -> list[str]:
        """Each once, in the order given."""
        return read_names(self.colours)


def render_objects(args: ObjectArguments) -> tuple[int, int]:
    """Write the images with their captions, and the prompts if asked; how many there are of both.

    Raises ValueError as `chosen`, and for a folder of other settings.
    """
    scenes = chosen(args)
    settings = asdict(args)
    del settings["prompts"], settings["out"]
    folder = init_output_folder(args.out, settings)
    for scene in scenes:
        write_image(draw_scene(scene), folder / file_name(scene))
    write_text(folder / "metadata.jsonl", "".join(map(line, scenes)))
    asked = new_object_scenes(tuple(COLOURS), pairs=True)
    if args.prompts is not None:
        write_prompts(Path(args.prompts), [scene.metadata for scene in asked])
    return len(scenes), 0 if args.prompts is None else len(asked)


def chosen(args: ObjectArguments) -> list[Scene]:
    """The scenes to render. Raises ValueError for a --count below one image an object or above all there are."""
    scenes, natural = new_object_scenes(args.colour_names, args.pairs), len(NEW_OBJECTS)
    if args.count == 0:
        return scenes
    if not natural <= args.count <= len(scenes):
        raise ValueError(
            f"--count {args.count}; give {natural} (every object once) to {len(scenes)} (all that these colours and "
            "pairs make), or 0 for all"
        )
    others = np.random.default_rng(args.seed).permutation(np.arange(natural, len(scenes)))
    kept = sorted([*range(natural), *others[: args.count - natural].tolist()])
    return [scenes[index] for index in kept]


def file_name(scene: Scene) -> str:
    """`star.png`, `red_star.png`, `star_and_key.png`."""
    return "_and_".join(named(item) for item in scene.metadata["include"]).replace(" ", "_") + ".png"


def line(scene: Scene) -> str:
    """The image's line in metadata.jsonl; `text` is the column of captions."""
    objects = [{"class": item.class_name, "color": item.colour} for item in scene.objects]
    return json.dumps({"file_name": file_name(scene), "text": captions(scene), "objects": objects}) + "\n"
