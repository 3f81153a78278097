"""Running out of memory in one line: what was asked for, what lies there by part, and which settings change it.

A CPU's memory is often over-promised: Linux may end a process (signal 9) before any allocation fails. Then nothing can
be said here.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

# CUDA's and MPS's word, its libraries', torch's on a CPU (Linux and macOS; Windows), the system's, numpy's
SIGNS = (
    "out of memory",
    "_ALLOC_FAILED",
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "Unable to allocate",
)
ASKED = re.compile(r"(?:[Tt]ried to allocate|Unable to allocate) ([\d.]+) ?(bytes|[KMGTP]i?B)")
FREE = re.compile(r"of which ([\d.]+) ?(bytes|[KMGTP]i?B) is free")
UNITS = {"bytes": 0, "K": 10, "M": 20, "G": 30, "T": 40, "P": 50}
ELSEWHERE = "a smaller batch, shorter rows, or another --device"


class OutOfMemory(RuntimeError):
    """Its text is the line."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is that memory could not be had, on any device."""
    known = isinstance(error, OutOfMemory | MemoryError)
    return known or (isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS))


def out_of_memory_line(
    error: BaseException, sizes: Mapping[str, int] | None = None, settings: Iterable[str] = ()
) -> str:
    """What `error` asked for, `sizes` in bytes by part, and the `settings` that change it."""
    if isinstance(error, OutOfMemory):
        return str(error)
    asked, free = (_bytes(pattern, str(error)) for pattern in (ASKED, FREE))
    line = "out of memory" if asked is None else f"out of memory: {told(asked)} more were asked for"
    line += "" if free is None else f" and {told(free)} are free"
    parts = ", ".join(f"{name} {told(size)}" for name, size in (sizes or {}).items())
    line += f"; there are {parts}" if parts else ""
    return f"{line}; try {', '.join(settings) or ELSEWHERE}"


@contextmanager
def one_line_when_full(sizes: Callable[[], Mapping[str, int]], settings: Iterable[str]) -> Iterator[None]:
    """Inside, an error of memory becomes `OutOfMemory` with its line; `sizes` is asked then."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(out_of_memory_line(error, sizes(), settings)) from error


def sizes_of(model: "nn.Module", optimizer: "Optimizer | None" = None) -> dict[str, int]:
    """Bytes by part on the model's device: parameters, gradients, the optimizer's state, and the rest that is in use.

    The rest is of activations above all. Parts that DeepSpeed holds in its own buffers are in the rest.
    """
    import psutil  # what commands that answer at once need not load
    import torch

    parameters = list(model.parameters())
    found = {"parameters": sum(_held(p) for p in parameters)}
    found["gradients"] = sum(_held(p.grad) for p in parameters if p.grad is not None)
    states = optimizer.state.values() if optimizer is not None else ()
    kept = [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
    found["optimizer"] = sum(_held(value) for value in kept)
    device = parameters[0].device
    used = torch.cuda.memory_allocated(device) if device.type == "cuda" else psutil.Process().memory_info().rss
    name = "activations and the rest" if device.type == "cuda" else "activations, libraries and the rest"
    found[name] = max(0, used - sum(found.values()))
    return {name: size for name, size in found.items() if size}


def told(size: float) -> str:
    """A number of bytes for people."""
    for unit, power in (("GiB", 30), ("MiB", 20)):
        if size >= 2**power:
            return f"{size / 2**power:.1f} {unit}"
    return f"{size / 2**10:.0f} KiB"


def _bytes(pattern: re.Pattern[str], text: str) -> float | None:
    found = pattern.search(text)
    if found is None:
        return None
    unit = found[2] if found[2] == "bytes" else found[2][0]
    return float(found[1]) * 2 ** UNITS[unit]


def _held(tensor: "nn.Parameter | object") -> int:
    import torch

    assert isinstance(tensor, torch.Tensor)
    return tensor.numel() * tensor.element_size()
