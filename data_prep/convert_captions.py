"""Turn a folder of pictures with captions into rows to train on: chats in which a picture is asked for, or described.

    python data_prep/convert_captions.py --images my_pictures --out data/mine/rows.jsonl
    python data_prep/convert_captions.py --images my_pictures --out data/mine/rows.jsonl --repeat 4 \\
        --kinds draw:0.8,describe:0.2 --wordings "{}" "Draw {}." "a picture of {}" --caption_column caption
    python data_prep/convert_captions.py --images my_pictures --out data/mine/rows.jsonl --eval_images 16 \\
        --eval_out data/mine/rows_eval.jsonl --prompts data/mine/prompts.jsonl

The folder is in one of the forms people have:

    metadata.jsonl   Hugging Face's imagefolder: {"file_name": "cat.png", "text": "my cat"}, or "text": [several]
    metadata.csv     the same with a header line; one caption a picture
    cat.txt          beside cat.png (jpg, jpeg, webp); a caption a line
    cat/1.png        folders of classes: with --caption_template "a photo of a {}", which takes their names

Every picture gives --repeat conversations. A `draw` is a request, answered with the picture: a caption put into one of
--wordings. A `describe` shows the picture and asks what it is, answered with a caption. Kind, caption and wording of a
conversation depend on --seed and its place alone. The rows name the pictures relative to --out, which is written whole
or not at all; the next step is data_prep/encode_images.py. A picture without a caption, a caption without a picture,
and whatever else does not fit, is refused with its file and line.

--eval_images holds pictures out, the same ones as recipes/train_vq.py does with that number and seed. --eval_out are
their rows, to measure losses on; --prompts their captions, and behind them as many that are trained on, for
eval/generate_images.py.
"""

import json
from pathlib import Path

from unified.arguments.parser import parse, run_main
from unified.data.captions import CaptionArguments, write_conversations
from unified.reports.endings import say_end


def main() -> None:
    (args,) = parse((CaptionArguments,))
    print(json.dumps(write_conversations(args)))
    encode = (
        f"unified run data_prep/encode_images.py --vq VQ --inputs {args.out} --out {Path(args.out).parent / 'encoded'}"
    )
    say_end(args.out, {}, encode)


if __name__ == "__main__":
    run_main(main)
