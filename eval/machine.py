"""What this machine is and what is chosen on it: products by precision, and work alone and beside busy processes.

    python eval/machine.py --out docs/machines
    python eval/machine.py --model weights/scenes-smollm2 --out docs/machines      # and how long work takes

Writes OUT/<cpu>-<cores>.json and prints it:

    machine         what was asked of system and torch; `choices` are the lines for training and for inference
    products        GFLOP/s by precision; bf16 and fp16 with small products first, for CPUs on which large ones hang
    emulated        the same with the variables that lower what a CPU offers, each in a process of its own
    beside          with --model: seconds of a drawing, an answer and a training step, by waiting policy and threads,
                    alone and beside busy processes; medians of --repeats, all ways in turns in each of them

`load` is that of the machine before the figures were taken: on one that others use, repeat. On Linux `nice -n -15`
before the line takes the machine for itself (root only).
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import json
import os
import re
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from unified.arguments.parser import check_minimum, parse, run_main
from unified.checkpoints.loading import load
from unified.files.results import write_result
from unified.hardware.arguments import HardwareArguments
from unified.hardware.decisions import decide
from unified.hardware.probe import ask, measured, speed
from unified.hardware.setup import set_up
from unified.inference.chat import Chat
from unified.inference.text_to_image import generate_codes
from unified.models.generation import ImageSampling

LOWERED = {  # what each variable may be set to, from the most to the least
    "ONEDNN_MAX_CPU_ISA": ("AVX512_CORE_BF16", "AVX512_CORE", "AVX2", "SSE41"),
    "ATEN_CPU_CAPABILITY": ("avx512", "avx2", "default"),
    "MKL_ENABLE_INSTRUCTIONS": ("AVX512", "AVX2", "SSE4_2"),
}
TASKS = ("drawing", "answer", "training_step")
BUSY = "while True: pass"
PROMPT, QUESTION = "a photo of a red apple", "What is the capital of France?"


@dataclass
class MachineArguments:
    """What is measured."""

    out: str = field(default="docs/machines", metadata={"help": "folder for the JSON"})
    model: str | None = field(
        default=None, metadata={"help": "checkpoint or adapter that works; None: products alone"}
    )
    policies: list[str] = field(default_factory=lambda: ["system", "passive"], metadata={"help": "of waiting"})
    thread_counts: list[int] = field(default_factory=lambda: [1, 2], metadata={"help": "threads that work"})
    busy: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "busy processes beside"})
    tasks: list[str] = field(
        default_factory=lambda: list(TASKS), metadata={"help": "of drawing, answer, training_step"}
    )
    repeats: int = field(default=5, metadata={"help": "of every measurement, of which the median counts"})
    serve: bool = field(default=False, metadata={"help": "inside: do what standard input names, say how long it took"})
    products: bool = field(default=False, metadata={"help": "inside: print this process's products, and no more"})

    def __post_init__(self) -> None:
        check_minimum(self, repeats=1)
        if unknown := set(self.tasks) - set(TASKS):
            raise ValueError(f"--tasks {', '.join(sorted(unknown))}; give some of {', '.join(TASKS)}")


def products() -> dict[str, Any]:
    """What this process's products reach, and what torch and oneDNN say that they use."""
    found: dict[str, Any] = {name: round(speed(name), 1) for name in ("float32", "bf16", "fp16")}
    found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
    found["bf16_products"] = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return found


def emulated(args: MachineArguments) -> dict[str, dict[str, Any]]:
    """`products` of processes with a variable that lowers the instructions in use."""
    found = {}
    for name, values in LOWERED.items():
        for value in values:
            done = subprocess.run(
                [sys.executable, __file__, "--products", "True"],
                env=os.environ | {name: value},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            found[f"{name}={value}"] = json.loads(done.stdout.splitlines()[-1])
    return found


class Work:
    """One model's tasks, done in this process."""

    def __init__(self, folder: str) -> None:
        self.model, self.processor = load(folder)
        self.generator = torch.Generator().manual_seed(0)

    def drawing(self) -> None:
        """An image with guidance: one prompt, two rows."""
        generate_codes(self.model, self.processor, [PROMPT], ImageSampling(guidance_scale=3.0))

    def answer(self) -> None:
        """A short text."""
        Chat(self.model, self.processor, max_new_tokens=24).ask(QUESTION)

    def training_step(self) -> None:
        """Forward and backward of all weights on two drawings."""
        config = self.model.config.vq_config
        codes = torch.randint(config.codebook_size, (2, self.model.config.image_length), generator=self.generator)
        turns = [
            {"role": "user", "content": PROMPT},
            {"role": "assistant", "content": [{"type": "image"}]},
        ]
        rows = [self.processor.encode_chat(turns, [row]) for row in codes.tolist()]
        ids, labels = (torch.tensor([vars(row)[name] for row in rows]) for name in ("input_ids", "labels"))
        self.model.train()
        self.model(input_ids=ids, labels=labels).loss.backward()
        self.model.zero_grad()
        self.model.eval()


def serve(args: MachineArguments) -> None:
    """Do every task that a line of standard input names; print its seconds."""
    work = Work(str(args.model))
    for line in sys.stdin:
        start = time.perf_counter()
        getattr(work, line.strip())()
        print(time.perf_counter() - start, flush=True)


class Worker:
    """A process that serves, with its own waiting policy and threads."""

    def __init__(self, args: MachineArguments, policy: str, threads: int) -> None:
        command = [sys.executable, __file__, "--serve", "True", "--model", str(args.model), "--threads", str(threads)]
        self.process = subprocess.Popen(
            [*command, "--wait_policy", policy],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"},
        )

    def seconds(self, task: str) -> float:
        """How long a task takes now."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(f"{task}\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())


def beside(args: MachineArguments) -> dict[str, dict[str, dict[str, float]]]:
    """Median seconds by task, way and number of busy processes."""
    with ExitStack() as stack:
        workers = {}
        for policy in args.policies:
            for threads in args.thread_counts:
                worker = Worker(args, policy, threads)
                stack.callback(worker.process.kill)
                workers[f"{policy}, {threads} thread{'s' * (threads != 1)}"] = worker
        for worker in workers.values():
            for task in args.tasks:
                worker.seconds(task)  # warms up
        times: dict[tuple[str, str, int], list[float]] = {}
        for _ in range(args.repeats):
            for count in args.busy:
                with ExitStack() as others:
                    for _ in range(count):
                        others.callback(subprocess.Popen([sys.executable, "-c", BUSY]).kill)
                    for task in args.tasks:
                        for way, worker in workers.items():
                            times.setdefault((task, way, count), []).append(worker.seconds(task))
    found: dict[str, dict[str, dict[str, float]]] = {}
    for (task, way, count), values in times.items():
        found.setdefault(task, {}).setdefault(way, {})[f"{count} busy"] = round(statistics.median(values), 3)
    return found


def main() -> None:
    hardware, args = parse((HardwareArguments, MachineArguments))
    if args.products:
        print(json.dumps(products()))
        return
    if args.serve:
        set_up(hardware)
        serve(args)
        return
    started, load_before = time.perf_counter(), os.getloadavg() if sys.platform != "win32" else None
    machine, wishes = ask(), hardware.wishes()
    choices = {
        kind: decide(measured(machine, kind == "training"), wishes, kind == "training").line() for kind in KINDS
    }
    set_up(hardware)
    found: dict[str, Any] = {"machine": asdict(machine), "choices": choices, "load": load_before}
    found |= {"products": products(), "emulated": emulated(args)}
    if args.model is not None:
        found["beside"] = beside(args)
    name = re.sub(r"[^a-z0-9]+", "-", machine.cpu.lower()).strip("-")
    config = {"repeats": args.repeats, "model": args.model, "busy": args.busy}
    details = {"stderr": None, "tokenizer": None, "prompts_sha256": None, "seed": None}
    details["seconds"] = time.perf_counter() - started
    path, value = Path(args.out) / f"{name}-{machine.cores}.json", found["products"]["float32"]
    print(json.dumps(write_result(path, "float32_gflops", value, 1, machine.cpu, config, **details, **found)))


KINDS = ("training", "inference")

if __name__ == "__main__":
    run_main(main)
