"""Every way of tuning in every engine, on two CPU processes: what one process computes with the same batch.

For each cell: the loss curve within 1e-4 (relative), what is frozen to the bit, in every process's memory and on disk,
a checkpoint that draws, and a resumed run that ends where the whole one does. All cells: `pytest -m engines`, one:
`pytest -m engines -k zero3-align`; `ALWAYS` run every time. Cells of an engine are launched together. With
ENGINE_MATRIX=FOLDER what is made stays there: a test run that is killed goes on where it was, and several share it.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from engine_world import ENGINES, HALF, STEPS, TUNINGS, World
from recipe_jobs import frozen_parts
from safetensors.torch import load_file
from toy_models import BOI, toy_model
from two_ranks import DDP, train

from unified import UnifiedConfig, UnifiedForCausalLM
from unified.checkpoints.loading import load
from unified.inference.text_to_image import draw

ALWAYS = {
    ("ddp_checkpointed", "lora_image"),
    ("ddp_checkpointed", "align"),
    ("ddp_checkpointed", "full"),
    ("zero3", "full"),
    ("zero3", "dpo_full"),
    ("fsdp2", "align"),
    ("fsdp2", "lora"),
}


def curve(out: Path, name: str) -> list[float]:
    entries = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in entries if "loss" in entry]


def weights(out: Path) -> dict[str, torch.Tensor]:
    adapter = out / "adapter_model.safetensors"
    found = load_file(adapter if adapter.is_file() else out / "model.safetensors")
    if any(".experts." in name for name in found):  # HF writes those as it read them, but for ZeRO-3, as it has them
        return dict(UnifiedForCausalLM.from_pretrained(out).state_dict())
    return found


def check_curve(out: Path, one: Path) -> None:
    for name in ("loss", "grad_norm"):
        assert len(curve(out, name)) == STEPS
        assert curve(out, name) == pytest.approx(curve(one, name), rel=1e-4), name
    found, expected = weights(out), weights(one)
    assert expected.keys() <= found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4, msg=name)


def is_frozen(name: str, tuning: str) -> bool:
    """Whether a tensor of the base does not learn; of matrices that is said of text rows."""
    if name.endswith(("embed_tokens.weight", "lm_head.weight")) or ".vq_model." in name or "lora" in tuning:
        return True
    return tuning == "align" and "image_embedding" not in name


def check_frozen_in_memory(out: Path, base: Path, tuning: str) -> None:
    """What does not learn was that of `base` to the bit when training ended, on both processes."""
    equal = json.loads((out / "frozen.json").read_text())
    assert {name for name in weights(base) if is_frozen(name, tuning)} <= equal.keys()
    assert [name for name, same in equal.items() if not same] == []


def check_frozen_on_disk(found: dict[str, torch.Tensor], base: Path, tuning: str) -> None:
    """In a checkpoint what does not learn is that of `base` to the bit, and what learns is not."""
    text = UnifiedConfig.from_pretrained(base).boi_token_id
    for name, value in weights(base).items():
        if name.endswith(("embed_tokens.weight", "lm_head.weight")):
            assert torch.equal(found[name][:text], value[:text]) and not torch.equal(found[name], value), name
        elif is_frozen(name, tuning):
            assert torch.equal(found[name], value), name
        elif value.ndim > 1:
            assert not torch.equal(found[name], value), name


def check_adapter(found: dict[str, torch.Tensor]) -> None:
    """Every update has learned something."""
    updates = {name: value for name, value in found.items() if ".lora_B." in name}
    assert updates and [name for name, value in updates.items() if not value.any()] == []


def cells() -> Iterator[object]:
    for engine in ENGINES:
        for tuning in TUNINGS:
            marks = () if (engine, tuning) in ALWAYS else (pytest.mark.engines,)
            yield pytest.param(engine, tuning, id=f"{engine}-{tuning}", marks=marks)


@pytest.mark.parametrize(("engine", "tuning"), [*cells()])
def test_an_engine_trains_as_one_process(
    engine: str, tuning: str, cell: Callable[[str, str], Path], world: World
) -> None:
    out = cell(engine, tuning)
    base, found = world.base(tuning), weights(out)
    if tuning != "noise":  # which is another in every batch
        check_curve(out, world.one(tuning, decay="--weight_decay" in ENGINES[engine]))
    check_frozen_in_memory(out, base, tuning)
    check_adapter(found) if "lora" in tuning else check_frozen_on_disk(found, base, tuning)
    resumed = out.with_name(f"{tuning}-resumed")
    check_frozen_in_memory(resumed, base, tuning)
    assert curve(resumed, "loss") == pytest.approx(curve(out, "loss"), rel=1e-6)
    for name, value in weights(resumed).items():
        torch.testing.assert_close(value, found[name], rtol=1e-5, atol=1e-6, msg=name)
    model, processor = load(out, device="cpu")
    assert draw(model, processor, ["two cats"], seed=1)[0].size == (16, 16)


@pytest.mark.engines
def test_a_run_goes_on_with_more_processes(world: World, tmp_path: Path) -> None:
    """The same batch in two halves: what one process would have computed."""
    one = world.one("align", decay=False)
    shutil.copytree(one / f"checkpoint-{HALF}", tmp_path / f"checkpoint-{HALF}")
    script, *arguments = world.command("ddp", "align", tmp_path)
    allowed = ["--allow_changed", "processes", "per_device_train_batch_size"]
    train(DDP, tmp_path, *arguments, "--use_cpu", "True", "--resume", "True", *allowed, recipe=script)
    check_curve(tmp_path, one)
    changes = json.loads((tmp_path / "run.json").read_text())["changes"]
    assert {change["name"]: change["new"] for change in changes} == {"processes": 2, "per_device_train_batch_size": 2}


def test_a_frozen_part_that_moved_is_seen() -> None:
    model = toy_model(tied=False)
    base = {name: value.clone() for name, value in model.state_dict().items()}
    model.separate_new_rows()
    equal = frozen_parts(model, base, BOI)
    assert all(equal.values()) and {name for name in base if is_frozen(name, "full")} <= equal.keys()
    with torch.no_grad():
        model.lm_head.table[BOI - 1, 0] += 1e-6
        dict(model.named_buffers())["model.vq_model.quantizer.embedding.weight"].mul_(0.999)
    changed = {name for name, same in frozen_parts(model, base, BOI).items() if not same}
    assert changed == {"lm_head.weight", "model.vq_model.quantizer.embedding.weight"}
