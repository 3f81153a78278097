"""What this machine is and what is chosen on it: products by precision, and work alone and beside busy processes.

    python eval/machine.py --out docs/machines                                       # a minute
    python eval/machine.py --model weights/scenes-smollm2 --out docs/machines        # three, and how long work takes

Writes OUT/<cpu>-<instructions>-<cores>.json and prints it:

    machine         what was asked of system and torch
    products        GFLOP/s by precision; bf16 and fp16 with small products first, for CPUs on which large ones hang;
                    `choices` are the lines for training and for inference
    emulated        the same with the variables that lower what a CPU offers, each in a process of its own; `fell` are
                    the precisions whose products are slower by a fifth or more: where none is, the variable does
                    nothing here
    beside          with --model: seconds of a drawing, an answer and a training step alone and beside busy processes,
                    with OpenMP's own waiting (`system`), brief and passive, all cores; medians of
                    --repeats in turns. Within --minutes: `left_out` counts what there was no time for

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

from unified.arguments.fields import arg_of
from unified.arguments.needs import Needs, WithNeeds
from unified.arguments.parser import check_minimum, parse, run_main
from unified.checkpoints.load_options import LoadOptions
from unified.checkpoints.loading import load
from unified.files.results import write_result
from unified.hardware.arguments import HardwareArguments
from unified.hardware.limits import usable_cores
from unified.hardware.probe import DTYPES, ask
from unified.hardware.setup import set_up
from unified.inference.chat import Chat
from unified.inference.text_to_image import generate_codes
from unified.models.generation import ImageSampling
from unified.reports.endings import end_evaluation

LOWERED = {  # what each variable may be set to, from the most to the least
    "ONEDNN_MAX_CPU_ISA": ("AVX512_CORE_BF16", "AVX512_CORE", "AVX2", "SSE41"),
    "ATEN_CPU_CAPABILITY": ("avx512", "avx2", "default"),
    "MKL_ENABLE_INSTRUCTIONS": ("AVX512", "AVX2", "SSE4_2"),
}
PRODUCTS = "import json; from unified.hardware.probe import speeds; print(json.dumps(speeds()))"
PRODUCTS_SECONDS = 60  # from which on a process that measures products is given up
FALLEN = 0.8  # of the speed without the variable
WAYS = ("system", "brief", "passive")  # waiting policies, each with all cores
TASKS = ("drawing", "answer", "training_step")
BUSY = "while True: pass"
PROMPT, QUESTION = "a photo of a red apple", "What is the capital of France?"


@dataclass
class MachineArguments(WithNeeds):
    """What is measured."""

    NEEDS = (Needs("base tasks busy repeats minutes", lambda args: args.model or args.serve, "give --model", "model"),)

    out: str = field(default="docs/machines", metadata={"help": "folder for the JSON"})
    model: str | None = field(
        default=None, metadata={"help": "checkpoint or adapter that works; None: products alone"}
    )
    base: str | None = arg_of(LoadOptions, "base")
    variables: list[str] = field(default_factory=lambda: list(LOWERED), metadata={"help": "that lower instructions"})
    busy: list[int] = field(default_factory=lambda: [0, 1, 2], metadata={"help": "busy processes beside"})
    tasks: list[str] = field(
        default_factory=lambda: list(TASKS), metadata={"help": "of drawing, answer, training_step"}
    )
    repeats: int = field(default=3, metadata={"help": "of every measurement beside others; the median counts"})
    minutes: float = field(default=2.0, metadata={"help": "for the work beside others; every piece once at least"})
    serve: bool = field(default=False, metadata={"help": "inside: do what standard input names, say how long it took"})

    def __post_init__(self) -> None:
        check_minimum(self, repeats=1, minutes=0)
        for name, given, known in (("tasks", self.tasks, TASKS), ("variables", self.variables, LOWERED)):
            if unknown := set(given) - set(known):
                raise ValueError(f"--{name} {', '.join(sorted(unknown))}; give some of {', '.join(known)}")


def products(**variables: str) -> dict[str, Any]:
    """`speeds` of a process with these environment variables; `error` where it has none."""
    command, environment = [sys.executable, "-c", PRODUCTS], os.environ | variables
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=PRODUCTS_SECONDS
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {PRODUCTS_SECONDS} s"}
    if done.returncode:
        return {"error": (done.stderr.splitlines() or [f"status {done.returncode}"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def emulated(args: MachineArguments, full: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """`products` with every variable that lowers the instructions in use, and which precisions it slowed."""
    found = {}
    for name in args.variables:
        for value in LOWERED[name]:
            lowered = products(**{name: value})
            fell = [kind for kind in DTYPES if kind in lowered and lowered[kind] < FALLEN * full[kind]]
            found[f"{name}={value}"] = lowered | {"fell": fell}
    return found


class Work:
    """One model's tasks, done in this process."""

    def __init__(self, folder: str, base: str | None) -> None:
        self.model, self.processor = load(folder, base=base)
        self.generator = torch.Generator().manual_seed(0)

    def drawing(self) -> None:
        """An image with guidance: one prompt, two rows."""
        generate_codes(self.model, self.processor, [PROMPT], ImageSampling(guidance_scale=3.0))

    def answer(self) -> None:
        """A short text."""
        Chat(self.model, self.processor, max_new_tokens=24).ask(QUESTION)

    def training_step(self) -> None:
        """Forward and backward of all weights, or of an adapter's updates, on two drawings."""
        updates = [weight for name, weight in self.model.named_parameters() if "lora_" in name]
        for weight in updates or self.model.parameters():
            weight.requires_grad_(True)
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
    work = Work(str(args.model), args.base)
    for line in sys.stdin:
        start = time.perf_counter()
        getattr(work, line.strip())()
        print(time.perf_counter() - start, flush=True)


class Worker:
    """A process that serves on all cores, with its own waiting policy."""

    def __init__(self, args: MachineArguments, policy: str) -> None:
        command = [sys.executable, __file__, "--serve", "True", "--model", str(args.model)]
        command += [] if args.base is None else ["--base", args.base]
        self.process = subprocess.Popen(
            [*command, "--threads", str(usable_cores()), "--wait_policy", policy, "--device", "cpu"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            env={
                name: value
                for name, value in os.environ.items()
                if name not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS")
            },
        )

    def seconds(self, task: str) -> float:
        """How long a task takes now; ValueError where the process has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(f"{task}\n")
            self.process.stdin.flush()
            return float(self.process.stdout.readline())
        except (BrokenPipeError, ValueError):
            told = " ".join(map(str, self.process.args))
            raise ValueError(f"{task} ended its process with {self.process.wait()}; try {told}") from None

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a busy process and wait until it is gone."""
    process.kill()
    process.wait()


def beside(args: MachineArguments) -> dict[str, Any]:
    """Median seconds by task, way and number of busy processes."""
    times: dict[tuple[str, str, int], list[float]] = {}
    with ExitStack() as stack:
        workers = {}
        for way in WAYS:
            workers[way] = Worker(args, way)
            stack.callback(workers[way].close)
            for task in args.tasks:
                workers[way].seconds(task)  # warms up
        end, left_out = time.monotonic() + 60 * args.minutes, 0
        for repeat in range(args.repeats):
            for count in args.busy:
                with ExitStack() as others:
                    for _ in range(count):
                        others.callback(stop, subprocess.Popen([sys.executable, "-c", BUSY]))
                    for task in args.tasks:
                        for way, worker in workers.items():
                            if repeat and time.monotonic() > end:
                                left_out += 1
                            else:
                                times.setdefault((task, way, count), []).append(worker.seconds(task))
    found: dict[str, Any] = {"left_out": left_out}
    for (task, way, count), values in times.items():
        found.setdefault(task, {}).setdefault(way, {})[f"{count} busy"] = round(statistics.median(values), 3)
    return found


def main() -> None:
    hardware, args = parse((HardwareArguments, MachineArguments))
    if args.serve:
        set_up(hardware)
        serve(args)
        return
    started, load_before = time.perf_counter(), os.getloadavg() if sys.platform != "win32" else None
    machine, full = ask(), products()
    if "error" in full:
        raise ValueError(f"products could not be measured: {full['error']}")
    found: dict[str, Any] = {"machine": asdict(machine), "load": load_before, "products": full}
    found["emulated"] = emulated(args, full)
    if args.model is not None:
        found["beside"] = beside(args)
    name = re.sub(r"[^a-z0-9]+", "-", " ".join((machine.cpu, *machine.isa[-1:])).lower()).strip("-")
    config = {"repeats": args.repeats, "model": args.model, "busy": args.busy}
    details = {"stderr": None, "tokenizer": None, "prompts_sha256": None, "seed": None}
    details["seconds"] = time.perf_counter() - started
    path = Path(args.out) / f"{name}-{machine.cores}.json"
    result = write_result(path, "float32_gflops", full["float32"], 1, machine.cpu, config, **details, **found)
    end_evaluation(result, path)


if __name__ == "__main__":
    run_main(main)
