"""A server in this process, on a free port, as tests ask it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from openai import OpenAI
from toy_models import make_lively

from unified.checkpoints.loading import load
from unified.serving.app import AppServer, create_app
from unified.serving.engine import Engine, EngineLimits
from unified.serving.settings import ServerSettings


@dataclass
class Server:
    """A running server; clients of it are closed with it, as a stream that ends in an error leaves its socket open."""

    url: str
    engine: Engine
    uvicorn: AppServer
    clients: list[OpenAI] = field(default_factory=list)

    def client(self, key: str = "none", **settings: object) -> OpenAI:
        """The openai client, as it is."""
        self.clients.append(OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, **settings))
        return self.clients[-1]


@contextmanager
def serve(checkpoint: Path, limits: EngineLimits | None = None, **settings: object) -> Iterator[Server]:
    """A server of a checkpoint; nothing of a request may be stuck in it when it ends."""
    model, processor = load(checkpoint, device="cpu")
    engine = Engine(model, processor, limits)
    app = create_app(engine, ServerSettings(**settings))
    server = AppServer(app, port=0, log_level="error")
    with server.in_thread() as url:
        running = Server(url, engine, server)
        try:
            yield running
        finally:
            for client in running.clients:
                client.close()
    assert not engine.active and not engine.waiting


def save_artist(checkpoint: Path, question: str, folder: Path) -> Path:
    """A toy that answers `question` with a picture, made of another toy's checkpoint."""
    model, processor = load(checkpoint, device="cpu")
    torch.manual_seed(0)
    make_lively(model)
    ids = torch.tensor([processor.prompt_ids([{"role": "user", "content": question}])])
    with torch.no_grad():
        model.lm_head.weight[processor.boi_token_id] = 10 * model.model(ids).last_hidden_state[0, -1]
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
