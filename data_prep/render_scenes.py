"""Render the Scenes data set: GenEval's six tasks as pictures and conversations, in parquet shards.

    python data_prep/render_scenes.py --out data/scenes --count 20000 --seed 1
    python data_prep/render_scenes.py --out data/scenes_heldout --count 2000 --seed 2 --split heldout --kinds draw:1
    python data_prep/render_scenes.py --out data/eight --count 4000 --classes "apple,banana,bear,book,car,cat,cup,dog"
    python data_prep/render_scenes.py --out data/scenes --count 20000 --seed 1 --preview scenes.png

One process; about 1 ms an image. Every row depends on --seed, its shard and its place alone: a run that was stopped
goes on where it stopped, and gives the same bytes. DIR/settings.json records DIR's settings; others are refused.
Rows: `messages` (Hugging Face parts), `images` (PNG bytes), `metadata` (GenEval's form plus every object's class,
colour and box, as JSON), `source`. Glyphs: OpenMoji 17, CC BY-SA 4.0 (keep the attribution when you share images).
"""

from unified.arguments.parser import parse, run_main
from unified.scenes.dataset import SceneArguments, render


def main() -> None:
    (args,) = parse((SceneArguments,))
    render(args)


if __name__ == "__main__":
    run_main(main)
