"""The page at `/`: Chat, Create, Look and About, made with gradio.

Nothing of it is asked for from another host: gradio's own files are served here, its fonts are the system's, its
telemetry is off, and a Content-Security-Policy says so to the browser.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI
from gradio.routes import App
from starlette.routing import Match, Mount
from starlette.types import Scope

from unified.models.image_sampling import ImageSampling
from unified.serving.errors import ApiError
from unified.serving.gate import key_number
from unified.serving.page_about import Card, about
from unified.serving.page_access import PageAccess, is_of_page
from unified.serving.page_chat import Shown, Talk, Turn, answer
from unified.serving.page_create import Drawn, Wish, draw, gallery
from unified.serving.page_pictures import Html, preview_of, read_file
from unified.serving.page_sessions import OPEN_SECONDS, Sessions
from unified.serving.protocol import MAX_SEED
from unified.serving.service import Service

CSS = Path(__file__).with_name("page.css")
FONTS: dict[str, Any] = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
UPLOADS = (600, int(OPEN_SECONDS))  # every so many seconds files are deleted that are so old
RANDOM, SHORT_SEEDS = -1, 100_000  # -1 as in the field's other pages
DESCRIBE = "What do you see?"
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
# a click on a button of a picture, with its seed, is an event of the gallery
SEED_CLICKS = """element.addEventListener('click', (event) => {
    const button = event.target.closest('button[data-seed]');
    if (button) trigger('click', {seed: Number(button.dataset.seed)});
})"""


class PageMount(Mount):
    """The page's paths; what else is asked for is the API's, or an error of it."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or not is_of_page(scope["path"]):
            return Match.NONE, {}
        return super().matches(scope)


def mount_page(app: FastAPI, card: Card | None = None) -> None:
    """Put the page at `/` of `create_app`'s app, behind all that it has; with `card` as the model's.

    Where the app asks for API keys, the page asks for one, too, as the password.
    """
    service: Service = app.state.service
    keys = service.settings.api_keys
    gr.mount_gradio_app(
        app,
        build_page(service, card or Card()),
        path="/",
        auth=(lambda name, key: key_number(key.encode(), keys) is not None) if keys else None,
        auth_message="Any name, and an API key of this server as the password." if keys else None,
        theme=gr.themes.Default(primary_hue="indigo", neutral_hue="slate", radius_size="md", **FONTS),
        css_paths=[CSS],
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
        max_file_size=service.settings.max_body_bytes,
    )
    mounted = app.router.routes.pop()
    assert isinstance(mounted, Mount) and isinstance(mounted.app, App), f"gradio has mounted {mounted}"
    mounted.app.state_holder = Sessions.of(mounted.app.get_blocks())
    app.router.routes.append(PageMount("/", PageAccess(mounted.app, app.state.stopping)))


def build_page(service: Service, card: Card) -> gr.Blocks:
    """The page's components and what they do."""
    with gr.Blocks(title=service.settings.model_name, analytics_enabled=False, delete_cache=UPLOADS) as page:
        gr.HTML(
            f"<h1>{service.settings.model_name}</h1><p>One language model that reads and draws pictures. "
            "Its card and its limits are under <em>About</em>.</p>",
            elem_id="title",
        )
        with gr.Tabs():
            with gr.Tab("Chat"):
                chat_tab(service, card)
            with gr.Tab("Create"):
                create_tab(service)
            with gr.Tab("Look"):
                look_tab(service)
            with gr.Tab("About"):
                gr.Markdown(about(service, card))
    page.queue(default_concurrency_limit=None)  # the engine bounds what waits, and says so
    return page


def sampling_fields(service: Service) -> list[Any]:
    """Fields of seed, guidance and temperature; see `sampling_of`."""
    sampling = service.settings.sampling
    guidance = max(1.0, sampling.guidance_scale)
    return [
        gr.Number(RANDOM, label="Seed (-1: random)", precision=0, minimum=RANDOM, maximum=MAX_SEED),
        gr.Slider(1, 10, guidance, step=0.1, label="Guidance (1: off)"),
        gr.Slider(0, 2, sampling.temperature, step=0.05, label="Temperature"),
    ]


def sampling_of(service: Service, guidance: float, temperature: float) -> ImageSampling:
    """What the fields say, and the server's defaults for the rest."""
    default = service.settings.sampling
    return ImageSampling(float(temperature), default.top_k, default.top_p, float(guidance))


def seed_of(seed: float | None) -> int:
    """What the field says; a random one, short enough to be noted, where it says so."""
    return secrets.randbelow(SHORT_SEEDS) if seed is None or seed == RANDOM else int(seed)


def messages_of(shown: Shown) -> list[dict[str, Any]]:
    """A conversation as the Chatbot takes it. Pictures are components: text of messages is read aloud as it is."""
    return [
        {
            "role": message["role"],
            "content": [gr.HTML(part) if isinstance(part, Html) else part for part in message["content"]],
        }
        for message in shown
    ]


def refusal(error: ValueError | ApiError) -> gr.Error:
    """One line on the page for what could not be done."""
    return gr.Error(str(error), title="Not possible", duration=10, print_exception=False)


def chat_tab(service: Service, card: Card) -> None:
    """A conversation of words and pictures."""
    talk = gr.State(Talk(), delete_callback=Talk.stop)
    examples: list[Any] = [{"text": prompt} for prompt in card.prompts[:4]]
    log = gr.Chatbot(
        label="Conversation", elem_classes="talk", height="60vh", buttons=[], feedback_options=None,
        placeholder="Ask something, ask for a picture, or drop a picture below and ask about it.", examples=examples,
    )  # fmt: skip
    box = gr.MultimodalTextbox(
        placeholder="Message or picture", label="Message", show_label=False, file_types=["image"],
        file_count="multiple", max_plain_text_length=service.settings.max_prompt_characters, autofocus=True,
    )  # fmt: skip
    with gr.Row():
        fresh = gr.Button("New conversation", size="sm")
        stop = gr.Button("Stop", size="sm", interactive=False)
    with gr.Accordion("How pictures are drawn", open=False):
        fields = sampling_fields(service)

    async def ask(
        message: dict[str, Any], talk: Talk, seed: float | None, guidance: float, temperature: float
    ) -> AsyncIterator[tuple[Any, ...]]:
        sampling = sampling_of(service, guidance, temperature)
        turn = Turn(
            message["text"] or "", message["files"], seed_of(seed), sampling, min(1, service.settings.max_images)
        )
        try:
            async for shown in answer(service, talk, turn):
                yield messages_of(shown), None, gr.update(interactive=True)
        except (ValueError, ApiError) as error:
            raise refusal(error) from None
        finally:
            talk.running = []

    asked = gr.on([box.submit], ask, [box, talk, *fields], [log, box, stop], **QUIET)
    chosen = log.example_select(use_example, None, box, **QUIET)
    also_asked = chosen.then(ask, [box, talk, *fields], [log, box, stop], **QUIET)
    for event in (asked, also_asked):
        event.then(lambda: gr.update(interactive=False), None, stop, **QUIET)
    stop.click(Talk.stop, talk, None, queue=False, **QUIET)
    gr.on([fresh.click, log.clear], begin_anew, talk, [talk, log], **QUIET)


def begin_anew(talk: Talk) -> tuple[Talk, list]:
    """An empty conversation; the answer that is being given ends."""
    talk.closed = True
    talk.stop()
    return Talk(), []


def use_example(event: gr.SelectData) -> dict[str, Any]:
    """The message of a suggestion that was clicked."""
    return {"text": event.value["text"], "files": []}


def create_tab(service: Service) -> None:
    """Pictures of a prompt."""
    drawn = gr.State(Drawn(), delete_callback=Drawn.stop)
    prompt = gr.Textbox(label="Prompt", placeholder="a photo of a cat", lines=1, max_lines=6)
    with gr.Row():
        number = gr.Slider(1, service.most_answers, min(4, service.most_answers), step=1, label="Pictures")
        seed, guidance, temperature = sampling_fields(service)
    with gr.Row():
        go = gr.Button("Draw", variant="primary")
        stop = gr.Button("Stop", interactive=False)
    latest = gr.HTML(js_on_load=SEED_CLICKS, elem_id="latest")
    earlier = gr.HTML(js_on_load=SEED_CLICKS, elem_id="earlier")

    async def create(
        words: str, count: int, seed: float | None, guidance: float, temperature: float, drawn: Drawn
    ) -> AsyncIterator[tuple[Any, ...]]:
        if not words.strip():
            raise refusal(ValueError("no prompt; write what to draw"))
        wish = Wish(words, count, seed_of(seed), sampling_of(service, guidance, temperature))
        try:
            async for shown in draw(service, drawn, wish):
                yield shown, gallery(drawn.earlier), gr.update(interactive=True)
        except (ValueError, ApiError) as error:
            raise refusal(error) from None
        finally:
            drawn.running = []

    given = [prompt, number, seed, guidance, temperature, drawn]
    created = gr.on([go.click, prompt.submit], create, given, [latest, earlier, stop], **QUIET)
    created.then(lambda: gr.update(interactive=False), None, stop, **QUIET)
    stop.click(Drawn.stop, drawn, None, queue=False, **QUIET)
    for shown in (latest, earlier):
        shown.click(use_seed, None, [seed, number], **QUIET)


def use_seed(event: gr.EventData) -> tuple[int, int]:
    """The seed of the picture whose button was clicked, for one picture."""
    return int(event.seed), 1


def look_tab(service: Service) -> None:
    """A picture, its description, and questions about it."""
    talk = gr.State(Talk(), delete_callback=Talk.stop)
    with gr.Row():
        with gr.Column(scale=2, min_width=260):
            file = gr.File(label="Picture", file_types=["image"], type="filepath", height=150)
            preview = gr.HTML(elem_id="preview")
        with gr.Column(scale=3):
            log = gr.Chatbot(
                label="Description and answers", elem_classes="talk", height="50vh", buttons=[], feedback_options=None,
                placeholder="Choose or drop a picture: the model says what it sees, and answers your questions.",
            )  # fmt: skip
            question = gr.Textbox(label="Question", placeholder="Is there a cat?", submit_btn="Ask")

    async def reply(talk: Talk, turn: Turn) -> AsyncIterator[Any]:
        try:
            async for shown in answer(service, talk, turn):
                yield messages_of(shown)
        except (ValueError, ApiError) as error:
            raise refusal(error) from None
        finally:
            talk.running = []

    async def describe(path: str, old: Talk) -> AsyncIterator[tuple[Any, ...]]:
        talk, _ = begin_anew(old)
        try:
            picture = await asyncio.to_thread(read_file, path, service.settings)
        except ApiError as error:
            raise refusal(error) from None
        shown_picture = preview_of(picture, Path(path).name)
        async for shown in reply(talk, Turn(DESCRIBE, [path], max_images=0, previews=False)):
            yield talk, shown, shown_picture

    async def ask(text: str, talk: Talk) -> AsyncIterator[tuple[Any, ...]]:
        if not talk.messages:
            raise refusal(ValueError("no picture yet; choose one first"))
        async for shown in reply(talk, Turn(text, max_images=0)):
            yield shown, ""

    file.upload(describe, [file, talk], [talk, log, preview], **QUIET)
    file.clear(lambda talk: (*begin_anew(talk), ""), talk, [talk, log, preview], **QUIET)
    log.clear(lambda talk: (*begin_anew(talk), None, ""), talk, [talk, log, file, preview], **QUIET)
    question.submit(ask, [question, talk], [log, question], **QUIET)
