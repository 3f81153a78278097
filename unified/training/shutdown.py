"""Shutting down the process group."""

import atexit
import contextlib
import os
import sys

from accelerate import Accelerator


def shut_down(accelerator: Accelerator) -> None:
    """End trackers and the process group; with several processes, each exits here with status 0 after a barrier.

    A process that exits early counts as failed, and the launcher would stop the one that is still writing. Of Python's
    finalization only exit handlers run, and threads are not joined: DeepSpeed keeps process groups past their
    destruction, and while their Gloo threads were alive, finished runs sometimes aborted ("terminate called without an
    active exception").
    """
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if accelerator.num_processes > 1:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # the reader has closed it
                stream.flush()
        os._exit(0)
