"""Generate images for every prompt of a file, into GenEval's folder layout; the scorers then read the folder.

    python eval/generate_images.py --model out/sft --prompts evaluation_metadata.jsonl \\
        --out out/geneval --guidance_scale 3
    accelerate launch --num_processes 8 eval/generate_images.py --model out/sft --prompts evaluation_metadata.jsonl \\
        --out out/geneval --guidance_scale 3

Prompts are JSONL with a `prompt` in every line; whatever else is there (GenEval's tag, include, exclude) goes with it.
Written are `OUT/00000/metadata.jsonl` (the prompt's line), `OUT/00000/samples/0000.png` and so on, as GenEval's own
scorer reads them, and beside them `OUT/00000/seeds.json` (the seed of every picture) and `OUT/settings.json` (model,
sampling, seed: a run with others into the same folder is refused) and `OUT/prompts.jsonl` (all of them, so that a
scorer sees what is missing). A prompt's folder appears when it is whole. A run
that was stopped goes on with the prompts that are missing; delete a folder, or one picture of it, to draw it again.

--sheet sheet.png puts the first picture of every prompt onto one contact sheet. Prompts that name an `image`, as those
of data_prep/convert_captions.py do, have it above theirs.

Every picture has a seed of its own, derived from --seed, the prompt's number and the picture's, and is drawn from that
alone: neither processes nor interruptions change a picture, since the prompts of a batch are the same either way.
--batch_size can change it by rounding: sums in another order differ in their last bits, and a code that comes out
otherwise changes all that is drawn after it. Measured on 8 pictures of SmolLM2, 1 against 8 at once: no code of 680 in
float32, 45 in bfloat16 (in 5 pictures), and one pixel value in 25,000 by 1 of 255. So a folder keeps to one batch
size.
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import json

from unified.arguments.parser import parse, run_main
from unified.evaluation.image_folder import (
    GenerateArguments,
    check_originals,
    generate_folder,
    read_prompts,
    write_sheet,
    write_speed,
)
from unified.hardware.arguments import HardwareArguments
from unified.hardware.setup import products, set_up_processes
from unified.reports.endings import say_end


def main() -> None:
    hardware, args = parse((HardwareArguments, GenerateArguments))
    read_prompts(args)  # a mistake in them is found before the model is loaded
    check_originals(args)
    state = set_up_processes(hardware)
    model, processor = args.load(args.model)
    with products():
        made = generate_folder(args, state, model, processor)
    if args.sheet is not None:
        state.wait_for_everyone()
        if state.is_main_process:
            write_sheet(args, args.sheet, processor)
    if state.is_main_process and made.images == 0:
        print(f"{args.out}: nothing left to draw, {made.prompts} prompts with {args.samples} pictures each")
    elif state.is_main_process:  # its own speed: processes never wait for each other
        print(json.dumps(write_speed(args, made)))
    if state.is_main_process:
        score = f"unified run eval/geneval.py --images {args.out} --detector coco --out {args.out}.json"
        say_end(args.out, {"images": made.prompts * args.samples}, f"{score}    # or --detector scenes")


if __name__ == "__main__":
    run_main(main)
