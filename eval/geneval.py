"""Score a folder of generated images by GenEval's rules (arXiv:2310.11513), on a current Python, without mmdet.

    python eval/geneval.py --images out/geneval --detector scenes --out results/geneval.json
    python eval/geneval.py --images out/geneval --detector coco --out results/geneval.json
    python eval/geneval.py --images out/geneval --detector coco --coco_model MASK2FORMER_DIR --clip_model CLIP_DIR \\
        --prompts evaluation_metadata.jsonl --images_per_prompt 4 --out results/geneval.json

The folder is what eval/generate_images.py, or any generator with GenEval's layout, has written. `scenes` is for Scenes
(see its own ceiling: eval/detector_ceiling.py); `coco` is GenEval's detector with CLIP's colours, for photographs.
Detections go to IMAGES/detections.jsonl before any threshold: a run that was stopped goes on, and a run with other
rules (--counting_threshold 0.8; the published numbers are the defaults) only counts anew. IMAGES/results.jsonl has
GenEval's own keys for every image. Prints the score as one JSON, and a table to stderr. A folder with missing,
superfluous or broken files is refused, and the file named.
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import sys

from unified.arguments.parser import parse, run_main
from unified.evaluation.detections import DetectionArguments
from unified.evaluation.geneval import GenevalArguments, score_folder, table
from unified.evaluation.metrics import GenevalRules
from unified.hardware.arguments import HardwareArguments
from unified.hardware.setup import set_up
from unified.reports.endings import end_evaluation


def main() -> None:
    hardware, args, detection, rules = parse((HardwareArguments, GenevalArguments, DetectionArguments, GenevalRules))
    set_up(hardware)
    result = score_folder(args, detection, rules)
    sys.stderr.write(table(result))
    end_evaluation(result, args.out)


if __name__ == "__main__":
    run_main(main)
