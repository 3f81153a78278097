"""Shutting down: one of several processes never runs Python's finalization, in which other threads may abort it."""

import subprocess
import sys

import pytest

SCRIPT = """
import atexit, os, sys
from types import SimpleNamespace
from unified.training.shutdown import shut_down

class FailsAtTheEnd:
    def __del__(self, fail=os._exit):
        fail(3)

calls = []
atexit.register(lambda: print("handlers", *calls))
kept = FailsAtTheEnd()
steps = {name: lambda name=name: calls.append(name) for name in ("wait_for_everyone", "end_training")}
shut_down(SimpleNamespace(num_processes=int(sys.argv[1]), **steps))
print("after it")
"""


@pytest.mark.parametrize(("processes", "words"), [(1, ["after", "it"]), (2, [])])
def test_one_of_several_processes_exits_there_with_status_0(processes: int, words: list[str]) -> None:
    command = [sys.executable, "-c", SCRIPT, str(processes)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.stdout.split() == [*words, "handlers", "wait_for_everyone", "end_training"]
    assert result.returncode == (0 if processes > 1 else 3)  # a single process exits the usual way
