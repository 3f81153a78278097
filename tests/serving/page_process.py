"""`page_server.py` in a process of its own: gradio leaves loops and sockets open, which in a test would be errors."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

HERE = Path(__file__).parent
STOP_SECONDS = 30  # less than a stopping server waits for what is open


class Server:
    """The process, which listens once this is made."""

    def __init__(self, folder: Path, *keys: str) -> None:
        path = os.pathsep.join([str(HERE.parents[1]), str(HERE.parent)])
        command = [sys.executable, str(HERE / "page_server.py"), str(folder), *keys]
        self.log = (folder / "log").open("w+", encoding="utf-8")
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log, "text": True}
        self.process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path}, **pipes)
        port = next(line for line in self.process.stdout if line.startswith("port ")).split()[1]
        self.url = f"http://127.0.0.1:{port}"

    @property
    def active(self) -> int:
        """Answers that are worked on."""
        health = httpx.get(f"{self.url}/health").json()
        return health["active"] + health["waiting"]

    def pages(self, seconds: float = 0.0) -> int:
        """Pages that are kept; they are so many seconds older from now on."""
        self.process.stdin.write(f"{seconds}\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def stop(self) -> str:
        """End its input, and wait for its end; returns what it has written to stderr."""
        self.process.communicate(timeout=STOP_SECONDS)
        self.log.seek(0)
        with self.log:
            return self.log.read()


@contextmanager
def page_server(folder: Path, *keys: str) -> Iterator[Server]:
    """A server, which ends well."""
    running = Server(folder, *keys)
    try:
        yield running
    finally:
        running.stop()
    assert running.process.returncode == 0
