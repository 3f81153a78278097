"""A model's page: what goes in can be found on it, and nothing in it runs."""

from PIL import Image

from unified.reports.page import ModelPage, Turn


def page(**changes: object) -> str:
    image = Image.new("RGB", (8, 8), "red")
    log = [{"images_seen": 10.0 * step, "text_loss": 2.0, "image_loss": 3.0, "scale_1_loss": 1.0} for step in (1, 2)]
    settings: dict = {
        "title": "Title",
        "facts": ["A fact."],
        "drawings": [("a photo of a <cat>", image)],
        "strips": [("a strip", [image, image])],
        "chat": [Turn("user", "What is it?", image), Turn("assistant", "<script>alert(1)</script>")],
        "log": log,
        "steps": [{"step": "encode", "seconds": 3.5, "command": "python x.py"}],
    }
    return ModelPage(**(settings | changes)).html()


def test_everything_is_on_the_page() -> None:
    text = page()
    for part in ("Title", "A fact.", "a photo of a &lt;cat&gt;", "a strip", "What is it?", "encode", "python x.py"):
        assert part in text
    assert text.count("data:image/png;base64,") == 5  # a drawing, two of the strip, one in the chat, the curves


def test_an_answer_cannot_run() -> None:
    assert "<script>" not in page()


def test_without_a_log_the_page_says_so() -> None:
    assert "no training log" in page(log=[{"eval_loss": 1.0}])
