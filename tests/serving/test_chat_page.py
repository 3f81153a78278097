"""The page in headless Chromium, on a toy: chat, drawings that sharpen, pictures to look at, wrong files, reload."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import DECODE, MISSING, WATCH, chromium, has_chromium, open_page
from page_process import Server, page_server
from page_server import SAMPLING, toy
from PIL import Image
from playwright.sync_api import Browser, Locator, Page

from unified import draw

pytestmark = pytest.mark.skipif(not has_chromium(), reason=MISSING)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with page_server(tmp_path_factory.mktemp("page")) as running:
        yield running
        wait_until(lambda: running.active == 0, "an answer has no end")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def page(server: Server, browser: Browser) -> Iterator[Page]:
    """The page in a fresh profile; it asks nobody else, and every picture of it has words."""
    page, hosts = open_page(browser, server.url, viewport={"width": 1000, "height": 900})
    yield page
    assert hosts == {server.url.removeprefix("http://")}
    assert not [image for image in page.locator("img").all() if not image.get_attribute("alt")]
    page.context.close()


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.new("RGB", (40, 30), (200, 30, 30)).save(tmp_path / "cat.png")
    return tmp_path / "cat.png"


def wait_until(condition: Any, what: str) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end, what
        time.sleep(0.05)


def say(page: Page, text: str) -> Locator:
    """Send a message; returns the answer's place."""
    answers = page.get_by_test_id("bot")
    before = answers.count()
    page.get_by_placeholder("Message or picture").fill(text)
    page.keyboard.press("Enter")
    answers.nth(before).wait_for()
    return answers.nth(before)


def test_chat_writes_and_draws_from_the_first_scale_to_the_last(page: Page, server: Server) -> None:
    page.evaluate(WATCH, ".talk")
    page.get_by_text("draw", exact=True).click()  # what the card suggests
    page.locator(".talk img:not(.unfinished)").wait_for()
    shown = page.evaluate(DECODE)
    assert [width for width, _ in shown] == [32, 32, 32]
    words = "a picture drawn by the model"
    assert [alt for _, alt in shown] == [
        f"{words}, still being drawn: scale 1",
        f"{words}, still being drawn: scale 2",
        words,
    ]
    assert "base64" not in str([part.get_attribute("aria-label") for part in page.get_by_test_id("bot").all()])
    wait_until(lambda: server.active == 0, "the answer has no end")
    page.get_by_role("button", name="Stop", disabled=True).first.wait_for()
    page.get_by_role("button", name="New conversation").click()
    page.get_by_text("Ask something, ask for a picture").wait_for()
    said = say(page, "hello there")
    wait_until(lambda: said.inner_text().strip("… \n") or said.locator("img").count(), "no answer")


def test_drawings_sharpen_are_kept_with_their_settings_and_drawn_again(
    page: Page, server: Server, tmp_path: Path
) -> None:
    page.evaluate(WATCH, "#latest figure:first-child")
    page.get_by_role("tab", name="Create").click()
    page.get_by_label("Prompt").fill('a "red" <cat> é')
    page.get_by_label("Seed (-1: random)").fill("5")
    page.get_by_role("button", name="Draw").click()
    page.locator("#latest a[download]").nth(3).wait_for()
    shown = page.evaluate(DECODE)
    assert [alt.partition(", still")[0] for _, alt in shown] == ['a "red" <cat> é'] * 2 + ['a "red" <cat> é, seed 5']
    expected = draw(*toy(tmp_path), ['a "red" <cat> é'] * 4, SAMPLING, seed=5)
    for number, link in enumerate(page.locator("#latest a[download]").all()):
        with page.expect_download() as download:
            link.click()
        download.value.save_as(tmp_path / "kept.png")
        assert download.value.suggested_filename == f"a-red-cat-é-{5 + number}.png"
        with Image.open(tmp_path / "kept.png") as kept:
            assert kept.text["prompt"] == 'a "red" <cat> é' and kept.text["seed"] == str(5 + number)
            assert (kept.text["guidance_scale"], kept.text["temperature"]) == ("2.0", "0.9")
            alone = np.asarray(expected[number]).astype(int)  # rounded otherwise in a batch
            assert np.abs(np.asarray(kept) - alone).max() <= 1
    page.get_by_role("button", name="Use this seed again: 7").click()
    again = page.locator("#latest img").nth(2).get_attribute("src")
    wait_until(lambda: page.get_by_label("Seed (-1: random)").input_value() == "7", "the seed is not taken")
    page.get_by_role("button", name="Draw").click()
    page.locator("#earlier figure").nth(3).wait_for()
    page.locator("#latest a[download]").wait_for()
    assert page.locator("#latest img").count() == 1 and page.locator("#latest img").get_attribute("src") == again


def test_an_uploaded_picture_is_described_and_asked_about_and_a_wrong_file_is_one_line(
    page: Page, server: Server, picture: Path, tmp_path: Path
) -> None:
    (tmp_path / "fake.png").write_text("no picture")
    page.get_by_role("tab", name="Look").click()
    look = page.get_by_role("tabpanel").filter(has=page.get_by_label("Question"))
    look.locator("input[type=file]").set_input_files(tmp_path / "fake.png")
    page.get_by_text("fake.png: no complete PNG, JPEG, WebP or GIF image").wait_for()
    look.get_by_label("Clear").first.click()
    look.locator("input[type=file]").set_input_files(picture)
    page.locator("#preview img").wait_for()
    assert page.locator("#preview img").get_attribute("alt") == "cat.png"
    wait_until(lambda: look.get_by_test_id("bot").last.inner_text().strip("… \n"), "no description")
    page.wait_for_timeout(1500)  # its last words
    look.get_by_label("Question").fill("what colour?")
    page.keyboard.press("Enter")
    look.get_by_text("what colour?").wait_for()
    wait_until(lambda: not server.active, "no answer")


def test_a_picture_is_sent_in_the_chat_and_a_wrong_file_leaves_the_message(
    page: Page, server: Server, picture: Path, tmp_path: Path
) -> None:
    (tmp_path / "fake.png").write_text("no picture")
    chooser = page.locator("input[type=file]").first
    chooser.set_input_files(tmp_path / "fake.png")
    page.get_by_placeholder("Message or picture").fill("what is it?")
    page.get_by_role("button", name="Submit").first.click()
    page.get_by_text("fake.png: no complete PNG, JPEG, WebP or GIF image").wait_for()
    assert page.get_by_placeholder("Message or picture").input_value() == "what is it?"
    page.reload()
    page.get_by_placeholder("Message or picture").wait_for()
    chooser.set_input_files(picture)
    say(page, "what is it?")
    assert page.locator(".talk img").first.get_attribute("alt") == "cat.png"
    wait_until(lambda: not server.active, "no answer")


def test_stop_and_reload_give_the_places_free(page: Page, server: Server) -> None:
    page.get_by_role("tab", name="Create").click()
    page.get_by_label("Prompt").fill("a cat")
    for leave in (lambda: page.get_by_role("button", name="Stop").last.click(), page.reload):
        page.get_by_role("button", name="Draw").click()
        page.locator("#latest figure").nth(3).wait_for()
        leave()
        wait_until(lambda: not server.active, "a place is not given free")
        wait_until(lambda: page.locator("#latest figure").count() == 0, "a picture that was not whole stays")
    assert page.locator("figure").count() == 0
    page.get_by_role("tab", name="Create").click()
    page.get_by_label("Prompt").fill("a cat")
    page.keyboard.press("Enter")
    page.locator("#latest a[download]").nth(3).wait_for()


def test_the_keyboard_alone_draws(page: Page) -> None:
    page.locator("body").click(position={"x": 2, "y": 2})
    focus_by_tab(page, lambda: page.evaluate("document.activeElement.innerText") == "Create")
    page.keyboard.press("Enter")
    page.get_by_label("Prompt").wait_for()
    focus_by_tab(page, lambda: page.evaluate("document.activeElement.tagName") == "TEXTAREA")
    page.keyboard.type("a cat")
    focus_by_tab(page, lambda: page.evaluate("document.activeElement.innerText") == "Draw")
    page.keyboard.press("Space")
    page.locator("#latest a[download]").nth(3).wait_for()
    focus_by_tab(page, lambda: "Use this seed" in page.evaluate("document.activeElement.innerText"))
    page.keyboard.press("Enter")
    wait_until(lambda: page.get_by_label("Seed (-1: random)").input_value() != "-1", "the seed is not taken")


def focus_by_tab(page: Page, there: Any) -> None:
    for _ in range(40):
        if there():
            return
        page.keyboard.press("Tab")
    raise AssertionError("the keyboard does not reach it")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_every_tab_without_scrolling_sideways(scheme: str, server: Server, browser: Browser) -> None:
    page, _ = open_page(browser, server.url, viewport={"width": 390, "height": 800}, color_scheme=scheme)
    red = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g)[0]")
    assert (int(red) > 200) == (scheme == "light")
    for tab in ("Chat", "Create", "Look", "About"):
        page.get_by_role("tab", name=tab).first.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, tab
    page.get_by_text("Pictures are squares of 32 × 32 pixels").wait_for()
    page.get_by_text("Its card.").wait_for()
    assert "example.com" not in page.content()
    page.context.close()


def test_a_key_opens_the_page(browser: Browser, tmp_path: Path) -> None:
    with page_server(tmp_path, "a key of 16 chars") as locked:
        page = browser.new_context().new_page()
        page.set_default_timeout(15_000)
        page.goto(locked.url)
        for key, shown in (("wrong", "Incorrect"), ("a key of 16 chars", "Ask something, ask for a picture")):
            page.get_by_label("username").fill("me")
            page.get_by_label("password").fill(key)
            page.get_by_role("button", name="Login").click()
            page.get_by_text(shown).first.wait_for()
        page.context.close()
