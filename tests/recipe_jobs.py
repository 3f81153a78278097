"""Several runs of recipes in one process of a launch, so that imports are paid once: `recipe_jobs.py JOBS.json`.

JOBS.json is a list of runs, each a script with its arguments, and of `copy FROM TO` between them. After a run
accelerate forgets its engine, and the process group stays. With RECIPE_JOBS_FSDP2 set, accelerate shards by FSDP2 on
CPUs too, which it offers on GPUs alone.
"""

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedType
from conftest import load_script

from unified.training import fine_tuning


def shard_on_cpus() -> None:
    """Have accelerate take what a launch configuration says of FSDP, as it does where there are GPUs."""
    plain = AcceleratorState.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        if kwargs.get("fsdp_plugin") is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, kwargs["fsdp_plugin"]
            PartialState._shared_state["distributed_type"] = DistributedType.FSDP

    AcceleratorState.__init__ = init


def main(jobs: list[list[str]]) -> None:
    kept: list[Any] = []
    for module in (fine_tuning, load_script("recipes/dpo.py")):
        module.shut_down = kept.append  # the process group is for all
    for script, *arguments in jobs:
        if script == "copy":
            if os.environ["RANK"] == "0":
                shutil.copytree(*arguments)
            torch.distributed.barrier()
            continue
        sys.argv = [script, *arguments]
        load_script(script).main()
        kept.pop().free_memory()
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()


if __name__ == "__main__":
    if os.environ.get("RECIPE_JOBS_FSDP2"):
        shard_on_cpus()
    main(json.loads(Path(sys.argv[1]).read_text()))
