"""The page of a teaching: what goes in can be found on it, side by side, and nothing in it runs."""

from html.parser import HTMLParser

from PIL import Image

from unified.reports.fine_tuning_page import FineTuningPage, Pair, scores
from unified.reports.page import Turn

VOID = {"meta", "img", "br"}
OPTIONAL = {"p", "td", "th", "tr"}  # HTML lets these end without saying so


def result(value: float, **parts: dict) -> dict:
    return {"value": value, "stderr": 0.05, "n": 96, **parts}


def page(**changes: object) -> str:
    image = Image.new("RGB", (8, 8), "red")
    parts = {"shown": {"value": 0.9, "stderr": None, "n": 60}, "not shown": {"value": 0.5, "stderr": 0.1, "n": 36}}
    new = [result(value, taught=parts) for value in (0.02, 0.85)]
    known = [
        result(value, tasks={"two_object": {"value": value, "stderr": 0.1, "images": 25}}) for value in (0.9, 0.8)
    ]
    settings: dict = {
        "title": "Taught <six>",
        "summary": "It could & now it can.",
        "facts": ["OpenMoji."],
        "shown": [("a star", image)],
        "new": [Pair("a photo of a <star>", image, image)],
        "known": [Pair("a photo of a cat", image, image)],
        "strips": [("a strip", [image, image])],
        "scales": "1x1, 2x2",
        "chat_before": [Turn("user", "What is it?", image), Turn("assistant", "<script>alert(1)</script>")],
        "chat_after": [Turn("assistant", "A star.")],
        "new_scores": scores("New objects", *new, {"": 0.99}),
        "known_scores": scores("Known objects", *known, {"": 0.98, "two_object": 0.97}),
        "log": [{"images_seen": 5.0 * step, "image_loss": 3.0, "scale_1_loss": 1.0} for step in (1, 2)],
        "steps": [{"step": "teach", "seconds": 600.5, "command": "python x.py 'a & b'"}],
    }
    return FineTuningPage(**(settings | changes)).html()


class Balance(HTMLParser):
    """Raises where a tag is closed that is not the one open last."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag not in VOID | OPTIONAL:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in OPTIONAL:
            assert self.open.pop() == tag


def test_everything_is_on_the_page() -> None:
    text = page()
    for part in (
        "Taught &lt;six&gt;",
        "It could &amp; now",
        "1x1, 2x2 codes",
        "OpenMoji.",
        "a star",
        "a photo of a &lt;star&gt;",
        "A star.",
    ):
        assert part in text
    for part in ("a photo of a cat", "a strip", "What is it?", "teach", "600.5", "python x.py &#x27;a &amp; b&#x27;"):
        assert part in text
    # shown, two pairs, two of the strip, one in the chat, the curves
    assert text.count("data:image/png;base64,") == 1 + 4 + 2 + 1 + 1


def test_scores_stand_side_by_side_with_their_ceilings() -> None:
    text = page()
    assert "2 % → 85 %" in text and "90 % → 80 %" in text
    assert "<td>New objects<td>0.020 ± 0.050<td>0.850 ± 0.050<td>96<td>0.990" in text
    assert "<tr class=part><td>not shown in its pictures<td>0.500 ± 0.100<td>0.500 ± 0.100<td>36<td></tr>" in text
    assert "<tr class=part><td>two object<td>0.900 ± 0.100<td>0.800 ± 0.100<td>25<td>0.970</tr>" in text


def test_before_stands_left_of_after() -> None:
    sides = {name: Image.new("RGB", (8, 8), name) for name in ("red", "blue")}
    text = page(new=[Pair("a key", sides["red"], sides["blue"])])
    (left,) = page(new=[], shown=[("", sides["red"])], known=[], strips=[], chat_before=[], log=[]).split('src="')[1:]
    url = left.split('"')[0]
    assert text.index("New objects, before") < text.index(f'before<img src="{url}') < text.index("a key, after")


def test_an_answer_cannot_run_and_tags_are_closed() -> None:
    text = page()
    assert "<script>" not in text
    balance = Balance()
    balance.feed(text)
    assert balance.open == []
