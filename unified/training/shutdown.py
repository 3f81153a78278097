"""Shutting down the process group."""

import atexit
import gc

import torch.distributed.nn.functional  # noqa: F401  # imported later, its default arguments would keep the group
from accelerate import Accelerator
from accelerate.utils import DistributedType


def shut_down(accelerator: Accelerator) -> None:
    """End trackers, DeepSpeed's engine and the process group, after a barrier; the caller goes on.

    A process that exits early counts as failed, and the launcher would stop the one that is still writing. Threads of
    Gloo live as long as anything refers to a process group, destroyed or not, and one that needs Python while it
    finalizes aborts a finished run ("terminate called without an active exception"). So nothing refers to one any more
    when this returns but the caller's own variables, and what these leave behind is collected before finalization.
    """
    accelerator.wait_for_everyone()
    accelerator.free_memory()  # with DeepSpeed's engine: its hooks refer to its groups out of the collector's sight
    if accelerator.distributed_type == DistributedType.DEEPSPEED:
        import deepspeed  # only where it runs

        deepspeed.comm.destroy_process_group()  # and DeepSpeed's own references to groups
    accelerator.end_training()
    if accelerator.num_processes > 1:
        atexit.register(gc.collect)
