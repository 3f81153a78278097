"""What fails together in the engine is tried again apart, once, wherever it fails, and says what it says alone."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from test_engine import ENDS, NO_CODES, Answers, engine_of, generated, ids_of, picture
from toy_models import BOI, toy_model

from unified.serving.batches import ImageBatch, TextBatch
from unified.serving.jobs import Finished, Job

PICTURES = [picture([5 + n], n) for n in range(3)]
TALKS = [Job([5 + n, 9, BOI], NO_CODES, ENDS, n, max_new_tokens=12) for n in range(2)]
TEXTS = [Job([5 + n, 6], NO_CODES, frozenset(), n, max_images=0, max_new_tokens=6) for n in range(3)]
# the method that fails, when it does, and how often at most where answers that failed together never meet again
FAILURES: dict[str, tuple[type, str, Callable[..., bool], list[Job], int]] = {
    "first scale": (ImageBatch, "step", lambda batch, n: batch.scale == 0, PICTURES, 1),
    "last scale": (ImageBatch, "step", lambda batch, n: batch.scale == 2, PICTURES, 2),
    "decoding": (ImageBatch, "finish", lambda batch, n: True, PICTURES, 2),
    "decoding once": (ImageBatch, "finish", lambda batch, n: n == 1, PICTURES, 1),
    "decoding, then text": (ImageBatch, "finish", lambda batch, n: True, TALKS, 2),
    "text": (TextBatch, "step", lambda batch, n: True, TEXTS, 2),
    "later text": (TextBatch, "step", lambda batch, n: batch.sequences[0].text > 3, TEXTS, 2),
}


@pytest.mark.parametrize("failure", FAILURES.values(), ids=FAILURES)
def test_what_is_too_large_together_is_done_apart(
    failure: tuple[type, str, Callable[..., bool], list[Job], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory for one answer, not for two: each is as alone, after a failure or two, whatever begins beside them."""
    kind, name, fails, jobs, most = failure
    work, met = getattr(kind, name), []

    def too_large(batch: Any, *args: Any) -> Any:
        if len(batch.sequences) > 1 and fails(batch, len(met) + 1):
            met.append(len(batch.sequences))
            raise MemoryError("no memory for two")
        return work(batch, *args)

    monkeypatch.setattr(kind, name, too_large)
    model = toy_model()
    with engine_of(model) as engine:
        events = Answers(engine, [replace(job, seconds=30.0) for job in jobs]).wait()
        assert not engine.active
    assert [ids_of(answer) for answer in events] == [generated(model, job) for job in jobs]
    assert all(isinstance(answer[-1], Finished) for answer in events) and 1 <= len(met) <= most
