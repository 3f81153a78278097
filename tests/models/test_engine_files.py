"""What DeepSpeed's zero_to_fp32.py writes opens as what `save_pretrained` wrote, in either format."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import save_file
from test_generation import MODES
from toy_models import output_image, random_codes, toy_model

from unified import UnifiedForCausalLM
from unified.checkpoints.loading import load, weights_digest

FORMATS = ["safetensors", "bin", "safetensors in parts", "bin in parts"]


def write(state: dict[str, torch.Tensor], folder: Path, kind: str) -> None:
    """As `convert_zero_checkpoint_to_state_dict` does: every tensor by its name in the model."""
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    if kind.endswith("parts"):
        save_torch_state_dict(state, folder, max_shard_size=20_000, safe_serialization=kind.startswith("safe"))
    elif kind == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def trained(settings: dict[str, Any]) -> UnifiedForCausalLM:
    """A model whose new rows are parameters of their own, and have learnt."""
    model = toy_model(**settings)
    model.separate_new_rows()
    with torch.no_grad():
        for part in model.model.new_rows.values():
            part.values.add_(torch.randn(part.values.shape, generator=torch.Generator().manual_seed(1)))
    return model


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("settings", [*MODES, {"tied": False}], ids=lambda settings: "-".join(map(str, settings)))
def test_own_parts_open_as_whole_matrices(settings: dict[str, Any], kind: str, tmp_path: Path) -> None:
    model = trained(settings)
    model.save_pretrained(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert any(name.startswith("model.new_rows.") for name in state)
    write(state, tmp_path / "parts", kind)
    expected = UnifiedForCausalLM.from_pretrained(tmp_path / "whole").eval()
    found = UnifiedForCausalLM.from_pretrained(tmp_path / "parts").eval()
    for name, value in expected.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    ids = torch.tensor([[5, 6, *output_image(random_codes(model, 1)[0]), 7]])
    with torch.no_grad():
        assert torch.equal(found(ids).logits, expected(ids).logits)
    assert found.lm_head.weight is found.get_input_embeddings().weight or not model.config.tie_word_embeddings


@pytest.mark.parametrize("kind", FORMATS)
def test_whole_matrices_open_in_either_format(kind: str, toy_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_checkpoint, tmp_path / "copy")
    expected = load(toy_checkpoint, device="cpu")[0].state_dict()
    state = {name: value.clone() for name, value in expected.items() if name != "lm_head.weight"}
    write(state, tmp_path / "copy", kind)
    found = load(tmp_path / "copy", device="cpu")[0].state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    digest = weights_digest(tmp_path / "copy")
    changed = copy.deepcopy(state)
    changed["model.language_model.norm.weight"] += 1
    write(changed, tmp_path / "copy", kind)
    assert weights_digest(tmp_path / "copy") != digest


def test_files_that_run_something_are_not_read(tmp_path: Path) -> None:
    toy_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save({"model.new_rows.embed_tokens.values": print}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        UnifiedForCausalLM.from_pretrained(tmp_path)
