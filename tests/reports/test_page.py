"""A model's page: what goes in can be found on it, what is not there leaves no trace, and nothing in it runs."""

from html.parser import HTMLParser

from PIL import Image

from unified.reports.demo_scores import rows
from unified.reports.page import Drawing, Group, ModelPage, Notice, Turn

VOID = {"meta", "img", "br"}
OPTIONAL = {"p", "td", "th", "tr"}  # HTML lets these end without saying so
LOG = [{"images_seen": 10.0 * step, "text_loss": 2.0, "image_loss": 3.0, "scale_1_loss": 1.0} for step in (1, 2)]


def result(value: float, **parts: dict) -> dict:
    return {"value": value, "stderr": 0.05, "n": 96, **parts}


def pair(prompt: str, before: str = "red", after: str = "red") -> Drawing:
    return Drawing(prompt, [("before", Image.new("RGB", (8, 8), before)), ("after", Image.new("RGB", (8, 8), after))])


def page(**changes: object) -> str:
    image = Image.new("RGB", (8, 8), "red")
    parts = {"shown": {"value": 0.9, "stderr": None, "n": 60}, "not shown": {"value": 0.5, "stderr": 0.1, "n": 36}}
    new = [result(value, taught=parts) for value in (0.02, 0.85)]
    known = [
        result(value, tasks={"two_object": {"value": value, "stderr": 0.1, "images": 25}}) for value in (0.9, 0.8)
    ]
    table = [
        rows("New objects", new, {"": 0.99}),
        rows("Known objects", known, {"": 0.98, "two_object": 0.97}),
    ]
    settings: dict = {
        "title": "Fine-tuned on <six>",
        "summary": "It could & now it can.",
        "notices": [Notice("It was <cut>.", "python x.py 'a & b'")],
        "facts": ["OpenMoji."],
        "numbers": [part[0] for part in table],
        "shown": [("a star", image)],
        "groups": [Group("New", [pair("a photo of a <star>")], "One seed."), Group("Known", [pair("a cat")])],
        "strips": [("a strip", [image, image])],
        "scales": "1x1, 2x2",
        "chats": [
            ("before", [Turn("user", "What is it?", image), Turn("assistant", "<script>alert(1)</script>")]),
            ("after", [Turn("assistant", "A star.")]),
        ],
        "scores": [score for part in table for score in part],
        "versions_scored": ["before", "after"],
        "log": LOG,
        "steps": [{"step": "train", "seconds": 600.5, "cut": "69 of 340 steps"}],
    }
    return ModelPage(**(settings | changes)).html()


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
        "Fine-tuned on &lt;six&gt;",
        "It could &amp; now",
        "1x1, 2x2 codes",
        "OpenMoji.",
        "a star",
        "a photo of a &lt;star&gt;",
        "A star.",
    ):
        assert part in text
    for part in ("a cat", "a strip", "What is it?", "train", "600.5", "69 of 340 steps", "One seed."):
        assert part in text
    # shown, two pairs, two of the strip, one in the chat, the curves
    assert text.count("data:image/png;base64,") == 1 + 4 + 2 + 1 + 1


def test_what_a_reader_must_know_comes_first() -> None:
    text = page()
    assert text.index("It was &lt;cut&gt;.") < text.index("<h2>") and "python x.py &#39;a &amp; b&#39;" in text
    assert "http-equiv=refresh" not in text and "<meta http-equiv=refresh content=20>" in page(refresh=20)


def test_scores_stand_side_by_side_with_their_ceilings() -> None:
    text = page()
    assert "2 % → 85 %" in text and "90 % → 80 %" in text
    assert "<td>New objects<td>0.020 ± 0.050<td>0.850 ± 0.050<td>96<td>0.990" in text
    assert "<tr class=part><td>not shown in its pictures<td>0.500 ± 0.100<td>0.500 ± 0.100<td>36<td></tr>" in text
    assert "<tr class=part><td>two object<td>0.900 ± 0.100<td>0.800 ± 0.100<td>25<td>0.970</tr>" in text


def test_before_stands_left_of_after() -> None:
    text = page(groups=[Group("New", [pair("a key", "red", "blue")])])
    (left,) = page(groups=[], strips=[], chats=[], log=[]).split('src="')[1:]  # the red one of `shown`
    url = left.split('"')[0]
    assert text.index("<h2>New") < text.index(f'before<img src="{url}') < text.index("a key, after")


def test_sections_without_anything_to_show_are_left_out() -> None:
    lone = {"groups": [Group("Drawn", [Drawing("a cat", [("", Image.new("RGB", (8, 8)))])]), Group("Empty", [])]}
    nothing = {"notices": (), "numbers": (), "shown": (), "strips": (), "scores": (), "log": None, "steps": ()}
    text = page(**lone, **nothing, chats=[("", [Turn("user", "Hi?")])])
    assert "<h2>Drawn" in text and "<h2>Chat" in text and "a cat" in text and "Hi?" in text
    for title in ("Empty", "Scores", "Losses", "Steps", "How it draws", "fine-tuned on</h2>", "<h3>", "notice>"):
        assert title not in text


def test_an_answer_cannot_run_and_tags_are_closed() -> None:
    for text in (page(), page(log=[]), page(groups=[], chats=[], refresh=5)):
        assert "<script>" not in text
        balance = Balance()
        balance.feed(text)
        assert balance.open == []


def test_without_a_log_the_page_says_so() -> None:
    assert "no training log" in page(log=[{"eval_loss": 1.0}])
