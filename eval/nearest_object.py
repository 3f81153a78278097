"""Score images of objects that no detector was trained on, with a nearest-neighbour classifier.

    python data_prep/render_objects.py --out data/objects --prompts data/objects_prompts.jsonl
    python eval/generate_images.py --model out/mine --prompts data/objects_prompts.jsonl --out out/drawn_objects
    python eval/nearest_object.py --images out/drawn_objects --objects data/objects --out results/nearest_object.json

For models fine-tuned on data_prep/render_objects.py, whose images have one object in the middle or two side by side.
An image is right when the nearest of all reference images (the 68 classes of Scenes and those in --objects, natural
and in ten colours, as rendered and as the image tokenizer --vq reconstructs them) is of the class that was asked for,
clearly nearer than any other and near enough; with a colour, the nearest of the ten must be the one asked for; of two
objects, both must be there, in either order. `unified.scenes.nearest_object` has the rules. A right object elsewhere
counts as wrong.

Printed, and written to --out, is one JSON:

    value, stderr, n   share of images that are right; the images of a prompt are correlated
    tasks              the same for every task; `taught` the same for prompts of which --objects has an image, and for
                       the others
    confusion          predictions for the wrong ones, by prompt
    thresholds         greatest distance that counts, in grey levels, for one object and for either of two
    ceiling            the same score for true images of these prompts, reconstructed by the tokenizer: as they are (a
                       perfect image generator draws exactly these), and moved by one pixel, as no reference is: how
                       far the tokenizer, which was not trained on these objects either, can blur a right one
    false_positive     share of true images of other objects that count as the one asked for, moved likewise
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import sys

from unified.arguments.parser import parse, run_main
from unified.hardware.arguments import HardwareArguments
from unified.hardware.setup import set_up
from unified.reports.endings import end_evaluation
from unified.scenes.nearest_object_score import NearestArguments, score_folder, table


def main() -> None:
    hardware, args = parse((HardwareArguments, NearestArguments))
    set_up(hardware)
    result = score_folder(args)
    sys.stderr.write(table(result))
    end_evaluation(result, args.out)


if __name__ == "__main__":
    run_main(main)
