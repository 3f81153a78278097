"""Replace the pictures of rows by their codes, once, so that training never runs the image tokenizer's encoder.

    python data_prep/encode_images.py --vq out/vq --out out/encoded --inputs out/scenes/*.parquet
    accelerate launch --num_processes 8 data_prep/encode_images.py --vq out/vq --out out/encoded --inputs rows.jsonl

Inputs are rows as JSONL or parquet, in the forms that people publish (docs/data.md), with or without pictures,
or preference pairs with pictures, for recipes/dpo.py. A picture is opened once for all of its rows, and shown as
viewers show it: upright, on white, in sRGB. One that is not square is cropped to its centre, and the last line counts
what that loses; `--fit pad` puts it on white, `--fit refuse` makes it bad. Outputs are shards `OUT/00000.parquet` of
--shard-size rows, one input file after the other, and each process takes its share of them, neighbours. A run that was
stopped goes on with the shards that are missing. `OUT/settings.json` records the folder's inputs and the opener of
pictures: another tokenizer, other inputs or another opener are refused.

A picture or row that cannot be read is named on the screen, and goes to `OUT/00000.bad.jsonl` in place of the shard.
All are counted in one pass, and more than --max-bad fail the run at its end (status 2); mend the pictures, or allow
them, and start it again: what could be read stays. A file of rows that was changed needs another --out. Paths of
pictures start in the folder of their file, or in --image_root.
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

from time import perf_counter

from unified.arguments.parser import parse, run_main
from unified.data.encoding import EncodeArguments, encode_rows
from unified.hardware.arguments import HardwareArguments
from unified.hardware.setup import set_up_processes
from unified.reports.endings import say_end


def main() -> None:
    hardware, arguments = parse((HardwareArguments, EncodeArguments))
    state = set_up_processes(hardware)
    started = perf_counter()
    done = encode_rows(arguments)
    opened = f" ({done.opened} opened)" if done.opened < done.images else ""
    seconds = perf_counter() - started
    print(f"{arguments.out}: {done.images} images encoded in {seconds:.0f} s{opened}, {done.shards} shards in all")
    if str(done.crops):
        print(done.crops)
    if state.is_main_process:
        rows = f"unified run recipes/sft.py --config mine.yaml --train_files {arguments.out}"
        pairs = f"unified run recipes/dpo.py --config mine.yaml --train_files {arguments.out}"
        say_end(arguments.out, {}, pairs if done.pairs else rows)


if __name__ == "__main__":
    run_main(main)
