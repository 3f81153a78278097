"""Scale steps as single graphs: codes of the eager model, each shape compiled once, and off unless asked for."""

import shutil
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch
from torch._dynamo.utils import counters
from toy_models import BOI, toy_model

from unified import ImageSampling, UnifiedForCausalLM
from unified.models.compiled_scales import compile_scale_steps
from unified.serving.engine import Engine
from unified.serving.jobs import Event, Failed, Finished, Job, WholeImage

NO_CODES = torch.empty(0, 21, dtype=torch.long)
PROCESSOR = SimpleNamespace(unconditional_ids=lambda: [3, 4], image_size=32)


@pytest.fixture(autouse=True)
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def drawing(engine: Engine, prompt: list[int], seed: int, guidance_scale: float = 1.0) -> list[Event]:
    """What the engine says of one image."""
    events, ended = list[Event](), threading.Event()

    def hear(number: int, event: Event) -> None:
        events.append(event)
        if isinstance(event, Finished | Failed):
            ended.set()

    sampling = ImageSampling(guidance_scale=guidance_scale)
    engine.submit([Job([*prompt, BOI], NO_CODES, frozenset(), seed, sampling)], hear)
    assert ended.wait(120)
    return events


def drawn(engine: Engine, prompt: list[int], seed: int, guidance_scale: float = 1.0) -> list[int]:
    """Its codes."""
    (whole, _) = drawing(engine, prompt, seed, guidance_scale)
    assert isinstance(whole, WholeImage)
    return whole.codes.tolist()


def graphs() -> int:
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("backbone", ["llama", "gemma2"])
def test_every_shape_is_one_graph_and_is_compiled_once(backbone: str) -> None:
    images = [([5] * 5, 0, 1.0), ([6] * 9, 1, 1.0), ([5] * 5, 2, 3.0)]  # the last has two rows
    with Engine(toy_model(backbone), PROCESSOR) as engine:
        expected = [drawn(engine, *image) for image in images]
    assert graphs() == 0
    model = toy_model(backbone)
    compile_scale_steps(model, backend="aot_eager")  # traced as ever, without C++ to wait for
    assert model.state_dict().keys() == toy_model(backbone).state_dict().keys()
    found, counted = [], []
    with Engine(model, PROCESSOR) as engine:
        for image in images:
            found.append(drawn(engine, *image))
            counted.append(graphs())
    assert found == expected
    assert counted == [2, 2, 4]  # the scales behind the first, for one row and for two


def test_generate_has_caches_of_every_length_and_is_not_compiled() -> None:
    model = toy_model()
    compile_scale_steps(model, backend="aot_eager")
    model.generate(torch.tensor([[5, BOI]]), generation_mode="image", seed=0)
    assert graphs() == 0


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(ValueError, match=r"compile_scale_steps needs g\+\+, which is not installed"):
        compile_scale_steps(toy_model())


def test_what_is_no_single_graph_fails_and_is_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    model: UnifiedForCausalLM = toy_model()
    forward = model.model.language_model.forward

    def broken(**inputs: object) -> object:
        torch._dynamo.graph_break()
        return forward(**inputs)

    compile_scale_steps(model, backend="aot_eager")
    monkeypatch.setattr(model.model.language_model, "forward", broken)
    with Engine(model, PROCESSOR) as engine:
        (failed,) = drawing(engine, [5], 0)
    assert isinstance(failed, Failed) and "graph_break" in failed.message
