"""Which answers are worked on, and what runs next: places, batches, prefixes of conversations. One thread only."""

import time
from collections import deque
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

from unified.models.modeling import UnifiedForCausalLM
from unified.models.row_cache import CachedRow, RowCache
from unified.serving.batches import ImageBatch, TextBatch, alike
from unified.serving.jobs import Failed, Ticket
from unified.serving.prefixes import PrefixCache
from unified.serving.rows import Row, run_ids
from unified.serving.sequences import Sequence

Batch = TypeVar("Batch", TextBatch, ImageBatch)


class Scheduler:
    """Answers in progress, at most `max_batch`, and those that wait.

    A step is one token of all texts, or one scale of those images that are least far, so that later ones catch up and
    the last scale, most of the work, is run once for all. Answers that failed together stay in batches of their own.
    """

    def __init__(
        self, model: UnifiedForCausalLM, unconditional_ids: list[int], max_batch: int, cache_bytes: int
    ) -> None:
        self.model, self.max_batch = model, max_batch
        self.prefixes = PrefixCache(model.config, cache_bytes)
        self.waiting: deque[Ticket] = deque()
        self.begun: list[Ticket] = []  # not ended when last looked at; other threads may read it
        self.texts: list[TextBatch] = []
        self.new: list[Sequence] = []  # in no batch yet
        self.images: list[ImageBatch] = []
        self.blank = self.run_unconditional(unconditional_ids)

    @torch.no_grad()
    def run_unconditional(self, ids: list[int]) -> tuple[CachedRow, int]:
        """The unconditional prompt with its image start, run once: its row and last RoPE position."""
        no_codes = torch.empty(0, self.model.config.image_length, dtype=torch.long)
        row, cache = Row([*ids, self.model.config.boi_token_id], no_codes), RowCache([None])
        run_ids(self.model, [row], cache)
        return cache.row(0), row.position

    @property
    def active(self) -> list[Sequence]:
        """Answers in progress; for this thread, and between steps, in which batches are in no list."""
        batches: list[TextBatch | ImageBatch] = [*self.texts, *self.images]
        return [*self.new, *(sequence for batch in batches for sequence in batch.sequences)]

    def step(self) -> None:
        """Let ended answers go and waiting ones in, then run one token of text and one scale of images."""
        self.drop_ended()
        while self.waiting and len(self.active) < self.max_batch:
            self.admit(self.waiting[0])
            self.waiting.popleft()
        self.step_text()
        self.step_images()
        self.drop_ended()

    def admit(self, ticket: Ticket) -> None:
        """Begin to work on a job."""
        if over(ticket):
            return
        self.begun.append(ticket)
        try:
            sequence = Sequence(ticket, self.model)
            prefix = self.prefixes.find(sequence.prompt_keys(), ticket.job.owner)
            if prefix is not None:
                sequence.reuse(prefix)
        except Exception as error:  # as `run`: of this job alone
            ticket.say(Failed("error", f"{type(error).__name__}: {error}"))
            return
        self.new.append(sequence)

    def step_text(self) -> None:
        """One token of every text; prompts first, each in a batch of its like."""
        beginning = [sequence for sequence in self.new if not sequence.starts_image]
        self.new = [sequence for sequence in self.new if sequence.starts_image]
        decoding, self.texts = self.texts, []
        for batch in [*decoding, *map(TextBatch, alike(beginning))]:
            if self.run(batch.sequences, batch.step):
                add(batch, self.texts)
        for batch in self.texts:
            self.new += batch.leave(lambda s: not s.starts_image or s.ticket.ended.is_set())
        self.texts = [batch for batch in self.texts if batch.sequences]

    def step_images(self) -> None:
        """The next scale of the images that are least far; of those alone, one after the other, as memory asks for."""
        beginning = [sequence for sequence in self.new if sequence.starts_image]
        self.new = [sequence for sequence in self.new if not sequence.starts_image]
        if beginning:
            for group in alike(beginning):
                self.step_batch(ImageBatch.begin(group, self.model, self.blank))
        elif self.images:
            batch = min(self.images, key=lambda batch: -batch.scale if batch.alone else batch.scale)
            self.images.remove(batch)
            self.step_batch(batch)

    def step_batch(self, batch: ImageBatch) -> None:
        """One scale of a batch, which then joins the one at the scale it has come to."""
        lasts: list[bool] = []
        if not self.run(batch.sequences, lambda model: lasts.append(batch.step(model))):
            return
        if not lasts[0]:
            add(batch, self.images)
        elif self.run(batch.sequences, lambda model: batch.finish()):
            self.new += [sequence for sequence in batch.sequences if not sequence.ticket.ended.is_set()]
            self.remember(batch.sequences)

    def run(self, sequences: list[Sequence], work: Callable[[UnifiedForCausalLM], None]) -> bool:
        """Do a batch's work; whether it succeeded. What fails together is tried again, each answer by itself."""
        try:
            work(self.model)
        except Exception as error:  # the border between requests: whatever one of them meets, the others go on
            for sequence in sequences:
                if len(sequences) == 1:
                    sequence.ticket.say(Failed("error", f"{type(error).__name__}: {error}"))
                elif not sequence.ticket.ended.is_set():
                    sequence.alone = True
                    sequence.restart()
                    self.new.append(sequence)
            return False
        return True

    def drop_ended(self) -> None:
        """Give places free: of answers that are complete, cancelled or late."""
        for ticket in [*self.waiting, *self.begun]:
            over(ticket)
        self.begun = [ticket for ticket in self.begun if not ticket.ended.is_set()]
        self.waiting = deque(ticket for ticket in self.waiting if not ticket.ended.is_set())
        self.new = [sequence for sequence in self.new if not sequence.ticket.ended.is_set()]
        for text in self.texts:
            self.remember(text.leave(lambda sequence: not sequence.ticket.ended.is_set()))
        for batch in self.images:
            batch.leave(lambda sequence: not sequence.ticket.ended.is_set())
        self.texts = [batch for batch in self.texts if batch.sequences]
        self.images = [batch for batch in self.images if batch.sequences]

    def give_up(self, error: Exception) -> None:
        """Fail all answers in progress, as what failed belongs to none of them, such as no memory for a batch."""
        for ticket in self.begun:
            ticket.say(Failed("error", f"{type(error).__name__}: {error}"))
        self.begun, self.new, self.texts, self.images = [], [], [], []

    def remember(self, sequences: Iterable[Sequence]) -> None:
        """Keep what is cached of conversations that may go on."""
        for sequence in sequences:
            if sequence.ticket.ended.is_set() and sequence.cached is not None and sequence.job.max_new_tokens:
                self.prefixes.put(sequence.keys, sequence.cached, sequence.job.owner)
            if sequence.ticket.ended.is_set():
                sequence.cached = None


def add(batch: Batch, batches: list[Batch]) -> None:
    """Put a batch that was stepped among `batches`: into one that it may join, or as another."""
    for other in batches:
        if other.joins(batch):
            other.join(batch)
            return
    batches.append(batch)


def over(ticket: Ticket) -> bool:
    """Whether a job has ended; one that is cancelled or late does now."""
    if ticket.cancelled.is_set():
        ticket.say(Failed("cancelled", "the client has gone"))
    elif time.monotonic() > ticket.deadline:
        ticket.say(Failed("timeout", f"the answer took more than {ticket.job.seconds:.0f} seconds"))
    return ticket.ended.is_set()
