"""What to run on and how, decided from a machine's numbers alone: nothing here asks, measures or sets.

Figures that the rules rest on are in docs/machines/*.json, made by eval/machine.py. Two cores each:

    CPU with            float32 products   bf16 products   decided for training
    AMX, AVX512-BF16    140 GFLOP/s        385 GFLOP/s     bf16
    AVX512              352                63              float32
    AVX2                88                 1.4             float32
"""

from dataclasses import asdict, dataclass, replace
from typing import Any

from unified.hardware.machine import Gpu, Machine

BF16_GAIN = 1.3  # times faster than float32 that bf16 products must be: casts around them take part of it
GPU_GAIN = 1.0  # times faster than the CPU's that a GPU's products must be
LEAST_GPU_GIB = 2.0  # a smaller one holds no model of ours and its optimizer
BF16_CAPABILITY = (8, 0)  # the first of CUDA's with bf16 units
COMPILE_FROM_MINUTES = 30.0  # half a minute of compilation has to pay
DEVICES, PRECISIONS = ("cpu", "cuda", "mps"), ("float32", "bf16", "fp16")


@dataclass(frozen=True)
class Wishes:
    """What was asked for; None leaves it to the machine. `why` says who asked, by field: "flag", "checkpoint"."""

    device: str | None = None
    precision: str | None = None
    threads: int | None = None
    attention: str | None = None
    compile_layers: bool | None = None
    why: tuple[tuple[str, str], ...] = ()

    def reason(self, name: str) -> str:
        """Who asked for the field `name`."""
        return dict(self.why).get(name, "asked for")


@dataclass(frozen=True)
class Choice:
    """What a command runs on and how; `reasons` by field."""

    machine: str
    device: str
    precision: str  # of products in training; weights stay as they are stored
    threads: int
    wait_policy: str
    attention: str | None  # None: the backbone's own
    compile_layers: bool
    reasons: tuple[tuple[str, str], ...] = ()

    def line(self) -> str:
        """One line: what was chosen, and why."""
        why = dict(self.reasons)
        parts = [f"{self.device} ({why['device']})", f"{self.precision} ({why['precision']})"]
        parts.append(f"{self.threads} thread{'s' * (self.threads != 1)} ({why['threads']})")
        parts.append(f"{self.wait_policy} waiting")
        parts.append(f"attention {self.attention or 'of the backbone'}")
        parts.append(f"layers {'compiled' if self.compile_layers else 'as written'} ({why['compile_layers']})")
        return f"hardware: {self.machine}: {', '.join(parts)}"

    def record(self) -> dict[str, Any]:
        """For results, logs and checkpoints."""
        return asdict(self) | {"reasons": dict(self.reasons)}


def decide(machine: Machine, wishes: Wishes | None = None, training: bool = False, minutes: float = 0.0) -> Choice:
    """What to run on and how.

    Args:
        training: of inference the products stay in the dtype of the stored weights, so that a seed gives the same
            image on every machine. minutes: that a training is given, 0 where nobody knows.

    Raises ValueError for a wish that this machine cannot grant.
    """
    wishes = wishes or Wishes()
    device, gpu, because = choose_device(machine, wishes)
    precision, of_precision = choose_precision(machine, gpu, wishes, training)
    threads, of_threads = choose_threads(machine, wishes)
    compiled, of_compiling = choose_compiling(machine, device, wishes, training, minutes)
    reasons = {"device": because, "precision": of_precision, "threads": of_threads, "compile_layers": of_compiling}
    return Choice(
        machine=gpu.name if gpu is not None else machine.cpu,
        device=device,
        precision=precision,
        threads=threads,
        wait_policy=machine.wait_policy or "OpenMP's own",
        attention=wishes.attention or ("grouped" if training and device == "cpu" else None),
        compile_layers=compiled,
        reasons=tuple(reasons.items()),
    )


def choose_device(machine: Machine, wishes: Wishes) -> tuple[str, Gpu | None, str]:
    """Device, the GPU that it is, and why."""
    kinds = {gpu.kind: gpu for gpu in reversed(machine.gpus)}  # of several the first
    if wishes.device is not None:
        if wishes.device != "cpu" and wishes.device not in kinds:
            there = ", ".join([*kinds, "cpu"])
            raise ValueError(f"device {wishes.device} is not on this machine; give one of {there}, or leave it out")
        return wishes.device, kinds.get(wishes.device), wishes.reason("device")
    for gpu in kinds.values():
        if gpu.memory_gib < LEAST_GPU_GIB:
            return "cpu", None, f"{gpu.name} has {gpu.memory_gib:.1f} GiB, too little"
        measured = gpu.float32_gflops is not None and machine.float32_gflops is not None
        if measured and (gpu.float32_gflops or 0) < GPU_GAIN * (machine.float32_gflops or 0):
            return (
                "cpu",
                None,
                f"{gpu.name} computes {gpu.float32_gflops:.0f} GFLOP/s, it {machine.float32_gflops:.0f}",
            )
        return gpu.kind, gpu, f"{gpu.memory_gib:.0f} GiB"
    return "cpu", None, "no GPU here"


def choose_precision(machine: Machine, gpu: Gpu | None, wishes: Wishes, training: bool) -> tuple[str, str]:
    """Precision of products, and why."""
    if wishes.precision is not None:
        if wishes.precision == "fp16" and (gpu is None or gpu.kind != "cuda"):
            raise ValueError("precision fp16 needs a CUDA GPU; give float32 or bf16, or leave it out")
        return wishes.precision, wishes.reason("precision")
    if not training:
        return "float32", "or as the weights are stored"
    if gpu is not None:
        units = gpu.bf16 and (gpu.kind != "cuda" or gpu.capability >= BF16_CAPABILITY)
        return ("bf16", "it has bf16 units") if units else ("float32", "it has no bf16 units")
    if not machine.bf16_products:
        return "float32", "no bf16 units"
    if machine.float32_gflops is None or machine.bf16_gflops is None:
        return "float32", "bf16 was not measured"
    told = f"bf16 {machine.bf16_gflops:.0f} against {machine.float32_gflops:.0f} GFLOP/s"
    return ("bf16" if machine.bf16_gflops > BF16_GAIN * machine.float32_gflops else "float32"), told


def choose_threads(machine: Machine, wishes: Wishes) -> tuple[int, str]:
    """Threads of every process, and why."""
    if wishes.threads is not None:
        return wishes.threads, wishes.reason("threads")
    limits = {f"{machine.cores} core{'s' * (machine.cores != 1)}": float(machine.cores)}
    if machine.quota is not None:
        limits[f"a quota of {machine.quota:g}"] = machine.quota
    share = {name: limit / machine.processes for name, limit in limits.items()}
    if machine.omp_threads is not None and not machine.omp_default:
        share["OMP_NUM_THREADS"] = machine.omp_threads
    name = min(share, key=lambda limit: share[limit])
    threads = max(1, int(share[name]))
    spins = machine.wait_policy not in ("passive", "brief")
    left = max(1, machine.cores - round(machine.others))
    if spins and left < threads:  # a thread that spins for one that does not run loses more than it gains
        return left, f"{machine.others:.0f} of {machine.cores} cores are busy, and waiting threads spin"
    among = f" for {machine.processes} processes" if machine.processes > 1 else ""
    among += f", as OMP_NUM_THREADS={machine.omp_threads} is the launcher's" if machine.omp_default else ""
    return threads, f"{name}{among}"


def choose_compiling(
    machine: Machine, device: str, wishes: Wishes, training: bool, minutes: float
) -> tuple[bool, str]:
    """Whether layers are compiled, and why."""
    if wishes.compile_layers is not None:
        return wishes.compile_layers, wishes.reason("compile_layers")
    if not training or minutes < COMPILE_FROM_MINUTES:
        return False, "too short to pay" if training else "not for inference"
    if device not in machine.compiles:
        return False, "no compiler here"
    return True, f"{minutes:.0f} minutes"


def with_reason(wishes: Wishes, who: str, **wished: Any) -> Wishes:
    """`wishes` with those of `wished` that are not None, asked for by `who`."""
    given = {name: value for name, value in wished.items() if value is not None}
    return replace(wishes, **given, why=(*wishes.why, *((name, who) for name in given)))
