"""The page's drawings: several pictures of a prompt, which sharpen together."""

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict, dataclass, field
from typing import Any

from unified.models.image_sampling import ImageSampling
from unified.serving.errors import ApiError
from unified.serving.jobs import Job, PartialImage, Ticket, WholeImage
from unified.serving.page_chat import check_characters
from unified.serving.page_pictures import Frame, figure
from unified.serving.service import Service, seeds_from

KEPT = 12  # pictures of earlier drawings that stay on the page


@dataclass(frozen=True)
class Wish:
    """What is to be drawn: `count` pictures of `prompt`, from `seed` on."""

    prompt: str
    count: int
    seed: int
    sampling: ImageSampling


@dataclass
class Drawn:
    """What the page shows of pictures, as HTML: the drawing in progress or done last, and those before it."""

    latest: list[str] = field(default_factory=list)
    earlier: list[str] = field(default_factory=list)

    running: list[Ticket] = field(default_factory=list)

    def stop(self) -> None:
        """Let the drawing end here; its whole pictures stay."""
        for ticket in self.running:
            ticket.cancel()

    def next(self) -> None:
        """Before another drawing."""
        self.earlier = [*self.latest, *self.earlier][:KEPT]
        self.latest = []


async def draw(service: Service, drawn: Drawn, wish: Wish) -> AsyncIterator[str]:
    """Draw, and give what is to be shown as the pictures sharpen; whole ones stay in `drawn`.

    Raises ApiError for what the engine refuses.
    """
    check_characters(service, wish.prompt)
    seeds = seeds_from(wish.seed, wish.count)
    answers = service.submit(jobs_of(service, wish, seeds), "prompt")
    drawn.next()
    drawn.running = answers.tickets
    settings = settings_of(service, wish.sampling)
    frames: list[Frame | None] = [None] * len(seeds)
    shown = [figure(None, wish.prompt, seed, settings) for seed in seeds]
    try:
        async with answers:
            yield gallery(shown)
            async with aclosing(answers.events()) as events:
                async for number, event in events:
                    frame = frame_of(service, event)
                    if frame is None:
                        continue
                    frames[number] = frame
                    shown[number] = figure(frame, wish.prompt, seeds[number], settings)
                    yield gallery(shown)
    except ApiError as error:
        if error.body.code != "cancelled":
            raise
    finally:
        drawn.latest = [
            one for one, frame in zip(shown, frames, strict=True) if frame is not None and frame.whole
        ]  # a stopped drawing keeps its whole pictures
    yield gallery(drawn.latest)


def jobs_of(service: Service, wish: Wish, seeds: list[int]) -> list[Job]:
    """The engine's jobs, one a picture."""
    engine = service.engine
    prompt = service.prompt_ids([{"role": "user", "content": wish.prompt}])
    return [
        Job(
            [*prompt, engine.model.config.boi_token_id],
            engine.no_codes,
            frozenset(),
            seed,
            wish.sampling,
            partial_scales=frozenset(range(service.scales - 1)),
            seconds=service.settings.seconds,
        )
        for seed in seeds
    ]


def frame_of(service: Service, event: Any) -> Frame | None:
    """The picture that an event holds, if it holds one."""
    if isinstance(event, WholeImage):
        service.known.add(event.image, event.codes)
        return Frame(event.image, service.scales - 1, service.scales)
    if isinstance(event, PartialImage):
        return Frame(event.image, event.scale, service.scales)
    return None


def settings_of(service: Service, sampling: ImageSampling) -> dict[str, Any]:
    """What a picture's file says beside prompt and seed."""
    named = {name: value for name, value in asdict(sampling).items() if name != "on_scale"}
    return {"model": service.settings.model_name, **named, "Software": "unified"}


def gallery(figures: list[str]) -> str:
    """Figures side by side."""
    return f'<div class="gallery">{"".join(figures)}</div>' if figures else ""
