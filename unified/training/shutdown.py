"""How the processes of a training end."""

import atexit
import contextlib
import os
import sys

from accelerate import Accelerator


def shut_down(accelerator: Accelerator) -> None:
    """End trackers and the process group; of several processes each exits here, with status 0, when all have come.

    Who leaves early is taken for failed, and the one that still writes is stopped. And what Python does at its end is
    skipped but for exit handlers; threads are not waited for. DeepSpeed keeps groups past their destruction, and while
    their Gloo threads live, a run now and then aborted there ("terminate called without an active exception") with all
    its work done.
    """
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if accelerator.num_processes > 1:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # nobody reads it any more
                stream.flush()
        os._exit(0)
