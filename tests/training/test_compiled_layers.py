"""Layers made faster compute what they computed."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from tolerances import error_of
from torch import Tensor
from torch._dynamo.utils import counters
from toy_adapters import adapted, gradients
from toy_models import output_image, random_codes, toy_model

from unified.arguments.parser import parse
from unified.models.attention import prefer_grouped
from unified.models.position_gated_lora import ImageLinear
from unified.training.arguments import DataArguments, ModelArguments, UnifiedTrainingArguments
from unified.training.compiled_layers import cast_frozen_weights, compile_layers
from unified.training.fine_tuning import build_trainer

POSITIONS = ("all", "image_tokens", "split_ranks")


def batch_of(model: Any, rows: int, words: int) -> Tensor:
    """Ids (rows, words + an image + 1): drawings of the same length."""
    codes = random_codes(model, rows)
    return torch.stack([torch.tensor([*range(5, 5 + words), *output_image(code), 7]) for code in codes])


def loss_of(ids: Tensor, autocast: bool) -> Callable[[PeftModel], Tensor]:
    def loss(model: PeftModel) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return model(input_ids=ids, labels=ids).loss

    return loss


@pytest.mark.parametrize("positions", POSITIONS)
def test_rounding_what_is_frozen_changes_no_bit(positions: str) -> None:
    model = adapted(toy_model(), lora_positions=positions).train()
    loss = loss_of(batch_of(model, 3, 4), autocast=True)
    before, expected = loss(model), gradients(model, loss)
    cast_frozen_weights(model, torch.bfloat16)
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    matrices = {layer.get_base_layer().weight.dtype for layer in layers if "Linear" in type(layer).__name__}
    assert matrices == {torch.bfloat16}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert torch.equal(loss(model), before)
    found = gradients(model, loss)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_what_learns_is_not_rounded() -> None:
    model = adapted(toy_model(), lora_positions="image_tokens")
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    cast_frozen_weights(model, torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    with torch._dynamo.config.patch(force_nn_module_property_static_shapes=True):  # what compile_layers sets goes back
        yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("checkpointed", [False, True])
def test_compiled_layers_learn_the_same_from_batches_of_all_sizes(checkpointed: bool) -> None:
    sizes = [(3, 4), (5, 6), (2, 9)]
    models = []
    for _ in range(2):
        base = toy_model()
        prefer_grouped(base, torch.device("cpu"))
        models.append(adapted(base, lora_positions="split_ranks").train())
    plain, compiled = models
    compile_layers(compiled.get_base_model(), backend="aot_eager")  # traced as ever, without C++ to wait for
    if checkpointed:
        compiled.get_base_model().activation_checkpointing_enable()
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for rows, words in sizes:
        loss = loss_of(batch_of(plain, rows, words), autocast=False)  # in bf16 the toy's gradients are half noise
        expected, found = gradients(plain, loss), gradients(compiled, loss)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=error_of(3000), msg=name)
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CXX", "g++-13")
    with pytest.raises(ValueError, match=r"compile_layers True needs g\+\+-13, which is not installed"):
        compile_layers(toy_model())


@pytest.mark.parametrize(("precision", "stored"), [("bf16", torch.bfloat16), ("no", torch.float32)])
def test_a_run_stores_what_its_autocast_uses(
    monkeypatch: pytest.MonkeyPatch,
    toy_checkpoint: Path,
    toy_rows: Callable[[str], Path],
    tmp_path: Path,
    precision: str,
    stored: torch.dtype,
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    flags = ["--model", toy_checkpoint, "--train_files", toy_rows("dddd"), "--output_dir", tmp_path]
    flags += ["--report_to", "none", "--tuning", "lora", "--lora_positions", "image_tokens"]
    kinds = (ModelArguments, DataArguments, UnifiedTrainingArguments)
    trainer = build_trainer(*parse(kinds, list(map(str, flags))))
    layers = [layer for layer in trainer.model.modules() if isinstance(layer, ImageLinear)]
    assert layers and {layer.get_base_layer().weight.dtype for layer in layers} == {stored}


@pytest.mark.parametrize("engine", ["DeepSpeed", "FSDP"])
def test_engines_that_gather_weights_and_compiled_layers_do_not_go_together(
    engine: str, toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = UnifiedTrainingArguments(output_dir=str(tmp_path), use_cpu=engine != "DeepSpeed", report_to="none")
    if engine == "DeepSpeed":
        args.deepspeed_plugin = object()
    else:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    model = ModelArguments(model=str(toy_checkpoint), compile_layers=True)
    with pytest.raises(ValueError, match=f"compile_layers True does not work with {engine}"):
        build_trainer(model, DataArguments(), args)
