"""The page of a model that was taught more: what it drew and scored before and after, in one self-contained file."""

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image

from unified.reports.page import STYLE, Turn, bubble, figure, picture, plot, step_row, strip

LOOK = """
.lead { font-size: 1.25rem } .numbers { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; text-align: center }
.numbers div { background: #f5f7fb; border-radius: 1rem; padding: 1rem }
.numbers b { display: block; font-size: 2.4rem; line-height: 1.3 }
.shown { display: grid; grid-template-columns: repeat(6, 1fr); gap: 1rem }
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1.4rem 1.2rem }
.pair { display: grid; grid-template-columns: 1fr 1fr; gap: .3rem; font-size: .8rem; text-align: center; color: #666 }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 2rem } h3 { margin: 0 }
.part td:first-child { padding-left: 1.5rem }
.scores tr:not(.part) td { font-weight: 600; padding-top: .5rem }
"""
GROUPS = {"taught": "{} in its pictures", "tasks": "{}"}  # of an evaluation's result, and how their rows are named
PAIRED = "<p class=note>Each pair has one prompt and one seed.</p>"
JUDGED = """<p class=note>Shares of right pictures ± standard error. New objects: the nearest of all known pictures is
the one that was asked for (eval/nearest_object.py). Known objects: combinations that no training picture
shows, judged by GenEval's rules and the Scenes detector (eval/geneval.py). True pictures went through the image
tokenizer, as drawn ones come out of it: nobody can draw better.</p>"""


@dataclass(frozen=True)
class Score:
    """Shares of right pictures before and after with their standard errors, of `n` pictures each.

    ceiling: what true pictures get, None where it is not known; part: whether it is a part of the score above it.
    """

    name: str
    before: tuple[float, float | None]
    after: tuple[float, float | None]
    n: int
    ceiling: float | None = None
    part: bool = False

    def row(self) -> str:
        """As a row of the table."""
        ceiling = "" if self.ceiling is None else f"{self.ceiling:.3f}"
        cells = [html.escape(self.name), share(*self.before), share(*self.after), str(self.n), ceiling]
        return f"<tr{' class=part' if self.part else ''}>{''.join(f'<td>{cell}' for cell in cells)}</tr>"


@dataclass(frozen=True)
class Pair:
    """One prompt drawn before and after, from the same seed."""

    prompt: str
    before: Image.Image
    after: Image.Image

    def figure(self) -> str:
        """Side by side over the prompt."""
        sides = [("before", self.before), ("after", self.after)]
        shown = "".join(f"<div>{name}{picture(image, f'{self.prompt}, {name}')}</div>" for name, image in sides)
        return f"<figure><div class=pair>{shown}</div><figcaption>{html.escape(self.prompt)}</figcaption></figure>"


@dataclass(frozen=True)
class FineTuningPage:
    """What the page shows.

    summary: one sentence below the title; facts: small print; shown: (caption, picture) of what it was taught with;
    new, known: drawings of what it was taught, and of what it knew; strips: (prompt, its picture after each scale);
    scales: their sizes in words; new_scores, known_scores: the headline first, then its parts; log, steps: as for
    `page.ModelPage`.
    """

    title: str
    summary: str
    facts: Sequence[str]
    shown: Sequence[tuple[str, Image.Image]]
    new: Sequence[Pair]
    known: Sequence[Pair]
    strips: Sequence[tuple[str, Sequence[Image.Image]]]
    scales: str
    chat_before: Sequence[Turn]
    chat_after: Sequence[Turn]
    new_scores: Sequence[Score]
    known_scores: Sequence[Score]
    log: Sequence[Mapping[str, float]]
    steps: Sequence[Mapping[str, str | float]]

    def html(self) -> str:
        """The whole page."""
        head = "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        title = html.escape(self.title)
        return f"{head}<title>{title}</title><style>{STYLE}{LOOK}</style>{''.join(self._sections())}</html>"

    def _sections(self) -> Iterator[str]:
        yield f"<h1>{html.escape(self.title)}</h1><p class=lead>{html.escape(self.summary)}</p>"
        numbers = [("New objects drawn right", self.new_scores[0]), ("Known ones drawn right", self.known_scores[0])]
        yield f"<div class=numbers>{''.join(number(*each) for each in numbers)}</div>"
        yield f"<h2>What it was shown</h2><div class=shown>{''.join(figure(i, text) for text, i in self.shown)}</div>"
        yield f"<h2>New objects, before and after</h2>{PAIRED}{pairs(self.new)}"
        yield f"<h2>Known objects, before and after</h2>{pairs(self.known)}"
        yield f"<h2>How it draws: {html.escape(self.scales)} codes, each scale in one step</h2>"
        yield f"<div class=strips>{''.join(strip(*each) for each in self.strips)}</div>"
        yield f"<h2>Chat</h2><div class=sides>{side('Before', self.chat_before)}{side('After', self.chat_after)}</div>"
        yield f"<h2>Scores</h2>{table([*self.new_scores, *self.known_scores])}{JUDGED}"
        yield f"<h2>Losses of the teaching</h2><div class=plot>{plot(self.log)}</div>"
        yield f"<h2>Facts</h2>{''.join(f'<p class=note>{html.escape(fact)}</p>' for fact in self.facts)}"
        rows = "".join(map(step_row, self.steps))
        yield f"<h2>Steps</h2><table><tr><th>step<th>seconds<th>command</tr>{rows}</table>"


def share(value: float, stderr: float | None) -> str:
    """ "0.850 ± 0.036"."""
    return f"{value:.3f}" + ("" if stderr is None else f" ± {stderr:.3f}")


def number(what: str, score: Score) -> str:
    """A score in large figures."""
    return f"<div>{what}<b>{100 * score.before[0]:.0f} % → {100 * score.after[0]:.0f} %</b>{score.n} prompts</div>"


def pairs(drawn: Sequence[Pair]) -> str:
    """A sheet of drawings before and after."""
    return f"<div class=pairs>{''.join(pair.figure() for pair in drawn)}</div>"


def side(title: str, chat: Sequence[Turn]) -> str:
    """One of two chats that stand side by side."""
    return f"<div class=chat><h3>{title}</h3>{''.join(map(bubble, chat))}</div>"


def table(scores: Sequence[Score]) -> str:
    """All scores, a row each."""
    head = "".join(f"<th>{name}" for name in ("drawn right", "before", "after", "pictures", "true pictures get"))
    return f"<table class=scores><tr>{head}</tr>{''.join(score.row() for score in scores)}</table>"


def scores(
    name: str, before: Mapping[str, Any], after: Mapping[str, Any], ceilings: Mapping[str, float]
) -> list[Score]:
    """A result of eval/ before and after: its value, then its groups; `ceilings` by the group's name, "" of all."""
    whole = (before["value"], before["stderr"]), (after["value"], after["stderr"])
    rows = [Score(name, *whole, after["n"], ceilings[""])]
    for group, wording in GROUPS.items():
        for key, part in after.get(group, {}).items():
            old = before[group][key]
            count = part["n"] if "n" in part else part["images"]
            sides = (old["value"], old["stderr"]), (part["value"], part["stderr"])
            rows.append(Score(wording.format(key.replace("_", " ")), *sides, count, ceilings.get(key), part=True))
    return rows
