"""The FastAPI app: OpenAI's routes, health and metrics over one engine."""

import asyncio
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import uvicorn
from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import Response
from sse_starlette.sse import AppStatus

from unified.serving.answering import chat_routes
from unified.serving.drawing import ERRORS, image_routes
from unified.serving.engine import Engine
from unified.serving.errors import REQUEST_ID, ApiError, ErrorObject, answer_errors
from unified.serving.gate import Gate
from unified.serving.metrics import CountResponses
from unified.serving.protocol import Health, Model, ModelList
from unified.serving.responding import response_routes
from unified.serving.service import Service
from unified.serving.settings import ServerSettings

STOP_SECONDS = 60  # in which what was begun is finished
# access logs would hold what is in paths; errors are logged
UVICORN: dict[str, Any] = {
    "access_log": False, "ws": "none", "server_header": False, "timeout_graceful_shutdown": STOP_SECONDS,
}  # fmt: skip


class AppServer(uvicorn.Server):
    """A server of `create_app`'s app, which is told before open connections are waited for."""

    def __init__(self, app: FastAPI, **settings: Any) -> None:
        super().__init__(uvicorn.Config(app, **UVICORN, **settings))
        self.stopping: asyncio.Event = app.state.stopping

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.stopping.set()
        await super().shutdown(sockets)

    def wait_for_address(self) -> tuple[str, int]:
        """Host and port, once it listens: asked from another thread than its own."""
        while not self.started:
            time.sleep(0.01)
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return str(host), int(port)

    @contextmanager
    def in_thread(self) -> Iterator[str]:
        """Serve in a thread of this process as long as the context lasts; yields the URL."""
        thread = threading.Thread(target=self.run)
        thread.start()
        host, port = self.wait_for_address()
        try:
            yield f"http://{host}:{port}"
        finally:
            self.should_exit = True
            thread.join()


def create_app(engine: Engine, settings: ServerSettings | None = None) -> FastAPI:
    """The app of an engine, which stops with it. `app.state` has what pages ask that are mounted on it:

    the `service`, and the event `stopping`, which `AppServer` sets. Streams that have no end of their own end then.
    """
    service = Service(engine, settings or ServerSettings())
    service.metrics.watch(engine)
    AppStatus.disable_automatic_graceful_drain()  # streams end when they are complete, and not at a signal

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.stop, STOP_SECONDS)

    app = FastAPI(title="unified", summary="OpenAI's API over a next-scale model", lifespan=lifespan)
    app.state.service = service
    app.state.stopping = asyncio.Event()
    answer_errors(app)
    app.include_router(chat_routes(service))
    app.include_router(response_routes(service))
    app.include_router(image_routes(service))
    add_state_routes(app, service)
    app.add_middleware(Gate, settings=service.settings)
    app.add_middleware(CountResponses, metrics=service.metrics)
    if service.settings.allow_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=service.settings.allow_origins, allow_methods=["GET", "POST"],
            allow_headers=["*"], expose_headers=[REQUEST_ID, "Retry-After"],
        )  # fmt: skip
    return app


def add_state_routes(app: FastAPI, service: Service) -> None:
    """What the server is and how it does."""
    model = Model(id=service.settings.model_name, created=service.created)

    @app.get("/v1/models", tags=["models"], responses=ERRORS)
    async def models() -> ModelList:
        """The served model."""
        return ModelList(data=[model])

    @app.get("/v1/models/{name:path}", tags=["models"], responses=ERRORS)
    async def one_model(name: str) -> Model:
        """The served model; by any name unless the server is strict."""
        if service.settings.strict_model and name != model.id:
            raise ApiError(404, f"model: {name!r} is not served here, but {model.id!r}", "model", "model_not_found")
        return model

    @app.get("/health", tags=["state"], responses={503: {"model": ErrorObject}})
    async def health() -> Health:
        """Whether the engine works."""
        service.check_alive()
        return Health(status="ok", active=service.engine.active, waiting=service.engine.waiting)

    @app.get("/metrics", tags=["state"], response_class=Response, responses={401: {"model": ErrorObject}})
    async def metrics() -> Response:
        """Counts in Prometheus' text format."""
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4")

    probed: dict[str, Callable[..., Any]] = {
        "/v1/models": models, "/v1/models/{name:path}": one_model, "/health": health, "/metrics": metrics,
    }  # fmt: skip
    for path, route in probed.items():
        app.add_api_route(path, route, methods=["HEAD"], include_in_schema=False)
