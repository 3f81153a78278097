"""Several runs of recipes in one process of a launch, so that imports are paid once: `recipe_jobs.py JOBS.json`.

JOBS.json is a list of runs, each a script with its arguments, and of what happens between them: `begin FOLDER...`
empties folders, `copy FROM TO` copies one, `end FILE` writes the seconds since. `ends` before a script is a run that
must end itself; its folder has the exit status and what was said of every process, as `ended.RANK.json`. After a run
accelerate forgets its engine, and the process group stays. Beside every run's result stands frozen.json: see
`frozen_parts`. With RECIPE_JOBS_FSDP2 set, accelerate shards by FSDP2 on CPUs too, which it offers on GPUs alone.
"""

import io
import json
import os
import shutil
import sys
import time
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType, gather_object
from conftest import load_script
from peft.utils.integrations import gather_params_ctx
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import Trainer

from unified.checkpoints.loading import resolve_base_checkpoint
from unified.training import fine_tuning

# what wrappers put into a weight's name
WRAPPERS = ("base_model.model.", "base_layer.", "token_adapter.", "original_module.", "source.")


def shard_on_cpus() -> None:
    """Have accelerate take what a launch configuration says of FSDP, as it does where there are GPUs."""
    plain = AcceleratorState.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        if kwargs.get("fsdp_plugin") is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, kwargs["fsdp_plugin"]
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


def stored_name(name: str) -> str:
    """The name in a checkpoint's files of a model's tensor, under whatever wrappers."""
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def frozen_parts(model: nn.Module, base: dict[str, torch.Tensor], text_rows: int) -> dict[str, bool]:
    """Whether what `model` does not train is that of `base` to the bit, by name in files: of matrices the text rows.

    All processes call it, as parameters may be parted among them.
    """
    frozen = [(name, p) for name, p in model.named_parameters() if not p.requires_grad]
    equal: dict[str, bool] = {}
    for name, value in [*frozen, *model.named_buffers()]:
        stored = stored_name(name)
        if stored not in base:
            continue
        with gather_params_ctx([value] if isinstance(value, nn.Parameter) else []):
            whole = value.full_tensor() if isinstance(value, DTensor) else value.detach()
            rows = text_rows if stored.endswith(("embed_tokens.weight", "lm_head.weight")) else len(base[stored])
            same = whole.shape == base[stored].shape and torch.equal(whole[:rows], base[stored][:rows])
        equal[stored] = equal.get(stored, True) and same
    return equal


def check_frozen_parts(trainer: Trainer, base: Path) -> None:
    """Leave frozen.json in the run's folder: what is frozen, and whether it is as it was, on every process."""
    text_rows = json.loads((base / "config.json").read_text())["boi_token_id"]
    own = frozen_parts(trainer.model, load_file(base / "model.safetensors"), text_rows)
    found = gather_object([own])
    if os.environ.get("RANK", "0") == "0":
        equal = {name: all(one[name] for one in found) for name in own}
        (Path(trainer.args.output_dir) / "frozen.json").write_text(json.dumps(equal))


def run(script: str, arguments: list[str], kept: list[Any]) -> None:
    """A run, whose model is looked at as its training ends."""
    base, train = resolve_base_checkpoint(arguments[arguments.index("--model") + 1]), Trainer.train

    def train_and_check(self: Trainer, *args: Any, **kwargs: Any) -> Any:
        result = train(self, *args, **kwargs)
        check_frozen_parts(self, base)
        return result

    sys.argv = [script, *arguments]
    Trainer.train = train_and_check
    try:
        load_script(script).main()
    finally:
        Trainer.train = train
    kept.pop().free_memory()
    forget_engine()


def forget_engine() -> None:
    """Let accelerate begin anew; the process group stays."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def run_that_ends(script: str, arguments: list[str]) -> None:
    """A run that ends itself with an exit status and a line on stderr."""
    sys.argv, said, status = [script, *arguments], io.StringIO(), 0
    module = load_script(script)
    try:
        with redirect_stderr(said):
            module.run_main(module.main)
    except SystemExit as stop:
        status = stop.code
    out = Path(arguments[arguments.index("--output_dir") + 1])
    out.mkdir(parents=True, exist_ok=True)
    record = {"status": status, "said": said.getvalue().splitlines()}
    (out / f"ended.{os.environ.get('RANK', '0')}.json").write_text(json.dumps(record))
    forget_engine()


def main(jobs: list[list[str]]) -> None:
    kept: list[Any] = []
    began = time.monotonic()
    for module in (fine_tuning, load_script("recipes/dpo.py")):
        module.shut_down = kept.append  # the process group is for all
    for name, *arguments in jobs:
        if name.endswith(".py"):
            run(name, arguments, kept)
            continue
        if name == "ends":
            run_that_ends(arguments[0], arguments[1:])
            continue
        if os.environ.get("RANK", "0") == "0":
            if name == "begin":
                began = time.monotonic()
                for folder in arguments:
                    shutil.rmtree(folder, ignore_errors=True)
            elif name == "copy":
                shutil.copytree(*arguments)
            else:
                Path(arguments[0]).write_text(f"{time.monotonic() - began:.1f}\n")
        if torch.distributed.is_initialized():
            torch.distributed.barrier()


if __name__ == "__main__":
    if os.environ.get("RECIPE_JOBS_FSDP2"):
        shard_on_cpus()
    main(json.loads(Path(sys.argv[1]).read_text()))
