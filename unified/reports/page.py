"""The page of a model: images with prompts, before and after a fine-tuning where there was one, in one HTML file.

Everything is in the file itself; the templates escape what they are given, so that no answer of a model can run.
"""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image


@dataclass(frozen=True)
class Turn:
    """One line of a chat: who says it (user, assistant, or note for the page itself), words, and an image."""

    role: str
    text: str
    image: Image.Image | None = None


@dataclass(frozen=True)
class Notice:
    """What a reader has to know before anything else, and the command that helps."""

    text: str
    command: str = ""


@dataclass(frozen=True)
class Drawing:
    """A prompt and its images, each under the name of its version: before, after, or nothing where there is one."""

    prompt: str
    images: Sequence[tuple[str, Image.Image]]


@dataclass(frozen=True)
class Group:
    """Drawings under a title."""

    title: str
    drawings: Sequence[Drawing]
    note: str = ""


@dataclass(frozen=True)
class Score:
    """Shares of right images of every version with their standard errors, of `n` images each.

    ceiling: what true images get, None where it is not known; part: whether it is a part of the score above it.
    """

    name: str
    versions: Sequence[tuple[float, float | None]]
    n: int
    ceiling: float | None = None
    part: bool = False

    def shares(self) -> list[str]:
        """As cells of the table: "0.850 ± 0.036"."""
        return [f"{value:.3f}" + ("" if stderr is None else f" ± {stderr:.3f}") for value, stderr in self.versions]

    def percent(self) -> str:
        """In large figures: "2 % → 85 %"."""
        return " → ".join(f"{100 * value:.0f} %" for value, _ in self.versions)

    def limit(self) -> str:
        """What true images get, as a cell."""
        return "" if self.ceiling is None else f"{self.ceiling:.3f}"


@dataclass(frozen=True)
class ModelPage:
    """What the page shows, in this order; what is empty is left out.

    refresh: seconds after which a browser reads the page again, 0 where it is final. summary: a sentence below the
    title. numbers: scores in large figures. shown: (caption, image) of what it was fine-tuned on. strips: (prompt, its
    image after each scale); scales: their sizes in words. chats: (version, turns). scores: each headline, then its
    parts; versions_scored: names of their versions. log: HF's `log_history` of all trainings, None where there are
    none. facts: the small print. steps: as `Steps.record` has them.
    """

    title: str
    refresh: int = 0
    summary: str = ""
    notices: Sequence[Notice] = ()
    numbers: Sequence[Score] = ()
    shown: Sequence[tuple[str, Image.Image]] = ()
    groups: Sequence[Group] = ()
    strips: Sequence[tuple[str, Sequence[Image.Image]]] = ()
    scales: str = ""
    chats: Sequence[tuple[str, Sequence[Turn]]] = ()
    scores: Sequence[Score] = ()
    versions_scored: Sequence[str] = ()
    score_notes: Sequence[str] = ()
    log: Sequence[Mapping[str, float]] | None = None
    facts: Sequence[str] = ()
    steps: Sequence[Mapping[str, Any]] = field(default=())

    def html(self) -> str:
        """The whole page."""
        return render("model.html.jinja", **vars(self), curves=plot(self.log or ()))


@cache
def templates() -> Environment:
    """Those of this package; what they are given is escaped, and what they lack is an error."""
    environment = Environment(
        loader=PackageLoader("unified.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["data_url"] = data_url
    return environment


def render(template: str, **values: Any) -> str:
    """A page of the template of this name."""
    return templates().get_template(template).render(**values)


def data_url(image: Image.Image) -> str:
    """`image` as a PNG inside a URL."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def plot(log: Sequence[Mapping[str, float]]) -> Image.Image | None:
    """Losses per modality and per scale over images seen; None without any."""
    entries = [entry for entry in log if "images_seen" in entry]
    return curves(json.dumps(entries)) if entries else None


@lru_cache(maxsize=1)  # a demo writes its page many times between two lines of its log
def curves(entries_json: str) -> Image.Image:
    """The losses of these lines of a log, which are JSON so that they can be remembered."""
    import matplotlib.figure  # of the `demo` extra, and only curves need it

    entries = json.loads(entries_json)
    drawing = matplotlib.figure.Figure(figsize=(10, 3.6), dpi=110, layout="constrained")
    scales = sorted({key for entry in entries for key in entry if key.startswith("scale_")})
    panels = zip(drawing.subplots(1, 2), (["text_loss", "image_loss"], scales), strict=True)
    for axes, names in panels:
        for name in names:
            points = [(entry["images_seen"], entry[name]) for entry in entries if name in entry]
            axes.plot(*zip(*points, strict=True), label=name.replace("_", " ").replace(" loss", ""))
        axes.set(xlabel="images seen", ylabel="nats per token")
        axes.grid(alpha=0.3)
        axes.legend()
    buffer = io.BytesIO()
    drawing.savefig(buffer, format="png")
    buffer.seek(0)
    return Image.open(buffer).convert("RGB")
