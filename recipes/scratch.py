"""The whole of `unified` from nothing: SmolLM2 learns to paint Scenes, then is asked, and a page shows it.

make demo-scratch   .venv/bin/python recipes/scratch.py --config recipes/configs/smollm2_scenes/scratch.yaml
make demo-full      .venv/bin/python recipes/scratch.py --config recipes/configs/smollm2_scenes/scratch_full.yaml

Steps: convert the LLM, render scenes, encode them, extend the vocabulary, fine-tune, ask, write
`out_dir/index.html`. Every step is one of the project's own commands and is printed before it runs. A step that is
done is not done again, and a fine-tuning that was stopped goes on from its newest checkpoint.
"""

import sys
from pathlib import Path

from unified.arguments.parser import parse, run_main
from unified.reports.scratch_arguments import ScratchArguments
from unified.reports.steps import REPLAY, Job, fine_tune, render_and_encode


def scenes(args: ScratchArguments, job: Job, split: str, count: int, seed: int) -> Path:
    """Scenes of one split as encoded rows; returns their folder."""
    flags = ["--count", str(count), "--seed", str(seed), "--layout", args.layout, "--kinds", args.kinds]
    flags += ["--preview", str(job.out / f"scenes_{split}.png")]
    flags += ["--classes", ",".join(args.classes)] if args.classes else []
    flags += ["--colours", ",".join(args.colours)] if args.colours else []
    flags += ["--tags", args.tags] if args.tags else []
    return render_and_encode(job, split, args.vq, flags)


def stages(args: ScratchArguments, job: Job, train: Path, held_out: Path) -> Path:
    """The stages of `args.sft_configs`, each from the one before; returns the last one's folder."""
    model = job.out / "extended"
    for config in args.sft_configs:
        name, files = Path(config).stem, [str(train), *[REPLAY] * args.replay_repeats]
        more = ["--eval_files", str(held_out)]
        model = fine_tune(job, f"fine-tune {name}", config, model, job.out / name, files, more)
    return model


def main() -> None:
    (args,) = parse((ScratchArguments,))
    job = Job(args.out_dir)
    job.out.mkdir(parents=True, exist_ok=True)
    job.run("convert", ["data_prep/convert_smollm2.py", "--out", args.llm])
    train = scenes(args, job, "train", args.train_scenes, args.seed)
    held_out = scenes(args, job, "eval", args.eval_scenes, args.seed + 1)
    extend = ["-m", "unified.cli", "extend", "--llm", args.llm, "--vq", args.vq, "--out", str(job.out / "extended")]
    job.run("extend", extend)
    model = stages(args, job, train, held_out)
    job.run("ask and draw", ["recipes/show.py", *sys.argv[1:], "--model", str(model)], again=True)
    print(f"open {job.out / 'index.html'}")


if __name__ == "__main__":
    run_main(main)
