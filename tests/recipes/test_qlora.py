"""recipes/configs/qwen3_1.7b_var256/qlora.yaml: the memory in its header, and what it shares with lora.yaml."""

import re
from pathlib import Path

import pytest
import yaml
from torch import nn
from training_memory import qwen3_with_var

FOLDER = Path(__file__).parents[2] / "recipes/configs/qwen3_1.7b_var256"
TEXT = (FOLDER / "qlora.yaml").read_text(encoding="utf-8")
# nf4 with double quantization: half a byte, a byte for 64 of them, four for 256 of these
BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


def test_the_memory_in_its_header() -> None:
    backbone = qwen3_with_var().model.language_model
    layers = sum(m.weight.numel() for m in backbone.modules() if isinstance(m, nn.Linear))
    rest = sum(p.numel() for p in backbone.parameters()) - layers
    rows = re.findall(r"([0-9,]{9,}) x +([0-9.]+) +=  ?([0-9.]+)", TEXT)
    numbers = [(int(count.replace(",", "")), float(size), float(total)) for count, size, total in rows]
    assert [count for count, _, _ in numbers[:2]] == [layers, rest]
    assert numbers[0][1] == pytest.approx(BYTES, abs=5e-4)
    for count, size, total in numbers:
        assert total == pytest.approx(count * size / 1e9, abs=0.006)
    others = [float(value) for value in re.findall(r"[a-z] +=  ([0-9.]+)$", TEXT, re.MULTILINE)]
    (told,) = re.findall(r"sum ([0-9.]+)\.", TEXT)
    assert len(numbers) == 5 and len(others) == 2
    assert float(told) == pytest.approx(sum(total for *_, total in numbers) + sum(others), abs=0.06)
    lora = (FOLDER / "lora.yaml").read_text(encoding="utf-8")
    for part in ("kept for the backward pass", "loss, a chunk", "image tokenizer", "what learns"):
        values = [re.findall(rf"{part}.*= +([0-9.]+)$", text, re.MULTILINE) for text in (TEXT, lora)]
        assert values[0] == values[1] != [], part


def test_it_is_lora_yaml_with_quantized_layers() -> None:
    mine, other = (yaml.safe_load((FOLDER / name).read_text(encoding="utf-8")) for name in ("qlora.yaml", "lora.yaml"))
    differing = {key for key in {*mine, *other} if mine.get(key) != other.get(key)}
    assert differing == {"quantize", "output_dir", "sample_prompts"}
