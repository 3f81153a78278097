"""What the page is made of, without a browser: cards, files that say how they were drawn, pictures in words."""

import asyncio
import base64
import copy
import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from PIL import Image

from unified import UnifiedConfig, UnifiedProcessor
from unified.checkpoints.loading import load
from unified.serving.engine import Engine
from unified.serving.errors import ApiError
from unified.serving.gate import key_number
from unified.serving.jobs import Ticket
from unified.serving.page_about import Card, about
from unified.serving.page_access import PageAccess
from unified.serving.page_chat import Talk, Turn, answer, check_turn
from unified.serving.page_create import Drawn
from unified.serving.page_pictures import (
    Frame,
    figure,
    file_name,
    frame_html,
    png_with_settings,
    preview_of,
    read_file,
)
from unified.serving.service import Service
from unified.serving.settings import ServerSettings

RED = Image.new("RGB", (4, 4), (255, 0, 0))


def test_a_card_is_shown_without_front_matter_and_pictures_and_suggests_what_to_ask() -> None:
    card = Card.parse(
        "---\nlicense: mit\nwidget:\n- text: a cat\n- src: x.png\n- text: two dogs\n---\n# It\n\n"
        '![a](https://example.com/a.png) and <img src="b.png">.'
    )
    assert card == Card("# It\n\n and .", ("a cat", "two dogs"))
    assert Card.parse("# Plain") == Card("# Plain") and Card.parse("---\n- a\n---\nx") == Card("x")
    assert Card.parse("---\nname: [\n---\nx") == Card("x")


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
    keys = ("first-key-of-16-chars", "zweiter-schlüssel")
    given = [key.encode() for key in (*keys, "", "first", "é")]
    assert [key_number(one, keys) for one in given] == [0, 1, None, None, None]
    assert key_number(b"", ()) is None


def test_the_pages_bounds_are_those_of_the_api(tmp_path: Path) -> None:
    limits = ServerSettings(max_image_pixels=100, max_input_images=2, max_prompt_characters=5)
    service = SimpleNamespace(settings=limits)
    for name, size, status in (("large.png", (11, 10), 413), ("none.png", None, 400)):
        path = tmp_path / name
        Image.new("RGB", size).save(path) if size else path.write_text("no picture")
        with pytest.raises(ApiError, match=name) as refused:
            read_file(str(path), limits)
        assert refused.value.status == status
    with pytest.raises(ApiError, match="3 pictures are more than 2; begin a new conversation"):
        check_turn(service, Talk(input_codes=[torch.zeros(1)]), Turn("a", ["b", "c"]))
    with pytest.raises(ApiError, match="6 characters are more than 5"):
        check_turn(service, Talk(), Turn("abcdef"))


def test_previews_are_no_larger_than_the_page_needs() -> None:
    uri = re.search('src="data:image/png;base64,([^"]+)"', preview_of(Image.new("RGB", (2000, 1000)), "a"))
    assert Image.open(io.BytesIO(base64.b64decode(uri[1]))).size == (768, 384)


@pytest.mark.parametrize(("fit", "said"), [("crop", "cropped to their centre and"), ("pad", "put on white and")])
def test_about_says_how_pictures_become_square(fit: str, said: str, toy_checkpoint: Path) -> None:
    processor = UnifiedProcessor.from_pretrained(toy_checkpoint)
    processor.set_fit(fit)
    engine = SimpleNamespace(
        processor=processor, model=SimpleNamespace(config=UnifiedConfig.from_pretrained(toy_checkpoint))
    )
    service = SimpleNamespace(engine=engine, settings=ServerSettings(), scales=2)
    assert f"those you show are {said}" in " ".join(about(service, Card()).split())


def test_a_conversation_of_the_page_goes_on_with_itself_alone(toy_checkpoint: Path) -> None:
    """Each begins as gradio's copy of the same empty one; what another's cache holds would tell how fast it comes."""
    empty, turn = Talk(), Turn("a red cat", max_images=0)
    talks = [copy.deepcopy(empty) for _ in range(2)]

    async def ask(talk: Talk) -> float:
        before = service.metrics.cached._value.get()
        async for _ in answer(service, talk, turn):
            pass
        return service.metrics.cached._value.get() - before

    async def cached() -> list[float]:
        return [await ask(talk) for talk in (*talks, talks[0])]

    with Engine(*load(toy_checkpoint, device="cpu")) as engine:
        service = Service(engine, ServerSettings(default_new_tokens=2))
        first, other, again = asyncio.run(cached())
    assert first == other == 0 and again > 0


@pytest.mark.parametrize("kind", [Talk, Drawn])
def test_a_closed_page_gives_its_places_free(kind: type[Talk | Drawn]) -> None:
    """`stop` is what gradio calls with the state of a page that has gone."""
    tickets = [Ticket(SimpleNamespace(seconds=1.0), print) for _ in range(2)]
    state = kind(running=tickets[:1])
    state.stop()
    assert [ticket.cancelled.is_set() for ticket in tickets] == [True, False]
    kind().stop()


@pytest.mark.parametrize("ends_itself", [True, False])
def test_a_stream_ends_once_when_the_server_stops_and_its_session_has_its_answers(ends_itself: bool) -> None:
    pending: dict[str, set[str]] = {"a": {"event"}}
    sent: list[dict[str, Any]] = []

    async def beat(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        try:
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            if ends_itself:
                await send({"type": "http.response.body", "body": b""})
            raise

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def run() -> None:
        stopping, app = asyncio.Event(), MagicMock(side_effect=beat, auth=None)
        app.get_blocks()._queue.pending_event_ids_session = pending
        access = PageAccess(app, stopping)
        scope = {"type": "http", "method": "GET", "path": "/gradio_api/heartbeat/a", "headers": []}
        answer = asyncio.create_task(access(scope, None, send))
        await asyncio.sleep(0.05)
        stopping.set()
        await asyncio.sleep(0.3)
        assert not answer.done()
        pending["a"].clear()
        await asyncio.wait_for(answer, 10)

    asyncio.run(run())
    assert [message.get("more_body", False) for message in sent[1:]].count(False) == 1 and not sent[-1].get(
        "more_body"
    )
