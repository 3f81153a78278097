"""The one call by which a command asks what to run on: probes, decides, sets, says it in a line on stderr.

Rank 0 chooses for all ranks. Nothing here happens on import; the library's own functions never call it.
"""

import os
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from unified.hardware.arguments import HardwareArguments
from unified.hardware.decisions import Choice, Wishes, decide
from unified.hardware.device import set_best_device
from unified.hardware.limits import local_processes
from unified.hardware.probe import DTYPES, ask, measured
from unified.hardware.waiting import current_policy

_CHOSEN: list[Choice] = []  # by the process's command, the last one counts


def set_up(
    arguments: HardwareArguments | None = None,
    wishes: Wishes | None = None,
    training: bool = False,
    minutes: float = 0.0,
) -> Choice:
    """Choose for this command, set its threads, and say what was chosen; results and checkpoints name it from then on.

    Args:
        wishes: beyond those of `arguments`, as a run's own settings or its checkpoint's; flags were checked against
            them by who gives both.
        training, minutes: as in `decide`.

    Raises ValueError for what this machine cannot grant.
    """
    wishes = wishes if wishes is not None else (arguments or HardwareArguments()).wishes()
    processes = local_processes()
    if torch.distributed.is_initialized():  # a launcher has begun; one chooses
        box: list[Any] = [choose(wishes, training, minutes, processes) if PartialState().is_main_process else None]
        choice: Choice = broadcast_object_list(box)[0]
    else:
        choice = choose(wishes, training, minutes, processes)
    torch.set_num_threads(choice.threads)
    rank = os.environ.get("LOCAL_RANK")
    set_best_device(f"cuda:{rank}" if choice.device == "cuda" and rank is not None else choice.device)
    _CHOSEN[:] = [choice]
    if int(os.environ.get("RANK", "0")) == 0:
        sys.stderr.write(f"{choice.line()}\n")
    return choice


def set_up_processes(arguments: HardwareArguments, **options: Any) -> PartialState:
    """`set_up` for a command that several processes may run; their state, to which `options` go."""
    on_cpu = arguments.wishes().device == "cpu" or not torch.cuda.is_available()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        PartialState(cpu=on_cpu, **options)  # so that one can choose for all
    choice = set_up(arguments)
    return PartialState(cpu=choice.device != "cuda", **options)


def choose(wishes: Wishes, training: bool, minutes: float, processes: int = 1) -> Choice:
    """`decide` for this machine; measures nothing that was asked for."""
    return decide(measured(ask(processes), training, wishes), wishes, training, minutes)


def record() -> dict[str, Any]:
    """What was chosen, for results and checkpoints; of a process that never chose what torch has."""
    if _CHOSEN:
        return _CHOSEN[0].record()
    return {"device": None, "precision": None, "threads": torch.get_num_threads(), "wait_policy": current_policy()}


def products() -> AbstractContextManager[Any]:
    """Products in the precision that this process's command has chosen, on its device; weights stay as they are."""
    if not _CHOSEN or _CHOSEN[0].precision == "float32":
        return nullcontext()
    return torch.autocast(_CHOSEN[0].device, DTYPES[_CHOSEN[0].precision])
