"""Fixtures every test shares: the toys of toys.py, fresh for a test or made once for the session, and scripts."""

import gc
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
import torch
from network_watch import watched
from toys import make_tokenizer, make_vq, save_llm, write_toy_rows
from transformers import PreTrainedTokenizerFast

from unified import UnifiedConfig, UnifiedForCausalLM, UnifiedProcessor, VQModel
from unified.checkpoints.extension import extend

if TYPE_CHECKING:
    from engine_world import World
    from toy_server import Server

ROOT = Path(__file__).parents[1]


# scripts choose what the tests expect, on every machine, unless the environment says otherwise; toy tensors only lose
# time to threads
CHOSEN = {"UNIFIED_DEVICE": "cpu", "UNIFIED_PRECISION": "float32", "UNIFIED_THREADS": "1"}


@pytest.fixture(scope="session", autouse=True)
def _same_hardware() -> Iterator[None]:
    torch.set_num_threads(int(os.environ.get("UNIFIED_THREADS", CHOSEN["UNIFIED_THREADS"])))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in CHOSEN.items():
            patch.setenv(name, os.environ.get(name, value))
        yield


def pytest_collection_finish() -> None:
    """What is imported by now stays, so that no collection of garbage looks at it; ends of trainings ask for one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def called(request: pytest.FixtureRequest) -> Iterator[list[object]]:
    """No script calls a host: hosts that a test of one looked up or called, which fails; none may be, in the end."""
    if not {"recipes", "eval", "data_prep"} & {*request.path.relative_to(ROOT).parts}:
        yield []
        return
    with watched() as hosts:
        yield hosts
        assert hosts == []


def load_script(path: str) -> ModuleType:
    """Import a script such as `data_prep/encode_images.py`, whose folder is no package, to call what is in it."""
    name = f"script_{Path(path).stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, ROOT / path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """`run_script("data_prep/x.py", "--flag", value)` runs a script in this process and returns its exit status.

    Saves the seconds a process takes to import torch; use `capsys` for what it prints.
    """

    def run(path: str, *arguments: object) -> int:
        script = load_script(path)
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        try:
            script.run_main(script.main)
        except SystemExit as stop:
            return stop.code
        return 0

    return run


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """`make_tokenizer`'s, fresh for every test."""
    return make_tokenizer()


@pytest.fixture
def tiny_vq() -> VQModel:
    """`make_vq`'s, fresh for every test."""
    return make_vq()


@pytest.fixture
def vq_dir(tiny_vq: VQModel, tmp_path: Path) -> Path:
    """Folder of `make_vq`'s."""
    tiny_vq.save_pretrained(tmp_path / "vq")
    return tmp_path / "vq"


@pytest.fixture
def tiny_llm_dir(tiny_tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of `save_llm`'s Llama with its tokenizer."""
    return save_llm(tmp_path_factory.mktemp("tiny_llm"), tiny_tokenizer)


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unified checkpoint of the random Llama and image tokenizer, with its processor. Shared: do not write there."""
    folder = tmp_path_factory.mktemp("toy")
    make_vq().save_pretrained(folder / "vq")
    extend(save_llm(folder / "llm", make_tokenizer()), folder / "vq", folder / "model")
    return folder / "model"


@pytest.fixture(scope="session")
def server(toy_checkpoint: Path) -> Iterator["Server"]:
    """A server of `toy_checkpoint` in this process, with the bounds that servers have, for all tests that ask it."""
    from toy_server import serve

    with serve(toy_checkpoint, model_name="toy") as running:
        yield running


@pytest.fixture(scope="session")
def drawing_checkpoint(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy that answers "a photo of a red cat" with a picture. Shared: do not write there."""
    from toy_server import save_artist

    return save_artist(toy_checkpoint, "a photo of a red cat", tmp_path_factory.mktemp("artist") / "model")


@pytest.fixture(scope="session")
def artist(drawing_checkpoint: Path) -> Iterator["Server"]:
    """A server of `drawing_checkpoint`."""
    from toy_server import serve

    with serve(drawing_checkpoint, model_name="artist") as running:
        yield running


@pytest.fixture
def model(toy_checkpoint: Path) -> UnifiedForCausalLM:
    """`toy_checkpoint`'s, for a test to change."""
    return UnifiedForCausalLM.from_pretrained(toy_checkpoint)


@pytest.fixture
def processor(toy_checkpoint: Path) -> UnifiedProcessor:
    """`toy_checkpoint`'s."""
    return UnifiedProcessor.from_pretrained(toy_checkpoint)


@pytest.fixture(scope="session")
def toy_rows(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`toy_rows("ddat")`: encoded shard for `toy_checkpoint`, a row for every letter; see `write_toy_rows`."""
    fingerprint = UnifiedConfig.from_pretrained(toy_checkpoint).vq_fingerprint
    folder = tmp_path_factory.mktemp("rows")
    return lambda kinds: write_toy_rows(folder / f"{kinds}.parquet", kinds, fingerprint)


@pytest.fixture(scope="session")
def image_adapter(
    toy_checkpoint: Path, toy_rows: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Adapter of image positions that recipes/sft.py has trained on `toy_checkpoint` for two steps. Do not write."""
    out = tmp_path_factory.mktemp("sft") / "adapter"
    command = ["sft.py", "--config", ROOT / "recipes/configs/tiny.yaml", "--model", toy_checkpoint]
    command += ["--train_files", toy_rows("ddat"), "--max_steps", 2, "--output_dir", out, "--save_strategy", "no"]
    command += ["--tuning", "lora", "--lora_positions", "image_tokens", "--learning_rate", 0.05]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr(sys, "argv", list(map(str, command)))
        load_script("recipes/sft.py").main()
    return out


@pytest.fixture
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator["World"]:
    """Runs on two processes, which all tests and test processes share; kept in ENGINE_MATRIX where that is set."""
    from engine_world import World

    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared  # of all of xdist's processes
    folder = Path(os.environ.get("ENGINE_MATRIX", shared / "engines")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    made = World(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setenv("HF_HUB_OFFLINE", "1")
        made.made("data", made.make_data)
        yield made


@pytest.fixture
def cell(world: "World", request: pytest.FixtureRequest) -> Callable[[str, str], Path]:
    """`cell("zero3", "full")`: the run of an engine and a tuning, launched with all of the engine that are asked for.

    They are asked for by tests' parameters `engine` and `tuning`.
    """
    asked = [item.callspec.params for item in request.session.items if hasattr(item, "callspec")]

    def run(engine: str, tuning: str) -> Path:
        return world.cell(engine, tuning, [given["tuning"] for given in asked if given.get("engine") == engine])

    return run
