"""Write the pictures of the page that the docs show: every tab, and a drawing as it sharpens, in headless Chromium.

    unified serve --model weights/scenes-smollm2 --port 8000
    python .ci/write_screenshots.py --url http://127.0.0.1:8000 --out docs/images

Needs Debian's Chromium. The frames of the drawing are those that the page has shown, kept by a MutationObserver.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
PROMPT = "a photo of a cat and a pizza"
# keeps what the conversation has shown, from one change to the next, and puts a moment of it back
KEEP = """() => {
    const log = document.querySelector('.talk [role=log]'), place = () => log.querySelector('.talk img, img');
    window.moments = [];
    new MutationObserver(() => {
        const image = place();
        if (image && image.src !== window.moments.at(-1)) window.moments.push(image.src);
    }).observe(log, {subtree: true, childList: true, attributes: true});
}"""
PUT_BACK = "(number) => { document.querySelector('.talk [role=log] img').src = window.moments[number]; }"


def open_page(browser: Browser, url: str, width: int, height: int, scheme: str) -> Page:
    page = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme).new_page()
    page.set_default_timeout(120_000)
    page.goto(url)
    page.get_by_placeholder("Message or picture").wait_for()
    page.wait_for_timeout(500)
    return page


def ask(page: Page, text: str) -> None:
    page.get_by_placeholder("Message or picture").fill(text)
    page.keyboard.press("Enter")


def settle(page: Page) -> None:
    """Until the answer that is being given has ended."""
    page.get_by_role("button", name="Stop", disabled=True).first.wait_for()
    page.wait_for_timeout(300)


def drawing(browser: Browser, url: str, out: Path) -> None:
    """The animated picture: a prompt is typed, and its picture sharpens."""
    page = open_page(browser, url, 620, 660, "light")
    frames = [page.screenshot()]
    page.get_by_placeholder("Message or picture").fill(PROMPT)
    frames.append(page.screenshot())
    page.evaluate(KEEP)
    page.keyboard.press("Enter")
    page.locator(".talk img:not(.unfinished)").wait_for()
    settle(page)
    for number in range(page.evaluate("window.moments.length")):
        page.evaluate(PUT_BACK, number)
        page.wait_for_timeout(100)
        frames.append(page.screenshot())
    images = [Image.open(io.BytesIO(frame)).convert("RGB") for frame in frames]
    times = [900, 900] + [600] * (len(images) - 3) + [2600]
    images[0].save(out / "drawing.webp", save_all=True, append_images=images[1:], duration=times, loop=0, quality=60)
    page.context.close()


def save(page: Page, path: Path) -> None:
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    image.save(path, quality=70, method=6)


def tabs(browser: Browser, url: str, out: Path) -> None:
    """Chat, Create, Look and About at a desk, and Chat on a phone in the dark."""
    page = open_page(browser, url, 1000, 760, "light")
    ask(page, PROMPT)
    page.locator(".talk img:not(.unfinished)").wait_for()
    settle(page)
    ask(page, "What is the capital of France?")
    page.wait_for_timeout(1500)
    settle(page)
    save(page, out / "page-chat.webp")
    page.get_by_role("tab", name="Create").click()
    page.get_by_label("Prompt").fill("a photo of two dogs")
    page.get_by_label("Seed (-1: random)").last.fill("3")
    page.get_by_role("button", name="Draw").click()
    page.locator("#latest a[download]").nth(3).wait_for()
    save(page, out / "page-create.webp")
    with page.expect_download() as download:
        page.locator("#latest a[download]").first.click()
    page.get_by_role("tab", name="Look").click()
    picture = download.value.path().with_suffix(".png")
    shutil.copy(download.value.path(), picture)
    page.locator("input[type=file]").last.set_input_files(picture)
    page.locator("#preview img").wait_for()
    page.wait_for_timeout(6000)
    page.get_by_label("Question").fill("How many dogs are there?")
    page.keyboard.press("Enter")
    page.wait_for_timeout(6000)
    save(page, out / "page-look.webp")
    page.get_by_role("tab", name="About").click()
    save(page, out / "page-about.webp")
    page.context.close()
    page = open_page(browser, url, 390, 760, "dark")
    ask(page, PROMPT)
    page.locator(".talk img:not(.unfinished)").wait_for()
    settle(page)
    save(page, out / "page-phone.webp")
    page.context.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server")
    parser.add_argument("--out", type=Path, default=Path("docs/images"), help="folder of the pictures")
    args = parser.parse_args()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        drawing(browser, args.url, args.out)
        tabs(browser, args.url, args.out)
        browser.close()


if __name__ == "__main__":
    main()
