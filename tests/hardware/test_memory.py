"""Errors of memory, as devices word them, in one line."""

import pytest
import torch
from torch import nn

from unified.hardware.memory import OutOfMemory, is_out_of_memory, one_line_when_full, out_of_memory_line, sizes_of

CUDA = (
    "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 139.80 GiB of which 612.00 MiB is "
    "free. Including non-PyTorch memory, this process has 139.20 GiB memory in use."
)
MPS = "MPS backend out of memory (MPS allocated: 5.90 GB, max allowed: 6.00 GB). Tried to allocate 1.00 GB on pool."
WINDOWS = "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: not enough memory: you tried to allocate 4096 bytes."


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (torch.OutOfMemoryError(CUDA), "out of memory: 2.5 GiB more were asked for and 612.0 MiB are free; try "),
        (RuntimeError(MPS), "out of memory: 1.0 GiB more were asked for; try "),
        (RuntimeError(WINDOWS), "out of memory: 4 KiB more were asked for; try "),
        (MemoryError("Unable to allocate 1.50 GiB for an array with shape (9,)"), "out of memory: 1.5 GiB more"),
        (
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            "out of memory; ",
        ),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "out of memory; try a smaller batch"),
        (RuntimeError("unable to mmap 4000 bytes from file <x>: Cannot allocate memory (12)"), "out of memory; try "),
        (MemoryError(), "out of memory; try a smaller batch"),
    ],
)
def test_every_device_is_understood(error: Exception, line: str) -> None:
    assert is_out_of_memory(error) and out_of_memory_line(error).startswith(line)
    assert "\n" not in out_of_memory_line(error)


def test_other_errors_are_left_alone() -> None:
    assert not is_out_of_memory(RuntimeError("shapes do not fit")) and not is_out_of_memory(ValueError(CUDA))
    with pytest.raises(RuntimeError, match="shapes do not fit"), one_line_when_full(dict, ()):
        raise RuntimeError("shapes do not fit")


def test_a_real_allocation_that_fails_names_parts_and_settings() -> None:
    model = nn.Linear(1024, 1024, bias=False)  # 4 MiB
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 1024)).sum().backward()
    optimizer.step()
    settings = ("per_device_train_batch_size below 12", "tuning lora")
    with pytest.raises(OutOfMemory) as raised, one_line_when_full(lambda: sizes_of(model, optimizer), settings):
        torch.empty(2**50)
    line = str(raised.value)
    assert line.startswith("out of memory: 4194304.0 GiB more were asked for; there are parameters 4.0 MiB, ")
    assert "parameters 4.0 MiB, gradients 4.0 MiB, optimizer 8.0 MiB, activations, libraries and the rest " in line
    assert line.endswith("; try per_device_train_batch_size below 12, tuning lora")
    assert out_of_memory_line(raised.value) == line  # said once
