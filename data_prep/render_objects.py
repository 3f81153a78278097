"""Render `make demo`'s "your own pictures": objects that no model trained on Scenes was trained on, with captions.

    python data_prep/render_objects.py --out data/objects
    python data_prep/render_objects.py --out data/objects --colours red,blue --no_pairs --prompts data/objects.jsonl
    python data_prep/render_objects.py --out data/few --count 12 --seed 1

Written is what people have: a folder of PNG files, 64x64, with a `metadata.jsonl` in the form of Hugging Face's
imagefolder, several captions a picture. Each of six objects comes once in its natural colours, once in each of
--colours, and any two of them side by side in both orders. --count keeps so many of these pictures: first the six
natural ones, then others by --seed. `objects` in metadata.jsonl says what a picture shows, for eval/nearest_object.py.
Captions alone are what data_prep/convert_captions.py reads.

--prompts writes test prompts for a model fine-tuned on the folder: all six objects, natural and in all ten colours,
and all pairs, also those that the folder does not show; a JSONL for eval/generate_images.py.
Glyphs: OpenMoji 17, CC BY-SA 4.0 (keep the attribution when you share pictures).
"""

import json

from unified.arguments.parser import parse, run_main
from unified.scenes.glyphs import NEW_OBJECTS
from unified.scenes.object_folder import ObjectArguments, render_objects


def main() -> None:
    (args,) = parse((ObjectArguments,))
    pictures, prompts = render_objects(args)
    print(json.dumps({"out": args.out, "pictures": pictures, "objects": list(NEW_OBJECTS), "prompts": prompts}))


if __name__ == "__main__":
    run_main(main)
