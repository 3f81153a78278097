"""What the page is made of, without a browser: cards, files that say how they were drawn, pictures in words."""

import io
import re

import pytest
from PIL import Image

from unified.serving.gate import has_key
from unified.serving.page_about import Card
from unified.serving.page_pictures import Frame, figure, file_name, frame_html, png_with_settings

RED = Image.new("RGB", (4, 4), (255, 0, 0))


def test_a_card_is_shown_without_front_matter_and_pictures_and_suggests_what_to_ask() -> None:
    card = Card.parse(
        "---\nlicense: mit\nwidget:\n- text: a cat\n- src: x.png\n- text: two dogs\n---\n# It\n\n"
        '![a](https://example.com/a.png) and <img src="b.png">.'
    )
    assert card == Card("# It\n\n and .", ("a cat", "two dogs"))
    assert Card.parse("# Plain") == Card("# Plain") and Card.parse("---\n- a\n---\nx") == Card("x")


def test_a_kept_picture_says_how_it_was_drawn() -> None:
    kept = Image.open(io.BytesIO(png_with_settings(RED, {"prompt": "née 🐈", "seed": 7, "guidance_scale": 3.0})))
    assert kept.text == {"prompt": "née 🐈", "seed": "7", "guidance_scale": "3.0"}
    assert kept.tobytes() == RED.tobytes()


@pytest.mark.parametrize(
    ("prompt", "name"),
    [("A red cat!", "a-red-cat-5.png"), ("../../etc", "etc-5.png"), ("🐈", "picture-5.png"), ("é", "é-5.png")],
)
def test_files_are_named_by_their_prompt(prompt: str, name: str) -> None:
    assert file_name(prompt, 5) == name


def test_words_of_a_prompt_are_never_html() -> None:
    evil = '"><script>alert(1)</script>'
    for frame in (None, Frame(RED, 0, 3), Frame(RED, 2, 3)):
        shown = figure(frame, evil, 1, {})
        assert "<script" not in shown and shown.count("<figure>") == 1
    assert "<script" not in frame_html(Frame(RED, 2, 3), evil)


def test_unfinished_pictures_say_so() -> None:
    begun, whole = frame_html(Frame(RED, 0, 3), "a cat"), frame_html(Frame(RED, 2, 3), "a cat")
    assert 'alt="a cat, still being drawn: scale 1"' in begun and 'aria-busy="true"' in begun
    assert 'alt="a cat"' in whole and "busy" not in whole
    assert re.search(
        'href="data:image/png;base64,[^"]+" download="a-cat-9.png"', figure(Frame(RED, 2, 3), "a cat", 9, {})
    )


def test_a_key_is_one_of_the_keys() -> None:
    keys = ("first-key-of-16-chars", "second-key-of-16-chars")
    assert [has_key(given, keys) for given in (*keys, "", "first", "é")] == [True, True, False, False, False]
    assert not has_key("", ())
