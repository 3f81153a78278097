"""Fills in a `Machine`: asks first, and measures small products where the answer depends on them."""

import os
import platform
import shutil
import sys
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from torch.utils._triton import has_triton

from unified.hardware.decisions import Wishes, choose_device, decide
from unified.hardware.limits import cpu_quota, omp_threads, other_tasks, usable_cores
from unified.hardware.machine import Gpu, Machine
from unified.hardware.waiting import current_policy

ISA = ("avx2", "avx512_f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16", "amx_int8")
INNER, OUTER = 576, 1536  # of products that are measured: SmolLM2's MLP
FIRST_ROWS, MOST_ROWS = 8, 1024
SLOW = 0.01  # seconds of one product from which on none larger is tried
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def ask(processes: int = 1) -> Machine:
    """The machine without its products' speed, for `processes` of a run on it."""
    capabilities = torch.cpu.get_capabilities()
    (threads, by_launcher), cores = omp_threads(), usable_cores()
    return Machine(
        cpu=cpu_name(),
        system=platform.system(),
        cores=cores,
        quota=cpu_quota(),
        others=other_tasks() * cores / (os.cpu_count() or cores),
        processes=processes,
        omp_threads=threads,
        omp_default=by_launcher,
        wait_policy=current_policy(),
        isa=tuple(name for name in ISA if capabilities.get(name)),
        memory_gib=psutil.virtual_memory().total / 2**30,
        bf16_products=bf16_products(),
        gpus=gpus(),
        compiles=compiles(),
    )


def bf16_products() -> bool:
    """Whether oneDNN has bf16 products for this CPU; builds of torch without it, as for Macs, cannot be asked."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def compiles() -> tuple[str, ...]:
    """Devices for which torch can compile: a CPU needs a C++ compiler, CUDA triton."""
    cpu = sys.platform != "win32" and shutil.which(os.environ.get("CXX", "g++")) is not None
    return ("cpu",) * cpu + ("cuda",) * has_triton()


def cpu_name() -> str:
    """The CPU's own name."""
    told = str(torch.cpu.get_capabilities().get("cpu_name", ""))
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or told or platform.processor() or platform.machine()


def gpus() -> tuple[Gpu, ...]:
    """CUDA's devices, or Apple's."""
    found = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        told = torch.cuda.get_device_properties(index)
        capability = (told.major, told.minor)
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        found.append(Gpu(told.name, "cuda", told.total_memory / 2**30, capability, bf16))
    if not found and torch.backends.mps.is_available():
        memory = torch.mps.recommended_max_memory() / 2**30
        found.append(Gpu(f"{cpu_name()} GPU", "mps", memory, bf16=False))  # its bf16 is not shown here
    return tuple(found)


@lru_cache
def speed(precision: str, device: str = "cpu", seconds: float = 0.2) -> float:
    """GFLOP/s of products on a device, the best of those timed within `seconds`; asked again it is not measured again.

    Begins with small products and tries larger ones while they are quick: where a CPU has no units for bf16 one
    product of training's size can take seconds. `seconds` holds but for the last product.
    """
    rows, best, start = FIRST_ROWS, 0.0, time.perf_counter()
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(OUTER, INNER, generator=generator).to(device, DTYPES[precision])
    while not best or time.perf_counter() - start < seconds:
        left = torch.randn(rows, INNER, generator=generator).to(device, DTYPES[precision])
        nn.functional.linear(left, weight)  # the first of a size may choose its way
        wait_for(device)
        begun = time.perf_counter()
        nn.functional.linear(left, weight)
        wait_for(device)
        taken = time.perf_counter() - begun
        best = max(best, 2 * rows * INNER * OUTER / taken / 1e9)
        rows = min(2 * rows, MOST_ROWS) if taken < SLOW else rows
    return best


def speeds(seconds: float = 0.2) -> dict[str, Any]:
    """What this process's products reach on the CPU, GFLOP/s by precision, and what torch and oneDNN say they use.

    `choices` are the lines that commands would say here, by what they do.
    """
    found: dict[str, Any] = {name: round(speed(name, seconds=seconds), 1) for name in DTYPES}
    machine = ask()
    kinds = {"training": True, "inference": False}
    choices = {name: decide(measured(machine, kind), training=kind).line() for name, kind in kinds.items()}
    return found | {"capability": torch.backends.cpu.get_cpu_capability(), "choices": choices}


def wait_for(device: str) -> None:
    """Return once all that was asked of `device` is done."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    elif device.startswith("mps"):
        torch.mps.synchronize()


def measured(machine: Machine, training: bool, wishes: Wishes | None = None) -> Machine:
    """`machine` with those products measured on which a decision depends: a quarter of a second for each.

    A GPU is not touched where another device is asked for. Raises ValueError as `choose_device`.
    """
    wishes = wishes or Wishes()
    _, gpu, _ = choose_device(machine, wishes)
    if gpu is not None and wishes.device is None:  # the first is the one that a single process uses
        first = replace(machine.gpus[0], float32_gflops=speed("float32", gpu.kind))
        machine = replace(machine, float32_gflops=speed("float32"), gpus=(first, *machine.gpus[1:]))
    device, _, _ = choose_device(machine, wishes)
    if device == "cpu" and training and machine.bf16_products and wishes.precision is None:
        machine = replace(machine, float32_gflops=speed("float32"), bf16_gflops=speed("bf16"))
    return machine
