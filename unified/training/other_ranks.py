"""The other processes of a run: one line where one of them has ended."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import PartialState

# of Gloo, NCCL and torch's store, where a process or its machine is gone, or does not answer in time
SIGNS = ("closed by peer", "reset by peer", "Broken pipe", "imed out", "remote process exited", "failed to recv")


@contextmanager
def one_line_when_others_end() -> Iterator[None]:
    """Inside, an error of communication becomes a ConnectionError of one line."""
    try:
        yield
    except RuntimeError as error:
        said = str(error)
        if PartialState().num_processes == 1 or not any(sign in said for sign in SIGNS):
            raise
        first = said.strip().splitlines()[0].split(". ")[0]  # Gloo goes on with advice
        raise ConnectionError(
            f"another process of this run has ended or does not answer ({first}); the log of the one that ended first "
            "says why; start all of them again with --resume True"
        ) from error
