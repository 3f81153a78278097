"""A recipe on two CPU processes, launched as the manual says, and what its checkpoint holds of the image tokenizer."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.utils import is_deepspeed_available
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "recipes/configs/tiny.yaml"


def train(launch: list[str], out: Path, *arguments: object, recipe: str = "recipes/sft.py") -> Path:
    """Run `recipe` on two processes with batches of 2 each, by `launch` (`DDP` or `zero(n)`); returns `out`."""
    command = [sys.executable, "-m", *launch, recipe, "--config", str(CONFIG)]
    command += ["--ddp_backend", "gloo", "--per_device_train_batch_size", "2", "--per_device_eval_batch_size", "2"]
    command += ["--output_dir", str(out), *map(str, arguments)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-4000:]
    return out


def zero(stage: int) -> list[str]:
    """Launch options of ZeRO on two processes; skips the test where there is no DeepSpeed."""
    if not is_deepspeed_available():
        pytest.skip("DeepSpeed is required on Linux alone")
    return ["accelerate.commands.launch", "--config_file", f"recipes/accelerate_configs/cpu_zero{stage}.yaml"]


DDP = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def assert_tokenizer_unchanged(folder: Path, base: Path) -> None:
    """The image tokenizer that a training has saved is that of its `base`, to the bit."""
    found, expected = load_file(folder / "model.safetensors"), load_file(base / "model.safetensors")
    names = [name for name in expected if name.startswith("model.vq_model.")]
    assert len(names) > 20
    assert not [name for name in names if not torch.equal(found[name], expected[name])]
    assert any(not torch.equal(found[name], value) for name, value in expected.items())  # it has trained
