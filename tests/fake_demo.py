"""Demos whose long parts are not done: what they were told is kept, and what they would leave is made by hand."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from unified.reports import demo, demo_data, demo_scores
from unified.reports.page import Turn

PARTS = {
    demo: ("convert", "extend", "load", "converse", "draw_by_scale", "fine_tune"),
    demo_data: ("render_objects", "write_conversations", "render", "encode_rows"),
    demo_scores: ("generate_folder", "score_new", "score_known"),
}
RED, BLUE = (255, 0, 0), (0, 0, 255)


class World:
    """Keeps every call; `base` is what `extend` makes, and `trained` says how far each training comes, of 340."""

    def __init__(self, base: Path) -> None:
        self.base, self.fails_at = base, ""
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.model = Path()  # loaded last
        self.trained: list[int] = []
        self.watch: dict[str, Callable[[], None]] = {}  # called before the part of this name

    def take_over(self, monkeypatch: pytest.MonkeyPatch, *genuine: str) -> None:
        for module, names in PARTS.items():
            for name in names:
                if name not in genuine:
                    monkeypatch.setattr(module, name, self.part(name))

    def part(self, name: str) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            if name in self.watch:
                self.watch[name]()
            if name == self.fails_at:
                raise ValueError(f"{name} fails")
            self.calls.append((name, (*given, *named.values())))
            return vars(World)[name](self, *given, **named)

        return call

    @property
    def names(self) -> list[str]:
        """Without what goes with each `load`."""
        return [name for name, _ in self.calls if name not in ("converse", "draw_by_scale")]

    def told(self, name: str) -> list[Any]:
        """First argument of every call."""
        return [given[0] for called, given in self.calls if called == name]

    def convert(self, out: Path) -> None: ...

    def extend(self, llm: str, vq: str, out: Path) -> None:
        shutil.copytree(self.base, out)

    def load(self, folder: Path) -> tuple[Any, Any]:
        self.model = folder
        return SimpleNamespace(device=torch.device("cpu")), None

    def converse(self, chat: Any, queries: list[Any]) -> list[Turn]:
        return [Turn("user", query.text, query.image) for query in queries] + [
            Turn("assistant", f"{self.model.name} <b>Paris</b>")
        ]

    def draw_by_scale(self, model: Any, processor: Any, prompts: list[str], *_: Any, **__: Any) -> list[list[Any]]:
        image = Image.new("RGB", (4, 4), RED if self.model.name == "start" else BLUE)
        return [[image] * 4 for _ in prompts]

    def fine_tune(self, model_args: Any, data_args: Any, args: Any, command: str, callbacks: Any) -> None:
        out = Path(args.output_dir)
        out.mkdir(exist_ok=True)
        log = [{"images_seen": 5.0, "image_loss": 4.0, "scale_1_loss": 2.0}]
        (out / "trainer_state.json").write_text(json.dumps({"log_history": log}))
        steps = self.trained.pop(0) if self.trained else 340
        said = "" if steps == 340 else f"Cut off after {steps} of 340 steps: half-trained. Go on with: {command}"
        record = {"said": said, "ending": "cut" if said else "whole", "steps": steps, "seconds_per_step": 1.0}
        record |= {"planned_steps": 340, "max_steps": 340}
        (out / "progress.json").write_text(json.dumps(record))
        chosen = {"machine": "a <machine>", "device": "cpu", "precision": "float32", "threads": 2}
        (out / "hardware.json").write_text(json.dumps(chosen))
        for callback in callbacks:
            callback.on_save(args, None, None)

    def render_objects(self, args: Any) -> None:
        folder = Path(args.out)
        folder.mkdir()
        Image.new("RGB", (64, 64)).save(folder / "star.png")
        (folder / "metadata.jsonl").write_text(json.dumps({"file_name": "star.png", "text": ["a photo of a star"]}))

    def write_conversations(self, args: Any) -> None: ...

    def render(self, args: Any) -> None:
        Path(args.out).mkdir()
        (Path(args.out) / "00000.parquet").touch()

    def encode_rows(self, args: Any) -> None: ...

    def generate_folder(self, args: Any, *_: Any) -> None: ...

    def score_new(self, args: Any) -> None:
        self.score(args)

    def score_known(self, args: Any, *_: Any) -> None:
        self.score(args)
        after = "after" in args.out
        lines = [{"prompt": str(n), "correct": n < (3 if after else 4)} for n in range(4)]
        (Path(args.images) / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    def score(self, args: Any) -> None:
        Path(args.images).mkdir(parents=True, exist_ok=True)
        task = {"value": 0.875 if "after" in args.out else 0.125, "stderr": 0.03, "images": 24, "n": 24}
        tasks = {"tasks": {"colors": task}, "ceiling": {"reconstructions": 0.99}, "n": 96}
        Path(args.out).write_text(json.dumps(task | tasks))
