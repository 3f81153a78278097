"""Headless Chromium for tests of the page: Debian's, without anything that asks another host."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, sync_playwright

CHROMIUM = shutil.which("chromium") or "/usr/bin/chromium"
MISSING = f"no {CHROMIUM}: apt-get install chromium, as .ci/run does"
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
# every picture that an element shows, in order: how wide it is in the file, and what it says it is
WATCH = """(place) => {
    window.shown = [];
    const note = () => document.querySelectorAll(`${place} img`).forEach((image) => {
        if (image.src !== window.shown.at(-1)?.src) window.shown.push({src: image.src, alt: image.alt});
    });
    new MutationObserver(note).observe(document.body, {subtree: true, childList: true, attributes: true});
}"""
# whether the browser can draw each of them
DECODE = """() => Promise.all(window.shown.map(async ({src, alt}) => {
    const image = new Image();
    image.src = src;
    await image.decode();
    return [image.naturalWidth, alt];
}))"""


def has_chromium() -> bool:
    return Path(CHROMIUM).exists()


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser with a user-data-dir of its own, which playwright makes and removes."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def open_page(browser: Browser, url: str, **settings: Any) -> tuple[Page, set[str]]:
    """The page at `url` once it can be typed into, and the hosts that it has asked, with all that was refused."""
    page, hosts = browser.new_context(**settings).new_page(), set[str]()
    page.set_default_timeout(15_000)
    page.on("request", lambda request: hosts.add(request.url.split("/")[2]) if request.url[:4] == "http" else None)
    page.on("response", lambda answer: hosts.add(f"{answer.status}: {answer.url}") if answer.status >= 400 else None)
    page.goto(url)
    page.get_by_placeholder("Message or picture").wait_for()
    return page, hosts
