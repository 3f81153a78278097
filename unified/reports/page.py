"""The page of a model: pictures with prompts, the chat, loss curves and timings in one self-contained HTML file."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { margin-bottom: 0 } h2 { margin-top: 2.5rem; border-bottom: 1px solid #ddd } .note { color: #666 }
.sheet { display: grid; grid-template-columns: repeat(4, 1fr); gap: 1rem } figure { margin: 0 }
.strips { display: grid; grid-template-columns: 1fr 1fr; gap: 1.2rem 2rem; font-size: .9rem; text-align: center }
.strip { display: flex; gap: .4rem } .strip img { min-width: 0; flex: 1 }
img { width: 100%; image-rendering: pixelated; border-radius: 4px }
figcaption { font-size: .9rem; text-align: center } svg, .plot img { image-rendering: auto }
.chat p { padding: .6rem 1rem; border-radius: 1rem; width: fit-content; max-width: 80% } .chat img { width: 10rem }
.user { background: #e7f0ff; margin-left: auto } .assistant { background: #f1f1f1 } table { border-collapse: collapse }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top } code { font-size: .8rem; color: #555 }
"""


@dataclass(frozen=True)
class Turn:
    """One line of a chat: who says it (user, assistant, or note for the page itself), words, and a picture."""

    role: str
    text: str
    image: Image.Image | None = None


@dataclass(frozen=True)
class ModelPage:
    """What the page shows.

    drawings: (prompt, picture); strips: (prompt, its picture after each scale); log: HF's `log_history` of all stages;
    steps: `{"step", "seconds", "command"}`; facts: sentences below the title.
    """

    title: str
    facts: Sequence[str]
    drawings: Sequence[tuple[str, Image.Image]]
    strips: Sequence[tuple[str, Sequence[Image.Image]]]
    chat: Sequence[Turn]
    log: Sequence[Mapping[str, float]]
    steps: Sequence[Mapping[str, str | float]]

    def html(self) -> str:
        """The whole page."""
        steps = "".join(map(step_row, self.steps))
        sections = [
            f"<h1>{html.escape(self.title)}</h1>",
            *(f"<p class=note>{html.escape(fact)}</p>" for fact in self.facts),
            "<h2>Drawn from prompts</h2>",
            f"<div class=sheet>{''.join(figure(image, prompt) for prompt, image in self.drawings)}</div>",
            "<h2>Scale by scale</h2>",
            f"<div class=strips>{''.join(strip(prompt, images) for prompt, images in self.strips)}</div>",
            f"<h2>Chat</h2><div class=chat>{''.join(map(bubble, self.chat))}</div>",
            f"<h2>Losses</h2><div class=plot>{plot(self.log)}</div>",
            f"<h2>Steps</h2><table><tr><th>step<th>seconds<th>command</tr>{steps}</table>",
        ]
        head = f"<meta charset=utf-8><title>{html.escape(self.title)}</title><style>{STYLE}</style>"
        return f"<!doctype html>{head}{''.join(sections)}"


def data_url(image: Image.Image) -> str:
    """`image` as a PNG inside a URL."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def picture(image: Image.Image, caption: str = "") -> str:
    """An `img` tag."""
    return f'<img src="{data_url(image)}" alt="{html.escape(caption)}">'


def figure(image: Image.Image, caption: str) -> str:
    """A picture over its caption."""
    return f"<figure>{picture(image, caption)}<figcaption>{html.escape(caption)}</figcaption></figure>"


def strip(prompt: str, images: Sequence[Image.Image]) -> str:
    """A picture after each scale, from left to right, over its prompt."""
    return f"<figure><div class=strip>{''.join(map(picture, images))}</div>{html.escape(prompt)}</figure>"


def bubble(turn: Turn) -> str:
    """A line of the chat."""
    shown = picture(turn.image) + "<br>" if turn.image else ""
    return f"<p class={turn.role}>{shown}{html.escape(turn.text)}</p>"


def step_row(step: Mapping[str, str | float]) -> str:
    """A row of the table of steps."""
    return f"<tr><td>{step['step']}<td>{step['seconds']}<td><code>{html.escape(str(step['command']))}</code></tr>"


def plot(log: Sequence[Mapping[str, float]]) -> str:
    """Losses per modality and per scale over images seen, as an `img` tag; empty without a log."""
    entries = [entry for entry in log if "images_seen" in entry]
    if not entries:
        return "<p class=note>no training log</p>"
    import matplotlib.figure  # of the `demo` extra, and only curves need it

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
    return f'<img src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}" alt="loss curves">'
