"""ZeRO-2 and ZeRO-3 on two CPU processes, through recipes/sft.py: the curve of one process with the same batch.

Tolerance: losses within 1e-4 of each other (relative), over two epochs.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_world import World
from safetensors.torch import load_file
from two_ranks import assert_tokenizer_unchanged

from unified import UnifiedForCausalLM
from unified.checkpoints.loading import load
from unified.inference.text_to_image import draw

LOSSES = ("loss", "grad_norm", "text_loss", "image_loss", "scale_1_loss", "scale_2_loss", "images_seen")


def curve(out: Path, name: str) -> list[float]:
    entries = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [entry[name] for entry in entries if name in entry]


def assert_same_curve(found: Path, expected: Path) -> None:
    for name in (*LOSSES, "eval_text_loss", "eval_image_loss"):
        values = curve(found, name)
        assert len(values) == (6 if name in LOSSES else 2) or name.startswith(("image", "scale")), name
        assert values == pytest.approx(curve(expected, name), rel=1e-4), name


@pytest.mark.parametrize(("engine", "tuning"), [("zero2", "shuffled"), ("zero3", "evaluated")])
def test_two_processes_train_as_one(
    engine: str, tuning: str, cell: Callable[[str, str], Path], world: World, tmp_path: Path
) -> None:
    """In some steps, and in evaluation, a process or both have no image at all."""
    two, one = cell(engine, tuning), world.one(tuning)
    assert list(two.glob("checkpoint-6/global_step6/*optim_states.pt")), "DeepSpeed was not used"
    assert_same_curve(two, one)
    assert [path.name for path in sorted((two / "samples").glob("*.png"))] == ["000003.png", "000006.png"]
    weights, expected = load_file(two / "model.safetensors"), load_file(one / "model.safetensors")
    assert weights.keys() - {"lm_head.weight"} == expected.keys()  # DeepSpeed writes a tied matrix twice
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert_tokenizer_unchanged(two, world.base(tuning))
    states = [torch.load(path, weights_only=False) for path in two.glob("checkpoint-6/global_step6/*model_states.pt")]
    trained = {name for state in states for group in state["param_shapes"] for name in group}
    assert "model.image_embedding.start.weight" in trained
    assert not [name for name in trained if "vq_model" in name]
    model, processor = load(two, device="cpu")
    assert draw(model, processor, ["two cats"], seed=1)[0].size == (16, 16)
    assert_zero_to_fp32_opens(two, model, tmp_path)


def assert_zero_to_fp32_opens(out: Path, model: UnifiedForCausalLM, tmp_path: Path) -> None:
    """DeepSpeed's own script makes of the last checkpoint what was saved at the end."""
    from deepspeed.utils.zero_to_fp32 import convert_zero_checkpoint_to_state_dict  # there is none but on Linux

    for number, safe in enumerate((True, False)):
        folder = tmp_path / f"fp32-{number}"
        folder.mkdir()
        for path in (*out.glob("*.json"), *out.glob("*.jinja")):
            shutil.copy(path, folder)
        convert_zero_checkpoint_to_state_dict(str(out / "checkpoint-6"), str(folder), safe_serialization=safe)
        found = load(folder, device="cpu")[0].state_dict()
        for name, value in model.state_dict().items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)
