"""Fine-tune a unified checkpoint on text and images.

One process:    accelerate launch recipes/sft.py --config recipes/configs/smollm2_scenes/2_sft.yaml
Two CPU ranks:  DS_ACCELERATOR=cpu accelerate launch --config_file recipes/accelerate_configs/cpu_zero3.yaml \\
                    recipes/sft.py --config recipes/configs/tiny.yaml --ddp_backend gloo \\
                    --model CHECKPOINT --train_files ENCODED --output_dir out/tiny
8 GPUs:         accelerate launch --config_file recipes/accelerate_configs/zero3.yaml \\
                    recipes/sft.py --config recipes/configs/qwen2_7b_var256/2_sft.yaml

Every YAML key is a flag too: `--learning_rate 1e-4` wins over the file. `--resume` goes on from the newest checkpoint
in output_dir along the trajectory the run would have had, or starts where there is none; what would change the
trajectory is refused, or allowed by `--allow_changed KEY` and kept in run.json. Without `--resume` a folder that holds
a run or a model is refused. A run that diverges stops (status 2) before anything is saved. The result in output_dir is
a checkpoint (`tuning: full` or `align`) or a PEFT adapter (`tuning: lora`) with its processor, for `unified chat`.

`--max_minutes 10` ends the run, and its schedule, within that time: steps are planned from the measured speed, and
anew when it changes. output_dir/progress.json says how far it came; a run that was cut off says so, with the command
that goes on.

`--speed_steps 20` trains so many steps and writes nothing but output_dir/speed.json (unified/training/throughput.py):
pictures, positions and GFLOP a second, and what products of the same shapes reach on the same machine meanwhile.

Device, precision and threads are chosen from what the machine has and said in a line on stderr; `--precision bf16`,
`--device cpu`, `--threads 4` choose otherwise. A resumed run keeps its checkpoint's precision.

`--compile_layers True` lets torch compile the backbone's layers: a fifth more pictures a second for SmolLM2's adapter
on two cores, after half a minute (needs g++ on a CPU, triton on a GPU; not with DeepSpeed or FSDP). `--code_noise 0.2`
feeds wrong codes, of every image a share of its own up to that, and has later scales correct them
(unified/training/self_correction.py); training's image losses are then those of the corrections, evaluation's as ever.

Where `model` is such an adapter, `tuning: lora` goes on training it: its updates, token rows and image embedding.
Its rank, alpha, layers and positions are what it was made with; a run that names others is refused, but one of image
positions may go on as `after_image` or `split_ranks`. `unified publish` makes an adapter small enough to ship.
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import sys

from unified.arguments.parser import parse, run_main
from unified.hardware.arguments import HardwareArguments
from unified.reports.endings import last_losses, say_end, uses
from unified.training.arguments import DataArguments, ModelArguments, UnifiedTrainingArguments
from unified.training.fine_tuning import fine_tune, fit_to_machine, measure_speed
from unified.training.planned_end import command_to_go_on


def main() -> None:
    hardware, model_args, data_args, args = parse(
        (HardwareArguments, ModelArguments, DataArguments, UnifiedTrainingArguments)
    )
    args = fit_to_machine(hardware, model_args, args)
    if args.speed_steps:
        measure_speed(model_args, data_args, args)
        return
    state = fine_tune(model_args, data_args, args, command_to_go_on(sys.argv))
    if state.is_world_process_zero:
        say_end(args.output_dir, last_losses(state.log_history), *uses(args.output_dir, args.sample_prompts))


if __name__ == "__main__":
    run_main(main)
