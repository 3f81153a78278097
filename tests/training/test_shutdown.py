"""Shutting down: every process ends as a Python program ends, with status 0 and no thread that could abort it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = """
import atexit, gc, os
from pathlib import Path

from unified.training.shutdown import shut_down  # as recipes: before there is a process group

import torch
from accelerate import Accelerator, DeepSpeedPlugin, InitProcessGroupKwargs
from accelerate.state import AcceleratorState

def threads():
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    return sorted(name for name in names if "gloo" in name)

def train(stage):
    given = {"kwargs_handlers": [InitProcessGroupKwargs(backend="gloo")]}
    if stage:
        plugin = DeepSpeedPlugin(zero_stage=stage, gradient_accumulation_steps=1, zero3_init_flag=False)
        accelerator = Accelerator(deepspeed_plugin=plugin, **given)
    else:
        accelerator = Accelerator(cpu=True, **given)
    model = torch.nn.Linear(4, 1)
    data = torch.utils.data.DataLoader(torch.randn(8, 4), batch_size=2)
    model, optimizer, data = accelerator.prepare(model, torch.optim.AdamW(model.parameters()), data)
    for batch in data:
        accelerator.backward(model(batch).square().mean())
        optimizer.step()
        optimizer.zero_grad()
    assert threads()
    shut_down(accelerator)
    print("behind it", torch.distributed.is_initialized())

class Last:
    def __del__(self, write=os.write):
        write(1, b"finalized ")

kept = Last()
atexit.register(lambda: print("handlers", threads(), end=" ", flush=True))
try:
    train(0)
    AcceleratorState._reset_state(reset_partial_state=True)
    gc.collect()
    print("between", threads())
    train(2)
finally:
    print("finally")
"""


def test_two_processes_end_well() -> None:
    """DDP, then ZeRO-2: what follows runs, exit handlers and finalization too, and Gloo's threads are gone.

    ZeRO-3: tests/training/test_zero.py.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "DS_ACCELERATOR": "cpu"}
    shared |= {"LOCAL_WORLD_SIZE": "2", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    running = []
    for rank in ("0", "1"):
        environment = os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank}
        command = [sys.executable, "-c", SCRIPT]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        running.append(subprocess.Popen(command, env=environment, text=True, **pipes))
    for process in running:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert "terminate called" not in errors
        lines = [line for line in output.splitlines() if line.startswith(("behind", "between"))]
        assert lines == ["behind it False", "between []", "behind it False"]
        assert output.splitlines()[-3:] == ["behind it False", "finally", "handlers [] finalized "]
