"""`unified serve`: an OpenAI-compatible server of one model."""

import threading
import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from unified.cli.options import (
    BaseDir,
    Device,
    GuidanceScale,
    ModelDir,
    Precision,
    Quantize,
    Temperature,
    Threads,
    TopK,
    TopP,
    WaitPolicy,
    choose_hardware,
)
from unified.inference.arguments import GuidedSamplingArguments
from unified.models.image_sampling import ImageSampling

if TYPE_CHECKING:
    from fastapi import FastAPI

    from unified.serving.app import AppServer

LOOPBACK = ("127.0.0.1", "localhost", "::1")
Host = Annotated[str, typer.Option(help="address to listen on; another than loopback asks for --api-key-file")]
ApiKeyFile = Annotated[
    Path | None, typer.Option(help="file of keys, one a line, one of which every request must have")
]
AllowUrls = Annotated[
    bool, typer.Option("--allow-urls", help="fetch images of public http(s) URLs, besides data URIs")
]
AllowOrigin = Annotated[
    list[str] | None,
    typer.Option(help="origin of other pages that may ask, as https://chat.example.com; may be repeated"),
]
StrictModel = Annotated[bool, typer.Option("--strict-model", help="refuse requests that name another model (404)")]
EXTRA = "unified serve needs the extra `serve`: pip install 'unified-ar[serve]'"


def serve(
    model: ModelDir,
    host: Host = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="port; 0 takes a free one")] = 8000,
    api_key_file: ApiKeyFile = None,
    max_batch: Annotated[int, typer.Option(min=1, help="answers that are worked on together")] = 16,
    max_queue: Annotated[int, typer.Option(min=0, help="answers that may wait; further ones are refused (429)")] = 64,
    cache_mb: Annotated[int, typer.Option(min=0, help="memory of conversations that may go on, in MB")] = 256,
    request_seconds: Annotated[float, typer.Option(min=1, help="time an answer may take, waiting included")] = 300,
    allow_urls: AllowUrls = False,
    allow_origin: AllowOrigin = None,
    strict_model: StrictModel = False,
    model_name: Annotated[str | None, typer.Option(help="the model's name in answers; default: its folder's")] = None,
    page: Annotated[bool, typer.Option("--page/--no-page", help="the page at `/`, which asks for gradio")] = True,
    open_page: Annotated[bool, typer.Option("--open", help="open the page in a browser")] = False,
    guidance_scale: GuidanceScale = GuidedSamplingArguments.guidance_scale,
    temperature: Temperature = GuidedSamplingArguments.temperature,
    top_k: TopK = GuidedSamplingArguments.top_k,
    top_p: TopP = GuidedSamplingArguments.top_p,
    base: BaseDir = None,
    quantize: Quantize = None,
    device: Device = None,
    precision: Precision = None,
    threads: Threads = None,
    wait_policy: WaitPolicy = None,
) -> None:
    """Serve a model by OpenAI's API: /v1/chat/completions, /v1/images/generations, /v1/responses, /v1/models.

    At `/` is a page to chat, draw and show pictures. /docs describes all routes, /health and /metrics say how the
    server does. Ctrl-C lets begun answers end. Sampling settings are the defaults of requests that give none.
    """
    check_flags(api_key_file, host, page, open_page)
    origins = tuple(allow_origin or ())
    check_origins(origins)
    check_extra()
    from unified.checkpoints.loading import load
    from unified.serving.app import create_app
    from unified.serving.engine import Engine, EngineLimits
    from unified.serving.settings import ServerSettings, read_keys

    keys = () if api_key_file is None else read_keys(api_key_file)
    products = choose_hardware(device, precision, threads, wait_policy)
    settings = ServerSettings(
        model_name=model_name or model.resolve().name,
        strict_model=strict_model,
        api_keys=keys,
        allow_urls=allow_urls,
        allow_origins=origins,
        sampling=ImageSampling(temperature, top_k, top_p, guidance_scale),
        seconds=request_seconds,
    )
    engine = Engine(
        *load(model, base=base, quantize=quantize), EngineLimits(max_batch, max_queue, cache_mb * 2**20), products
    )
    app = create_app(engine, settings)
    run(with_page(app, model) if page else app, host, port, open_page)


def check_flags(api_key_file: Path | None, host: str, page: bool, open_page: bool) -> None:
    """Raise ValueError for flags that exclude each other."""
    if open_page and not page:
        raise ValueError("--open and --no-page are both given; keep one of them")
    if api_key_file is None and host not in LOOPBACK:
        raise ValueError(f"--host {host} lets others in; give --api-key-file, or --host 127.0.0.1")


def check_origins(origins: tuple[str, ...]) -> None:
    """Raise ValueError for what is no origin, which no browser would send."""
    for origin in origins:
        parts = urlsplit(origin)
        if parts.scheme not in ("http", "https") or not parts.netloc or origin != f"{parts.scheme}://{parts.netloc}":
            raise ValueError(
                f"--allow-origin {origin} is no origin; give scheme and host, as https://chat.example.com"
            )


def check_extra() -> None:
    """Raise ValueError where a package of the extra is missing."""
    try:
        import unified.serving.app  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(f"{EXTRA} ({error.name} is missing)") from None


def run(app: "FastAPI", host: str, port: int, open_page: bool) -> None:
    """Serve until Ctrl-C."""
    from unified.serving.app import AppServer

    server = AppServer(app, host=host, port=port)
    if open_page:
        threading.Thread(target=open_in_browser, args=[server], daemon=True).start()
    with suppress(KeyboardInterrupt):  # uvicorn raises it again once it has stopped
        server.run()


def with_page(app: "FastAPI", model: Path) -> "FastAPI":
    """`app` with the page, which has the model card of the model's folder."""
    try:
        from unified.serving.page import mount_page
    except ModuleNotFoundError as error:
        raise ValueError(f"{EXTRA} ({error.name} is missing), or give --no-page") from None
    from unified.serving.page_about import Card

    card = model / "README.md"
    mount_page(app, Card.parse(card.read_text(encoding="utf-8")) if card.is_file() else None)
    return app


def open_in_browser(server: "AppServer") -> None:
    """Open the page once the server listens; a machine without a browser has the address on the terminal."""
    host, port = server.wait_for_address()
    webbrowser.open(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
