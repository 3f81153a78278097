"""The whole of `unified` on one machine: SmolLM2 learns to paint Scenes, then is asked, and a page shows it.

make demo        .venv/bin/python recipes/demo.py --config recipes/configs/smollm2_scenes/demo.yaml
make demo-full   .venv/bin/python recipes/demo.py --config recipes/configs/smollm2_scenes/demo_full.yaml

Steps: convert the LLM, render scenes, encode them, extend the vocabulary, fine-tune, ask, write
`out_dir/index.html`. Every step is one of the project's own commands and is printed before it runs. A step that is
done is not done again, and a fine-tuning that was stopped goes on from its newest checkpoint.
"""

import json
import sys
from pathlib import Path

from unified.arguments import DemoArguments, parse, run_main
from unified.steps import run_step

REPLAY = "data_prep/replay/smollm2_135m_instruct.jsonl"


def run(out: Path, name: str, command: list[str], again: bool = False) -> None:
    """Run `command` unless it was done before; its seconds go to `steps.json`. Exits with its status if it fails."""
    seconds = run_step(out / "done" / name.replace(" ", "_"), name, command, again)
    if seconds is None:
        print(f"[{name}] done before")
    else:
        record_step(out, name, seconds, command)


def record_step(out: Path, name: str, seconds: float, command: list[str]) -> None:
    """Add a step's seconds to `steps.json`; a step that was interrupted has an entry for every run."""
    path = out / "steps.json"
    steps = json.loads(path.read_text()) if path.exists() else []
    steps.append({"step": name, "seconds": round(seconds, 1), "command": "python " + " ".join(command)})
    path.write_text(json.dumps(steps, indent=1))


def render_and_encode(args: DemoArguments, out: Path, split: str, count: int, seed: int) -> Path:
    """Scenes of one split as encoded rows; returns their folder."""
    scenes, encoded = out / f"scenes_{split}", out / f"encoded_{split}"
    command = ["data_prep/render_scenes.py", "--out", str(scenes), "--count", str(count), "--seed", str(seed)]
    command += ["--layout", args.layout, "--kinds", args.kinds, "--preview", str(out / f"scenes_{split}.png")]
    command += ["--classes", ",".join(args.classes)] if args.classes else []
    command += ["--colours", ",".join(args.colours)] if args.colours else []
    command += ["--tags", args.tags] if args.tags else []
    run(out, f"render {split}", command)
    files = [str(path) for path in sorted(scenes.glob("*.parquet"))]
    command = ["data_prep/encode_images.py", "--vq", args.vq, "--out", str(encoded), "--inputs", *files]
    run(out, f"encode {split}", command)
    return encoded


def fine_tune(args: DemoArguments, out: Path, train: Path, held_out: Path) -> Path:
    """The stages of `args.sft_configs`, each from the one before; returns the last one's folder."""
    model = out / "extended"
    for config in args.sft_configs:
        stage = out / Path(config).stem
        command = ["-m", "accelerate.commands.launch", "--config_file", "recipes/accelerate_configs/cpu_bf16.yaml"]
        command += ["recipes/sft.py", "--config", config, "--model", str(model), "--output_dir", str(stage)]
        command += ["--train_files", str(train), *[REPLAY] * args.replay_repeats]
        command += ["--eval_files", str(held_out), "--resume", "True"]
        run(out, f"fine-tune {Path(config).stem}", command)
        model = stage
    return model


def main() -> None:
    (args,) = parse((DemoArguments,))
    out = Path(args.out_dir)
    out.mkdir(parents=True, exist_ok=True)
    run(out, "convert", ["data_prep/convert_smollm2.py", "--out", args.llm])
    train = render_and_encode(args, out, "train", args.train_scenes, args.seed)
    held_out = render_and_encode(args, out, "eval", args.eval_scenes, args.seed + 1)
    extend = ["-m", "unified.cli", "extend", "--llm", args.llm, "--vq", args.vq, "--out", str(out / "extended")]
    run(out, "extend", extend)
    model = fine_tune(args, out, train, held_out)
    show = ["recipes/show.py", *sys.argv[1:], "--model", str(model)]
    run(out, "ask and draw", show, again=True)
    print(f"open {out / 'index.html'}")


if __name__ == "__main__":
    run_main(main)
