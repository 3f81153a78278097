"""How much a server serves: 1, 4, 16, 64 clients at once against `unified serve`, and one answer at a time beside.

    python eval/serving_load.py --model weights/scenes-smollm2 --clients 1 4 16 64 --seconds 60 --out results/load.json
    python eval/serving_load.py --model weights/scenes-smollm2 --answers words --prompt "Tell me a story." \\
        --seconds 30 --out results/load_words.json

Every client asks for a picture in a stream that shows its scales, or for words as they come, waits for the answer, and
asks again; one that is refused (429) waits as long as `Retry-After` says. The server runs in this process. Per number
of clients: pictures or words a second, seconds to the first partial picture or words and to the whole answer (p50,
p99), refusals, and the memory of the process. `one_at_a_time` is the same for a server that works on a single answer,
with the last of --clients.

Printed, and written to --out, is one JSON: the value is the pictures or words a second at the last of --clients, n how
many answers.
"""

from unified.hardware.waiting import set_wait_policy

set_wait_policy()  # before torch loads

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import httpx
import numpy as np
import psutil
import torch

from unified.arguments.parser import check_minimum, parse, run_main
from unified.checkpoints.load_options import LoadOptions
from unified.files.results import prompts_digest, write_result
from unified.hardware.arguments import HardwareArguments
from unified.hardware.setup import products, set_up
from unified.inference.arguments import GuidedSamplingArguments
from unified.reports.endings import end_evaluation
from unified.serving.app import AppServer, create_app
from unified.serving.engine import Engine, EngineLimits
from unified.serving.settings import ServerSettings

MOST_TOKENS, DONE = 64, "[DONE]"


@dataclass
class LoadArguments(GuidedSamplingArguments, LoadOptions):
    """What is asked, and how often."""

    model: str = field(default="weights/scenes-smollm2", metadata={"help": "checkpoint or adapter"})
    answers: Literal["pictures", "words"] = field(
        default="pictures", metadata={"help": f"what is asked for; words, greedily, end after {MOST_TOKENS} tokens"}
    )
    prompt: str = field(default="a photo of a red apple", metadata={"help": "of every answer; pictures' seeds differ"})
    clients: list[int] = field(default_factory=lambda: [1, 4, 16, 64], metadata={"help": "at once, one after another"})
    seconds: float = field(default=60.0, metadata={"help": "for each number of clients"})
    max_batch: int = field(default=16, metadata={"help": "answers that are worked on together"})
    max_queue: int = field(default=64, metadata={"help": "answers that may wait"})
    out: str | None = field(default=None, metadata={"help": "JSON to write, beside printing it"})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_minimum(self, max_batch=1, max_queue=0)
        if not self.clients or min(self.clients) < 1 or self.seconds <= 0:
            raise ValueError(f"--clients {self.clients} --seconds {self.seconds}; give at least one client, some time")


@dataclass
class Client:
    """One that asks again and again: seconds to the first of an answer and to all of it, how much it was; refusals."""

    url: str
    request: tuple[str, dict[str, Any]]
    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    amount: int = 0
    refused: int = 0
    failed: int = 0

    def work(self, until: float) -> None:
        """Ask until it is that late."""
        with httpx.Client(timeout=600) as http:
            while time.perf_counter() < until:
                self.ask(http)

    def ask(self, http: httpx.Client) -> None:
        """One answer."""
        path, body = self.request
        started, first, said, last = time.perf_counter(), None, "", ""
        with http.stream("POST", self.url + path, json=body) as response:
            if response.status_code == 429:
                self.refused += 1
                time.sleep(float(response.headers["retry-after"]))
                return
            for line in response.iter_lines():
                if line.startswith("data: "):
                    last = line[6:]
                    shown = what_came(last)
                    said += shown
                    first = first or (time.perf_counter() - started if shown else None)
        if last == DONE or '"image_generation.completed"' in last:
            self.first += [] if first is None else [first]
            self.whole.append(time.perf_counter() - started)
            self.amount += len(said.split())
        else:
            self.failed += 1


def request_for(answers: str, prompt: str) -> tuple[str, dict[str, Any]]:
    """Path and body of a request for a picture or for words, streamed."""
    if answers == "pictures":
        return "/v1/images/generations", {"prompt": prompt, "stream": True, "partial_images": 64}
    body = {"messages": [{"role": "user", "content": prompt}], "modalities": ["text"], "max_tokens": MOST_TOKENS}
    return "/v1/chat/completions", body | {"stream": True}


def what_came(data: str) -> str:
    """The words in a line of a stream; of a picture that sharpens a space, of a whole one a word."""
    if data == DONE:
        return ""
    event = json.loads(data)
    if "choices" in event:
        return "".join(choice["delta"].get("content") or "" for choice in event["choices"])
    return "picture" if event["type"] == "image_generation.completed" else " "


@contextmanager
def served(engine: Engine, settings: ServerSettings) -> Iterator[str]:
    """The URL of a server of this process."""
    with AppServer(create_app(engine, settings), port=0, log_level="error").in_thread() as url:
        yield url


def percentiles(values: list[float]) -> dict[str, float | None]:
    """p50 and p99, interpolated; None of no values."""
    p50, p99 = np.percentile(values, [50, 99]).round(3).tolist() if values else (None, None)
    return {"p50": p50, "p99": p99}


def load_of(url: str, args: LoadArguments, count: int, seconds: float) -> dict[str, Any]:
    """What `count` clients get in so many seconds; answers begun in time are waited for."""
    clients = [Client(url, request_for(args.answers, args.prompt)) for _ in range(count)]
    started = time.perf_counter()
    threads = [threading.Thread(target=client.work, args=(started + seconds,)) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    taken = time.perf_counter() - started
    whole = [value for client in clients for value in client.whole]
    return {
        "answered": len(whole),
        f"{args.answers}_per_second": round(sum(client.amount for client in clients) / taken, 4),
        "seconds_to_first_partial": percentiles([value for client in clients for value in client.first]),
        "seconds_to_whole": percentiles(whole),
        "refused": sum(client.refused for client in clients),
        "failed": sum(client.failed for client in clients),
        "memory_mb": round(psutil.Process().memory_info().rss / 2**20),
    }


def main() -> None:
    hardware, args = parse((HardwareArguments, LoadArguments))
    set_up(hardware)
    started = time.perf_counter()
    model, processor = args.load(args.model)
    settings = ServerSettings(sampling=args.sampling(), seconds=600.0)
    found: dict[str, Any] = {}
    limits = EngineLimits(args.max_batch, args.max_queue)
    with served(Engine(model, processor, limits, products), settings) as url:
        load_of(url, args, 1, 0.0)  # warms up
        for count in args.clients:
            found[f"clients_{count}"] = load_of(url, args, count, args.seconds)
    with served(Engine(model, processor, EngineLimits(1, args.max_queue), products), settings) as url:
        found["one_at_a_time"] = load_of(url, args, args.clients[-1], args.seconds)
    last = found[f"clients_{args.clients[-1]}"]
    config = {name: setting for name, setting in asdict(args).items() if name not in ("model", "out")}
    config |= {"device": str(model.device), "threads": torch.get_num_threads(), "dtype": str(model.dtype)}
    details = {"stderr": None, "tokenizer": model.config.vq_fingerprint, "seed": None}
    details |= {"prompts_sha256": prompts_digest([args.prompt]), **found, "seconds": time.perf_counter() - started}
    path, metric = Path(args.out) if args.out else None, f"{args.answers}_per_second"
    end_evaluation(write_result(path, metric, last[metric], last["answered"], args.model, config, **details), path)


if __name__ == "__main__":
    run_main(main)
