"""Ask a model, let it draw, fine-tune it, and see on one page what that has changed.

make demo          .venv/bin/python recipes/demo.py --config recipes/configs/smollm2_scenes/demo.yaml
make demo-scratch  .venv/bin/python recipes/demo.py --config recipes/configs/smollm2_scenes/demo_scratch.yaml
make demo-full     .venv/bin/python recipes/demo.py --config recipes/configs/smollm2_scenes/demo_full.yaml

`make demo` starts from the shipped adapter, whose base is made where it is missing. First the model answers and draws
as it is: that is on the page, `out_dir/index.html`, before anything else is done. Then it is fine-tuned on a folder of
pictures with captions, the form in which people bring their own, mixed with Scenes and text so that it does not
forget; answers and draws again; and at last is scored on what it was fine-tuned on (eval/nearest_object.py) and on
what it knew (eval/geneval.py on held-out combinations of Scenes). The other two begin with SmolLM2 itself.

With `runs: []` nothing is trained: the page of any model, also of a training that was stopped, is made by

    python recipes/demo.py --start out/demo-full/2_sft/checkpoint-300 --out_dir out/page --known_prompts "a red cat"

All of it is one process. Every step is printed before it is done, and done once: start the same line again and it goes
on where it stopped, a training from its newest checkpoint, one that `max_minutes` has cut for as long again. The page
is written again after every step and says first what is still to come, and what was cut. `out_dir/result.json` says so
too.
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import os
import shlex
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from unified.arguments.parser import parse, run_main
from unified.hardware.allocator import keep_freed_memory
from unified.hardware.arguments import HardwareArguments
from unified.hardware.setup import set_up
from unified.reports import demo_data, demo_scores
from unified.reports.demo import AFTER, BEFORE, Demo, ask_and_draw, can_make_base, claim, make_base, train
from unified.reports.demo_arguments import DemoArguments
from unified.reports.demo_page import notices, write
from unified.reports.steps import Step, say


def steps(demo: Demo) -> Iterator[Step]:
    """Everything there is to do, in order."""
    args = demo.args
    if args.start is None:
        yield Step("base checkpoint", partial(make_base, demo))
    else:
        if can_make_base(args):
            yield Step("base checkpoint", partial(make_base, demo), again=True)
        yield Step(f"ask and draw {BEFORE}", partial(ask_and_draw, demo, BEFORE))
    if args.runs:
        yield from fine_tuning(demo)
        yield Step(f"ask and draw {AFTER}", partial(ask_and_draw, demo, AFTER))
    if demo_scores.scored(demo):
        yield Step("write prompts", partial(demo_scores.write_heldout_prompts, demo))
    for when in [BEFORE] * (args.start is not None) + [AFTER] * bool(args.runs):
        for what in demo_scores.scored(demo):
            yield Step(f"draw {what} {when}", partial(demo_scores.draw, demo, what, when))
            yield Step(f"score {what} {when}", partial(demo_scores.score, demo, what, when))


def fine_tuning(demo: Demo) -> Iterator[Step]:
    """The rows, and one training after the other."""
    args = demo.args
    if args.repeat:
        yield Step("render new objects", partial(demo_data.render_new_objects, demo))
        yield Step("encode new objects", partial(demo_data.encode_new_objects, demo))
    for split, count, seed in (("train", args.train_scenes, args.seed), ("eval", args.eval_scenes, args.seed + 1)):
        if count:
            yield Step(f"render {split}", partial(demo_data.render_scenes, demo, split, count, seed))
            yield Step(f"encode {split}", partial(demo_data.encode_scenes, demo, split))
    for run in args.runs:
        yield Step(f"fine-tune {Path(run).stem}", partial(train, demo, run))


def command() -> str:
    """What was typed, to be typed again."""
    python = Path(sys.executable)
    shown = os.path.relpath(python) if python.is_relative_to(Path.cwd()) else str(python)
    return shlex.join([shown, *sys.argv])


def main() -> None:
    hardware, args = parse((HardwareArguments, DemoArguments))
    demo = claim(args, hardware, command(), write)
    set_up(hardware)
    keep_freed_memory()
    demo.steps.run(list(steps(demo)))
    for notice in notices(demo):
        say(f"{notice.text} {notice.command}".rstrip())
    say(f"open {demo.out / 'index.html'}")


if __name__ == "__main__":
    run_main(main)
