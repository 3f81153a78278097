"""What a server survives: clients that hang up, twice what it can take, and being killed, with its memory over time.

    python eval/serving_soak.py --model weights/scenes-smollm2 --out results/soak.json

`unified serve` runs as a process of its own. One after the other:

killed_clients  --killed_clients hang up: in a request's head, in its body, while they wait, in a stream. Afterwards
                all places must be free within a minute and a picture must be drawn.
overload        for --overload_seconds twice as many clients as it has places (--max_batch + --max_queue) ask again
                and again; one that is refused (429) waits as long as `Retry-After` says. Every request must be
                answered by a picture or a 429, and never may more wait than there are places.
killed_servers  --killed_servers times the server is ended while it draws, by SIGKILL and SIGTERM in turn: at SIGTERM
                the stream must end with its picture and the process well. The next one must answer.

Printed, and written to --out, is one JSON: the value is the number of failures, which has to be 0, n the requests;
`memory_mb` is the resident memory of the server over time, (seconds, MB).
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

from unified.arguments.fields import arg_of
from unified.arguments.parser import check_minimum, parse, run_main
from unified.checkpoints.load_options import LoadOptions
from unified.checkpoints.quantization import Bits
from unified.files.results import prompts_digest, write_result
from unified.hardware.arguments import HardwareArguments
from unified.reports.endings import end_evaluation

START_SECONDS, SETTLE_SECONDS = 300.0, 60.0


@dataclass
class SoakArguments:
    """What the server goes through."""

    model: str = field(default="weights/scenes-smollm2", metadata={"help": "checkpoint or adapter"})
    base: str | None = arg_of(LoadOptions, "base")
    quantize: Bits | None = arg_of(LoadOptions, "quantize")
    prompt: str = field(default="a photo of a red apple", metadata={"help": "of every picture"})
    killed_clients: int = field(default=200, metadata={"help": "clients that hang up"})
    overload_seconds: float = field(default=300.0, metadata={"help": "at twice the capacity"})
    killed_servers: int = field(default=20, metadata={"help": "servers that are ended while they draw"})
    max_batch: int = field(default=8, metadata={"help": "answers that are worked on together"})
    max_queue: int = field(default=8, metadata={"help": "answers that may wait"})
    out: str | None = field(default=None, metadata={"help": "JSON to write, beside printing it"})

    def __post_init__(self) -> None:
        check_minimum(self, killed_clients=0, overload_seconds=0, killed_servers=0, max_batch=1, max_queue=0)


class Soak:
    """A server process, what has been asked of it, and what went wrong."""

    def __init__(self, args: SoakArguments, flags: list[str]) -> None:
        self.args, self.flags = args, flags
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.failures: list[str] = []
        self.asked, self.started = 0, time.perf_counter()
        self.memory: list[tuple[float, int]] = []
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        """A server that answers. Raises RuntimeError where it does not come up."""
        command = [sys.executable, "-m", "unified.cli.main", "serve", "--no-page", "--model", self.args.model]
        command += ["--port", str(self.port), "--max-batch", str(self.args.max_batch)]
        command += ["--max-queue", str(self.args.max_queue), *self.flags]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.perf_counter() + START_SECONDS
        while time.perf_counter() < end and process.poll() is None:
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return process
            except httpx.TransportError:
                time.sleep(0.2)
        process.kill()
        process.wait()
        raise RuntimeError(f"the server did not come up: {' '.join(command)}")

    def check(self, right: bool, what: str) -> None:
        """Note a failure."""
        if not right:
            self.failures.append(what)

    def note_memory(self) -> None:
        """The server's resident memory now."""
        size = psutil.Process(self.process.pid).memory_info().rss
        self.memory.append((round(time.perf_counter() - self.started, 1), round(size / 2**20)))

    def health(self) -> dict[str, Any]:
        """What the server says of itself."""
        answer: dict[str, Any] = httpx.get(f"{self.url}/health", timeout=60).json()
        return answer

    def post(self) -> httpx.Response:
        """Ask for a picture."""
        return httpx.post(f"{self.url}/v1/images/generations", json={"prompt": self.args.prompt}, timeout=600)

    def draws(self) -> bool:
        """Whether it draws a picture."""
        self.asked += 1
        return self.post().status_code == 200

    def check_free(self, when: str) -> None:
        """All places have to become free, and a picture to be drawn."""
        end = time.perf_counter() + SETTLE_SECONDS
        while any(self.health()[name] for name in ("active", "waiting")) and time.perf_counter() < end:
            time.sleep(0.1)
        state = self.health()
        self.check(not state["active"] and not state["waiting"], f"{when}: places are taken still, {state}")
        self.check(self.draws(), f"{when}: no picture")
        self.note_memory()

    def kill_clients(self) -> dict[str, Any]:
        """Clients that hang up, each at another point."""
        body = json.dumps({"prompt": self.args.prompt, "stream": True, "partial_images": 3}).encode()
        head = (
            f"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        )
        sent = (head[:20], head + body[:5], head + body, head + body)
        for number in range(self.args.killed_clients):
            self.asked += 1
            with socket.create_connection(("127.0.0.1", self.port), timeout=600) as client:
                client.sendall(sent[number % 4])
                if number % 4 == 3:
                    client.recv(100)  # the stream has begun, or the queue is full
            if number % 10 == 0:
                self.note_memory()
        self.check_free("after clients that hung up")
        return {"clients": self.args.killed_clients}

    def overload(self) -> dict[str, Any]:
        """Twice as many clients as there are places."""
        until = time.perf_counter() + self.args.overload_seconds
        statuses: list[int] = []

        def ask_again() -> None:
            while time.perf_counter() < until:
                try:
                    answer = self.post()
                except httpx.TransportError:
                    statuses.append(0)  # lost
                    continue
                statuses.append(answer.status_code)
                if answer.status_code == 429:
                    time.sleep(float(answer.headers["retry-after"]))

        count = 2 * (self.args.max_batch + self.args.max_queue)
        threads = [threading.Thread(target=ask_again) for _ in range(count)]
        for thread in threads:
            thread.start()
        longest = 0
        while any(thread.is_alive() for thread in threads):
            longest = max(longest, self.health()["waiting"])
            self.note_memory()
            time.sleep(1)
        self.asked += len(statuses)
        others = sorted({status for status in statuses if status not in (200, 429)})
        self.check(not others, f"at twice the capacity: statuses {others}")
        places = self.args.max_batch + self.args.max_queue  # what is not begun yet waits, too
        self.check(longest <= places, f"{longest} answers waited, more than {places}")
        self.check_free("after twice the capacity")
        return {"clients": count, "pictures": statuses.count(200), "refused": statuses.count(429), "waiting": longest}

    def kill_servers(self) -> dict[str, Any]:
        """Servers that are ended while they draw."""
        body = {"prompt": self.args.prompt, "stream": True, "partial_images": 3}
        for number in range(self.args.killed_servers):
            gentle = bool(number % 2)
            self.asked += 1
            said, cut = "", False
            with httpx.stream("POST", f"{self.url}/v1/images/generations", json=body, timeout=600) as stream:
                parts = stream.iter_text()
                try:
                    said += next(parts)
                    self.process.send_signal(signal.SIGTERM if gentle else signal.SIGKILL)
                    said += "".join(parts)
                except (httpx.TransportError, StopIteration):
                    cut = True
            status = self.process.wait(START_SECONDS)
            if gentle:
                self.check("image_generation.completed" in said and not cut, f"server {number}: its stream was cut")
                self.check(status in (0, -signal.SIGTERM), f"server {number}: SIGTERM ended it with {status}")
            self.process = self.start()
            self.check(self.draws(), f"server {number + 1} draws no picture")
            self.note_memory()
        return {"servers": self.args.killed_servers}


def main() -> None:
    hardware, args = parse((HardwareArguments, SoakArguments))
    given = {name: value for name, value in asdict(hardware).items() if value is not None}
    given |= {name: vars(args)[name] for name in ("base", "quantize") if vars(args)[name] is not None}
    soak = Soak(args, [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))])
    try:
        soak.check_free("at first")
        found = {"killed_clients": soak.kill_clients(), "overload": soak.overload()}
        found["killed_servers"] = soak.kill_servers()
    finally:
        soak.process.kill()
        soak.process.wait()
    config = {name: setting for name, setting in asdict(args).items() if name not in ("model", "out")}
    path = Path(args.out) if args.out else None
    result = write_result(
        path, "failures", len(soak.failures), soak.asked, args.model, config | given, stderr=None, tokenizer=None,
        prompts_sha256=prompts_digest([args.prompt]), seed=None, seconds=time.perf_counter() - soak.started,
        failures=soak.failures, memory_mb=soak.memory, cores=os.cpu_count(), **found,
    )  # fmt: skip
    end_evaluation(result, path)


if __name__ == "__main__":
    run_main(main)
