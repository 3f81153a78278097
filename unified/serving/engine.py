"""The one thread that owns the model: answers are submitted from any thread, batched, and said as events.

A picture is the same alone and in any batch, but for rounding: in float32 a code differs only where two were equally
probable to 1e-4.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from unified.models.backbones import ATTENTION, layer_kinds
from unified.models.modeling import UnifiedForCausalLM
from unified.models.processing import UnifiedProcessor
from unified.models.sequence_layout import remaining_context
from unified.serving.jobs import Event, Failed, Job, Ticket
from unified.serving.scheduler import Scheduler

STOPPED = Failed("stopped", "the server stops")


class Busy(RuntimeError):
    """The queue is full; `retry_after` seconds from now there may be a place."""

    def __init__(self, waiting: int, retry_after: int) -> None:
        super().__init__(f"{waiting} requests wait already; try again in {retry_after} s")
        self.retry_after = retry_after


@dataclass(frozen=True)
class EngineLimits:
    """max_batch: answers worked on together. max_queue: those that may wait. cache_bytes: of past conversations."""

    max_batch: int = 16
    max_queue: int = 64
    cache_bytes: int = 256 * 2**20

    @property
    def most(self) -> int:
        """Answers that are taken at once where there are no others."""
        return self.max_batch + self.max_queue


class Engine:
    """Batches the answers of many clients on one model; a context manager that stops its thread.

    Raises ValueError for a model that it cannot batch.
    """

    def __init__(
        self,
        model: UnifiedForCausalLM,
        processor: UnifiedProcessor,
        limits: EngineLimits | None = None,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        """`context` is entered by the engine's thread, as for products in another precision."""
        check_model(model)
        self.model, self.processor, self.limits, self.context = model, processor, limits or EngineLimits(), context
        self.changed = threading.Condition()
        self.inbox: deque[Ticket] = deque()
        self.calls: deque[tuple[Future[Any], Callable[[], Any]]] = deque()
        self.stopping = False
        self.seconds_per_answer, self.place_seconds = 1.0, 0.0  # of the last ones, for Retry-After
        with self.context():
            unconditional = processor.unconditional_ids()
            self.scheduler = Scheduler(model, unconditional, self.limits.max_batch, self.limits.cache_bytes)
        self.thread = threading.Thread(target=self.work, name="unified-engine", daemon=True)
        self.thread.start()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end an answer: the checkpoint's, and what its chat template writes behind one."""
        ends = self.model.generation_config.eos_token_id
        found = [ends] if isinstance(ends, int) else list(ends or ())
        behind = self.processor.end_token_id
        return frozenset(found if behind is None else [*found, behind])

    @property
    def no_codes(self) -> Tensor:
        """Codes (0, L) of no input image."""
        return torch.empty(0, self.model.config.image_length, dtype=torch.long)

    @property
    def active(self) -> int:
        """Answers that are worked on."""
        return sum(not ticket.ended.is_set() for ticket in self.scheduler.begun)

    @property
    def waiting(self) -> int:
        """Answers that wait, and requests whose pictures wait to be encoded."""
        return len(self.inbox) + len(self.scheduler.waiting) + len(self.calls)

    @property
    def alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self.thread.is_alive() and not self.stopping

    def submit(self, jobs: Sequence[Job], on_event: Callable[[int, Event], None]) -> list[Ticket]:
        """Let `jobs` be worked on, all or none; `on_event(i, event)` hears of the i-th, in the engine's thread.

        Raises Busy where the queue has no room for them, ValueError for more than it ever has room for, and for a
        prompt that fills the model's context.
        """
        if len(jobs) > self.limits.most:
            raise ValueError(f"{len(jobs)} answers are more than the {self.limits.most} that the queue takes")
        for job in jobs:
            self.check(job)
        tickets = [Ticket(job, partial(on_event, number)) for number, job in enumerate(jobs)]
        with self.changed:
            self.check_room(len(jobs))
            self.inbox += tickets
            self.changed.notify()
        return tickets

    def check_room(self, count: int) -> None:
        """Raise Busy unless `count` more may wait or be worked on. To be called with `changed` held."""
        waiting, free = self.waiting, max(0, self.limits.max_batch - self.active)
        if waiting + count > self.limits.max_queue + free:
            raise Busy(waiting, self.retry_after())
        if self.stopping:
            raise Busy(waiting, 1)

    def check(self, job: Job) -> None:
        """Raise ValueError for a job that the model cannot do."""
        self.room(job.input_ids, job.max_images)
        if job.max_new_tokens == 0 and job.input_ids[-1] != self.model.config.boi_token_id:
            raise ValueError("max_new_tokens 0 and no image asked for; give at least 1")

    def room(self, input_ids: list[int], images: int) -> int:
        """Tokens of text left in the context behind a prompt and `images`; ValueError where it is full."""
        ids = torch.tensor([input_ids])
        return remaining_context(ids, torch.ones_like(ids), self.model.config, images)

    def retry_after(self) -> int:
        """Seconds until the queue is likely to have moved."""
        return max(1, min(60, round(self.seconds_per_answer * (self.waiting + 1) / self.limits.max_batch)))

    def encode(self, images: Sequence[Image.Image]) -> "Future[Any]":
        """Codes (M, L) of input images. Raises Busy where the queue has no room."""

        def work() -> Tensor:
            pixels = self.processor.image_processor([*images])["pixel_values"]
            return self.model.model.vq_model.encode(pixels.to(self.model.device)).cpu()

        with self.changed:
            self.check_room(1)
            return self.call(work)

    def call(self, work: Callable[[], Any]) -> "Future[Any]":
        """Let the engine's thread do something between two steps."""
        future: Future[Any] = Future()
        with self.changed:
            if self.stopping:
                future.cancel()
            self.calls.append((future, work))
            self.changed.notify()
        return future

    def stop(self, finish_seconds: float = 0.0) -> None:
        """Take nothing more; let answers end for `finish_seconds`, fail the others and end the thread."""
        end = time.monotonic() + finish_seconds
        with self.changed:
            while (self.active or self.waiting) and time.monotonic() < end:
                self.changed.wait(0.05)
            self.stopping = True
            self.changed.notify_all()
        self.thread.join()

    def work(self) -> None:
        """The engine's thread."""
        try:
            with self.context(), torch.inference_mode():
                while self.take_in():
                    started, before = time.monotonic(), self.scheduler.active
                    self.step()
                    ended = sum(sequence.ticket.ended.is_set() for sequence in before)
                    self.learn(len(before), ended, time.monotonic() - started)
        finally:
            self.stopping = True
            for ticket in [*self.inbox, *self.scheduler.waiting, *self.scheduler.begun]:
                ticket.say(STOPPED)
            self.inbox.clear()
            for future, _ in self.calls:
                future.cancel()

    def step(self) -> None:
        """The scheduler's; whatever it meets, the thread goes on with what is asked next."""
        try:
            self.scheduler.step()
        except Exception as error:
            self.scheduler.give_up(error)

    def learn(self, worked_on: int, ended: int, seconds: float) -> None:
        """Follow how many seconds of its place an answer takes."""
        self.place_seconds += worked_on * seconds
        if ended:
            self.seconds_per_answer += 0.2 * (self.place_seconds / ended - self.seconds_per_answer)
            self.place_seconds = 0.0

    def take_in(self) -> bool:
        """Wait for work, take in what was submitted and answer one call; False when the engine stops."""
        with self.changed:
            while not (self.stopping or self.inbox or self.calls or self.active or self.scheduler.waiting):
                self.changed.wait()
            self.scheduler.waiting += self.inbox
            self.inbox.clear()
            call = self.calls.popleft() if self.calls else None
        if call is not None:  # one between two steps, so that many leave the answers in progress their time
            answer_call(*call)
        return not self.stopping


def answer_call(future: "Future[Any]", work: Callable[[], Any]) -> None:
    """Do `work` and give its result, or the error it meets, to who waits for it."""
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(work())
    except Exception as error:  # raised again where the result is asked for
        future.set_exception(error)


def check_model(model: UnifiedForCausalLM) -> None:
    """Raise ValueError for models whose answers cannot be batched here."""
    config = model.config
    if config.image_order != "scales":
        raise ValueError(f"image_order {config.image_order}: only models of image_order scales are served")
    kinds = layer_kinds(config.text_config) - ATTENTION
    if kinds or config.text_config.to_dict().get("num_kv_shared_layers"):
        found = f"layers of type {', '.join(sorted(kinds))}" if kinds else "layers that use the keys of others"
        raise ValueError(f"the backbone {config.text_config.model_type} has {found}, which are not served in batches")
