"""A long job in one process: named steps, each printed, timed and done once; a second run goes on where it stopped."""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unified.files.atomic import write_text

RECORD = "steps.json"


@dataclass(frozen=True)
class Step:
    """A part of a job. What `work` returns says what cut it short, and it is not done; None where nothing did.

    again: it is to be done even where the record says that it was.
    """

    name: str
    work: Callable[[], str | None]
    again: bool = False


class Steps:
    """The steps of the job in a folder; `steps.json` keeps a line for every time that one was run.

    Args:
        command: what goes on with the job, for the log.
        changed: called whenever a page of the job would have something else to say.
    """

    def __init__(self, out: Path, command: str, changed: Callable[[], None] = lambda: None) -> None:
        self.out, self.command, self.changed = out, command, changed
        self.to_come: list[str] = []  # the running one first
        self.stopped: str | None = None  # the step in which this process ends before its time

    def run(self, steps: Sequence[Step]) -> None:
        """Do those that were not done before, in order."""
        for place, step in enumerate(steps):
            done = self.done()
            if step.name in done and not step.again:
                say(f"[{step.name}] done before")
                continue
            self.to_come = [later.name for later in steps[place:] if later.again or later.name not in done]
            self._run(step)
        self.to_come = []
        self.changed()

    def _run(self, step: Step) -> None:
        say(f"[{step.name}]")
        self.changed()
        started, cut, ended = time.monotonic(), None, False
        try:
            cut, ended = step.work(), True
        finally:  # also for Ctrl-C: what it has left may be gone on with, and has taken its time
            seconds = time.monotonic() - started
            self.stopped = None if ended else step.name
            cut = cut if ended else "stopped"
            self._add({"step": step.name, "seconds": round(seconds, 1), "cut": cut})
            if cut:
                say(f"[{step.name}] cut after {seconds:.0f} s: {cut}; to go on: {self.command}")
                self.changed()

    def _add(self, entry: dict[str, Any]) -> None:
        self._write([*self.record(), entry])

    def _write(self, entries: list[dict[str, Any]]) -> None:
        write_text(self.out / RECORD, json.dumps(entries, indent=1) + "\n")

    def record(self) -> list[dict[str, Any]]:
        """`{"step", "seconds", "cut"}` of all that was run, in order; `cut` says what cut it short, None nothing."""
        path = self.out / RECORD
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else []

    def last(self) -> dict[str, dict[str, Any]]:
        """The newest entry of every step that was run."""
        return {entry["step"]: entry for entry in self.record()}

    def done(self) -> set[str]:
        """Names of the steps that came to their end."""
        return {name for name, entry in self.last().items() if not entry["cut"]}

    def forget(self, name: str) -> None:
        """Let a step be done again."""
        self._write([entry for entry in self.record() if entry["step"] != name])


def say(line: str) -> None:
    """To the terminal, at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
