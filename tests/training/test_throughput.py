"""The speed result of a training: FLOP, images and positions are those of a step, and no state is left behind."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from unified import UnifiedForCausalLM
from unified.training import fine_tuning
from unified.training.compiled_layers import compile_layers
from unified.training.throughput import WARM_UP, gemm_rate

ROOT = Path(__file__).parents[2]


@pytest.fixture
def measure(
    run_script: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    toy_checkpoint: Path,
    toy_rows: Callable[[str], Path],
    tmp_path: Path,
) -> Callable[..., dict[str, Any]]:
    """The record of recipes/sft.py on a toy."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def run(kinds: str, *changes: object, steps: int = 4) -> dict[str, Any]:
        out = tmp_path / "out"
        command = ["--config", ROOT / "recipes/configs/tiny.yaml", "--model", toy_checkpoint, "--output_dir", out]
        command += ["--train_files", toy_rows(kinds), "--speed_steps", steps]
        assert run_script("recipes/sft.py", *command, *changes) == 0
        assert [path.name for path in out.iterdir()] == ["speed.json"]
        return json.loads((out / "speed.json").read_text())

    return run


def flop_per_position(record: dict[str, Any]) -> float:
    return record["gflops"] * 1e9 / record["positions_per_second"]


def test_operations_are_those_of_the_weights(measure: Callable[..., dict[str, Any]], toy_checkpoint: Path) -> None:
    backbone = UnifiedForCausalLM.from_pretrained(toy_checkpoint).model.language_model
    weights = sum(layer.weight.numel() for layer in backbone.modules() if isinstance(layer, nn.Linear))
    full = measure("dddd" * 4, "--tuning", "full")
    assert 6 * weights < flop_per_position(full) < 12 * weights  # forward, both gradients; head and attention
    align = measure("dddd" * 4, "--tuning", "align")  # no gradients of weights
    assert 4 * weights < flop_per_position(align) < flop_per_position(full) - weights
    assert full["n"] == align["n"] == 2 and full["metric"] == "images_per_second"
    assert full["value"] > 0 and full["gemm_gflops"] > 0
    assert full["share_of_gemm"] == pytest.approx(full["gflops"] / full["gemm_gflops"])


def test_attention_of_either_kind_is_counted(measure: Callable[..., dict[str, Any]]) -> None:
    sdpa, grouped = (measure("dddd" * 4, "--attn_implementation", kind) for kind in ("sdpa", "grouped"))
    assert flop_per_position(sdpa) >= flop_per_position(grouped)  # torch's computes its scores twice


def test_trained_images_and_positions_are_counted(measure: Callable[..., dict[str, Any]]) -> None:
    drawn = measure("dddd" * 4, steps=2)
    assert drawn["value"] * drawn["step_seconds"] == pytest.approx(4)  # the configuration's batch
    assert measure("aaaa" * 4, steps=2)["value"] == 0  # input images are not trained, answers are
    positions = []
    for fraction in (0.5, 1.0):
        record = measure("dddd" * 4, "--last_scale_fraction", fraction, "--caption_dropout", 0, steps=2)
        positions.append(record["positions_per_second"] * record["step_seconds"])
    assert positions[1] - positions[0] == pytest.approx(4 * 2)  # two of an image's four last codes


def test_products_have_a_rate() -> None:
    assert gemm_rate(64, 32, 48, torch.float32, torch.device("cpu")) > 1e6


def test_compiled_layers_are_timed_and_the_others_counted(
    measure: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = []

    def backend(graph: fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        return lambda *given: passes.append(graph) or graph(*given)

    monkeypatch.setattr(fine_tuning, "compile_layers", partial(compile_layers, backend=backend))
    torch._dynamo.reset()
    compiled = measure("dddd" * 4, "--compile_layers", True, steps=4)
    torch._dynamo.reset()
    plain = measure("dddd" * 4, steps=4)
    layers, timed = 2, 2
    assert len(passes) == layers * (WARM_UP + timed)
    assert flop_per_position(compiled) == pytest.approx(flop_per_position(plain))
