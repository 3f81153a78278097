"""The engine against `generate`: the same text and the same pictures, whatever runs beside them."""

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy_models import BOI, EOS, input_image, output_image, random_codes, toy_model

from unified import ImageSampling, UnifiedForCausalLM
from unified.serving.engine import Busy, Engine, EngineLimits
from unified.serving.jobs import Event, Failed, Finished, Job, PartialImage, TextToken, WholeImage

NEGATIVE = [3, 4]
PROCESSOR = SimpleNamespace(unconditional_ids=lambda: NEGATIVE, image_size=32)
NO_CODES = torch.empty(0, 21, dtype=torch.long)
BACKBONES = [("llama", "shared"), ("qwen3", "sequential"), ("gemma2", "shared")]
ENDS = frozenset({EOS})


class Answers:
    """Events of submitted jobs, which `wait` gives."""

    def __init__(self, engine: Engine, jobs: list[Job]) -> None:
        self.events: list[list[Event]] = [[] for _ in jobs]
        self.ended, self.count = threading.Semaphore(0), len(jobs)
        self.begun = threading.Event()
        self.tickets = engine.submit(jobs, self.hear)

    def hear(self, number: int, event: Event) -> None:
        self.events[number].append(event)
        self.begun.set()
        if isinstance(event, Finished | Failed):
            self.ended.release()

    def wait(self) -> list[list[Event]]:
        for _ in range(self.count):
            assert self.ended.acquire(timeout=60), "an answer has no end"
        return self.events


@pytest.fixture(params=BACKBONES, ids="-".join)
def model(request: pytest.FixtureRequest) -> UnifiedForCausalLM:
    return toy_model(request.param[0], image_positions=request.param[1])


def engine_of(model: UnifiedForCausalLM, **limits: int) -> Engine:
    return Engine(model, PROCESSOR, EngineLimits(**{"max_batch": 5, "max_queue": 200} | limits))


def picture(prompt: list[int], seed: int, **settings: Any) -> Job:
    return Job([*prompt, BOI], NO_CODES, ENDS, seed, ImageSampling(**settings))


def ids_of(events: list[Event]) -> list[int]:
    """An answer's text and images as ids."""
    ids: list[int] = []
    for event in events:
        if isinstance(event, TextToken):
            ids.append(event.token)
        elif isinstance(event, WholeImage):
            ids += output_image(event.codes)
    return ids


def generated(model: UnifiedForCausalLM, job: Job) -> list[int]:
    """The same by `generate` alone."""
    images = {"image_codes": job.input_codes} if len(job.input_codes) else {}
    prompt = torch.tensor([job.input_ids])
    images["attention_mask"] = torch.ones_like(prompt)
    ids = model.generate(
        prompt, image_sampling=job.image_sampling, negative_prompt_ids=torch.tensor([NEGATIVE]),
        max_images=job.max_images, max_new_tokens=job.max_new_tokens, do_sample=False,
        generator=torch.Generator().manual_seed(job.seed), **images,
    )[0].tolist()  # fmt: skip
    answer = ids[len(job.input_ids) :]
    answer = answer[: answer.index(EOS)] if EOS in answer else answer
    return [BOI, *answer] if job.input_ids[-1] == BOI else answer


def test_pictures_of_all_settings_are_those_of_generate(model: UnifiedForCausalLM) -> None:
    settings = [{}, {"temperature": 0.7, "guidance_scale": 3.0}, {"top_k": 5}, {"top_p": 0.8, "guidance_scale": 0.0}]
    jobs = [picture([5 + i % 40] * (1 + 3 * i % 17), i, **settings[i % 4]) for i in range(40)]
    with engine_of(model) as engine:
        events = Answers(engine, jobs).wait()
    assert [ids_of(answer) for answer in events] == [generated(model, job) for job in jobs]
    assert all(answer[-1] == Finished("image", 0) for answer in events)
    assert all(answer[0].seed == job.seed for answer, job in zip(events, jobs, strict=True))


def talks(model: UnifiedForCausalLM) -> list[Job]:
    """Conversations with input and output images, which are answered with text and images."""
    greedy, jobs = ImageSampling(temperature=0, guidance_scale=2.0), []
    for i in range(24):
        codes, prompt = random_codes(model, 3, seed=i), [(7 * i + k) % 50 + 5 for k in range(1 + i % 9)]
        if i % 3 == 1:
            prompt = [*input_image(model), *prompt]
        if i % 4 == 1:
            prompt = [*prompt, *output_image(codes[2]), 6, *input_image(model), 7]
        inputs = codes[: prompt.count(63) // 16]
        jobs.append(Job(prompt, inputs, ENDS, 0, greedy, max_images=i % 3, max_new_tokens=5 + 2 * i))
    return jobs


def test_conversations_are_those_of_generate(model: UnifiedForCausalLM) -> None:
    with torch.no_grad():
        model.lm_head.weight[BOI] *= 6  # so that there are images
    jobs = talks(model)
    with engine_of(model) as engine:
        events = Answers(engine, jobs).wait()
    assert [ids_of(answer) for answer in events] == [generated(model, job) for job in jobs]
    assert sum(isinstance(event, WholeImage) for answer in events for event in answer) >= 3
    assert {answer[-1].reason for answer in events} >= {"length"}


def test_a_conversation_that_goes_on_is_not_run_again(model: UnifiedForCausalLM) -> None:
    codes, other = random_codes(model, 1), random_codes(model, 1, seed=9)
    first = Job([*input_image(model), 5, 6], codes, ENDS, max_images=1, max_new_tokens=30)
    with engine_of(model) as engine:
        (answer,) = Answers(engine, [first]).wait()
        said = ids_of(answer)
        following = Job([*first.input_ids, *said, 8, 9], codes, ENDS, max_images=1, max_new_tokens=20)
        elsewhere = Job(following.input_ids, other, ENDS, max_images=1, max_new_tokens=20)
        cut = Job([*first.input_ids, *said[:-2], 9], codes, ENDS, max_new_tokens=5)
        again, foreign, shorter = (Answers(engine, [job]).wait()[0] for job in (following, elsewhere, cut))
    for job, found in ((following, again), (elsewhere, foreign), (cut, shorter)):
        assert ids_of(found) == generated(model, job)
    assert again[-1].cached >= len(first.input_ids) + len(said) - 1
    assert foreign[-1].cached == 1  # another image in the same place
    assert len(first.input_ids) <= shorter[-1].cached < len(cut.input_ids)


def test_conversations_are_forgotten_when_there_are_too_many() -> None:
    model = toy_model()
    jobs = [Job([5 + i, 6], NO_CODES, ENDS, max_images=0, max_new_tokens=9) for i in range(6)]
    with engine_of(model, cache_bytes=8_000) as engine:
        for job in jobs:
            Answers(engine, [job]).wait()
        kept = engine.scheduler.prefixes
        assert 0 < len(kept.rows) < 6 and kept.bytes <= kept.max_bytes


def test_partial_images_come_scale_by_scale() -> None:
    model = toy_model()
    job = Job([5, BOI], NO_CODES, ENDS, 3, ImageSampling(), partial_scales=frozenset({0, 1, 2}))
    with engine_of(model) as engine:
        (events,) = Answers(engine, [job]).wait()
    first, second, whole, end = events
    assert [isinstance(event, PartialImage) for event in events] == [True, True, False, False]
    assert (first.scale, second.scale, whole.number, end.reason) == (0, 1, 0, "image")
    by_scale = model.model.vq_model.decode_by_scale(whole.codes[None])
    shown = [torch.tensor(list(event.image.tobytes())) for event in (first, second, whole)]
    for pixels, found in zip(by_scale, shown, strict=True):
        expected = (pixels[0].permute(1, 2, 0).add(1) * 127.5).round().flatten()
        assert (expected - found).abs().max() <= 1


def test_an_answers_images_have_seeds_of_their_own() -> None:
    model = toy_model()
    with torch.no_grad():  # every text token is followed by an image
        model.lm_head.weight[BOI] = 10 * model.model(torch.tensor([[5]])).last_hidden_state[0, -1]
    job = Job([5], NO_CODES, ENDS, 7, ImageSampling(), max_images=1, max_new_tokens=1)
    with engine_of(model) as engine:
        (events,) = Answers(engine, [job]).wait()
        (whole,) = [event for event in events if isinstance(event, WholeImage)]
        (alone,) = Answers(engine, [picture([5], whole.seed)]).wait()
    assert torch.equal(alone[0].codes, whole.codes)


@pytest.fixture
def slow() -> Iterator[Engine]:
    """An engine that steps only when it is told."""
    engine = engine_of(toy_model(), max_batch=2, max_queue=2)
    engine.gate = threading.Semaphore(0)
    step = engine.scheduler.step

    def gated() -> None:
        assert engine.gate.acquire(timeout=60)
        step()

    engine.scheduler.step = gated
    yield engine
    engine.gate.release(10_000)
    engine.stop()


def test_the_queue_is_bounded_and_takes_all_or_none(slow: Engine) -> None:
    jobs = [picture([5], seed) for seed in range(5)]
    with pytest.raises(ValueError, match="5 answers are more than the 4 that the queue takes"):
        slow.submit(jobs, lambda number, event: None)
    answers = [Answers(slow, jobs[:2])]
    with pytest.raises(Busy, match="2 requests wait already; try again in 2 s"):
        slow.submit(jobs[2:], lambda number, event: None)
    answers.append(Answers(slow, jobs[2:4]))
    with pytest.raises(Busy):
        slow.submit(jobs[:1], lambda number, event: None)
    with pytest.raises(Busy, match="4 requests wait"):
        slow.encode([])
    slow.gate.release(100)
    assert all(isinstance(events[-1], Finished) for both in answers for events in both.wait())
    slow.submit(jobs[:1], lambda number, event: None)


def test_what_is_cancelled_gives_its_place_free_within_a_step(slow: Engine) -> None:
    text = Job([5, 6], NO_CODES, frozenset(), max_images=0, max_new_tokens=400)
    answers = Answers(slow, [text, picture([7], 0), picture([8], 1)])
    slow.gate.release(2)
    assert answers.begun.wait(60)
    while slow.gate._value:
        pass
    for ticket in answers.tickets[:2]:
        ticket.cancel()
    slow.gate.release(1)
    assert answers.ended.acquire(timeout=60) and answers.ended.acquire(timeout=60)
    assert [events[-1].reason for events in answers.events[:2]] == ["cancelled"] * 2
    slow.gate.release(50)
    assert answers.ended.acquire(timeout=60) and answers.events[2][-1] == Finished("image", 0)


def test_what_takes_too_long_ends() -> None:
    with engine_of(toy_model()) as engine:
        job = Job([5, 6], NO_CODES, frozenset(), max_images=0, max_new_tokens=400, seconds=0.0)
        (events,) = Answers(engine, [job]).wait()
    assert events == [Failed("timeout", "the answer took more than 0 seconds")]


def test_a_request_that_crashes_leaves_the_others_alone() -> None:
    """What fails in a batch is tried again by itself; what has been said is not said again."""
    model = toy_model()
    jobs = [*talks(model)[:8], *(picture([9, 8], seed) for seed in range(4))]
    expected = [generated(model, job) for job in jobs]
    embed = model.model.embed

    def crash(input_ids: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if bool((input_ids == 58).any()):
            raise RuntimeError("no 58 here")
        return embed(input_ids, *args, **kwargs)

    model.model.embed = crash
    bad = [picture([58], 0), Job([58, 5], NO_CODES, ENDS, max_new_tokens=4)]
    with engine_of(model) as engine:
        events = Answers(engine, [*jobs[:3], bad[0], *jobs[3:], bad[1]]).wait()
        assert events.pop(3) == events.pop() == [Failed("error", "RuntimeError: no 58 here")]
    found = [ids_of(answer) for answer in events]
    for answer, ids in zip(found, expected, strict=True):
        assert answer == ids or 58 in ids  # some answers write the token themselves


def test_answers_in_progress_are_counted_while_they_are_stepped() -> None:
    """By other threads too: batches are in no list of the scheduler's then."""
    model, counts = toy_model(), []
    with engine_of(model) as engine:
        run = model.model.run_backbone

        def counted(*args: Any, **kwargs: Any) -> Any:
            counts.append(engine.active)
            return run(*args, **kwargs)

        model.model.run_backbone = counted
        Answers(engine, [picture([5], 0), Job([5, 6], NO_CODES, frozenset(), max_images=0, max_new_tokens=3)]).wait()
        assert set(counts) <= {1, 2} and 2 in counts


def test_what_fails_outside_of_answers_ends_these_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as no memory for a batch: the engine goes on with what is asked next."""

    def fail(*args: Any) -> None:
        raise RuntimeError("out of memory")

    with engine_of(toy_model()) as engine:
        with monkeypatch.context() as patched:
            patched.setattr("unified.serving.scheduler.ImageBatch.begin", fail)
            (events,) = Answers(engine, [picture([5], 0)]).wait()
        assert events == [Failed("error", "RuntimeError: out of memory")]
        (events,) = Answers(engine, [picture([5], 0)]).wait()
        assert isinstance(events[-1], Finished) and engine.alive and not engine.active


def test_a_job_that_cannot_begin_fails_alone() -> None:
    with engine_of(toy_model()) as engine:
        good, bad = Answers(engine, [picture([5], 0), picture([5], 2**70)]).wait()
    assert isinstance(good[-1], Finished) and bad[-1].reason == "error"


def test_a_model_that_has_diverged_fails_one_answer() -> None:
    model = toy_model()
    with torch.no_grad():
        model.get_input_embeddings().weight[20] = float("nan")
    with engine_of(model) as engine:
        events = Answers(
            engine, [picture([20], 0), picture([5], 0), Job([20], NO_CODES, ENDS, max_new_tokens=3)]
        ).wait()
    assert [type(answer[-1]) for answer in events] == [Failed, Finished, Failed]
    assert all("nan" in answer[-1].message for answer in (events[0], events[2]))


def test_stopping_finishes_what_was_begun() -> None:
    engine = engine_of(toy_model())
    answers = Answers(engine, [picture([5], seed) for seed in range(12)])
    engine.stop(finish_seconds=60)
    assert all(isinstance(events[-1], Finished) for events in answers.wait())
    with pytest.raises(Busy):
        engine.submit([picture([5], 0)], lambda number, event: None)
    assert not engine.alive


def test_stopping_at_once_fails_the_rest() -> None:
    engine = engine_of(toy_model(), max_batch=1)
    endless = Job([5, 6], NO_CODES, frozenset(), max_images=0, max_new_tokens=450)
    answers = Answers(engine, [endless] * 4)
    engine.stop()
    assert {events[-1].reason for events in answers.wait()} == {"stopped"}


@pytest.mark.parametrize("prompt", [[5] * 600, [5] * 509 + [BOI]])
def test_a_prompt_that_fills_the_context_is_refused(prompt: list[int]) -> None:
    with engine_of(toy_model()) as engine, pytest.raises(ValueError, match="the model's context has 512"):
        engine.submit([Job(prompt, NO_CODES, ENDS, max_new_tokens=4)], lambda number, event: None)


def test_raster_models_are_not_served() -> None:
    with pytest.raises(ValueError, match="image_order raster"):
        engine_of(toy_model(image_order="raster"))


def test_what_runs_together_is_one_batch(slow: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both halves of guidance, all texts' tokens; the unconditional prompt was run when the engine began."""
    rows, run = [], slow.model.model.run_backbone

    def counted(states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        rows.append(states.shape[0])
        return run(states, *args, **kwargs)

    monkeypatch.setattr(slow.model.model, "run_backbone", counted)
    scales = len(slow.model.config.patch_nums)
    for job, expected in (
        (picture([5], 0, guidance_scale=2.0), [4] * scales),
        (picture([5], 0), [2] * scales),
        (Job([5, 6], NO_CODES, frozenset(), max_images=0, max_new_tokens=4), [2] * 4),
    ):
        answers = Answers(slow, [job, job])
        slow.gate.release(100)
        assert all(isinstance(events[-1], Finished) for events in answers.wait())
        assert rows == expected
        rows.clear()
