"""Counts for Prometheus, one registry per app, and ids of requests."""

import time
import uuid
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from unified.serving.engine import Engine
from unified.serving.errors import REQUEST_ID

SECONDS = (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 300)


class Metrics:
    """What `GET /metrics` says. Nothing in it tells what was asked or drawn."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        common: dict[str, Any] = {"namespace": "unified", "registry": self.registry}
        self.answers = Counter("answers", "Answers begun", **common)
        self.images = Counter("images", "Images drawn", **common)
        self.tokens = Counter("text_tokens", "Text tokens written", **common)
        self.cached = Counter("cached_tokens", "Prompt positions that were not run again", **common)
        self.refused = Counter("refused", "Requests refused as the queue was full", **common)
        self.responses = Counter("responses", "HTTP responses", ["path", "status"], **common)
        self.seconds = Histogram("response_seconds", "Seconds to the head", ["path"], buckets=SECONDS, **common)

    def watch(self, engine: Engine) -> None:
        """Show how busy the engine is whenever somebody looks."""
        common: dict[str, Any] = {"namespace": "unified", "registry": self.registry}
        Gauge("active", "Answers that are worked on", **common).set_function(lambda: engine.active)
        Gauge("waiting", "Answers that wait", **common).set_function(lambda: engine.waiting)
        Gauge("prefix_bytes", "Memory of past conversations", **common).set_function(
            lambda: engine.scheduler.prefixes.bytes
        )

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)


class CountResponses:
    """ASGI middleware that counts and times responses by route, never by what was asked, and gives each its id."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, name = time.perf_counter(), f"req_{uuid.uuid4().hex}"
        scope.setdefault("state", {})["request_id"] = name

        def count(status: int) -> None:
            path = scope["route"].path if "route" in scope else "other"
            self.metrics.responses.labels(path, status).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - started)

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID] = name
                count(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, counted)
        except Exception:
            count(500)  # which is answered outside of this
            raise
