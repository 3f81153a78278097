"""recipes/configs/qwen3_1.7b_var256 without its GPU: its memory counted, its chat template, its commands on toys."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import trl
import yaml
from header_commands import header_lines, photos, qwen3_folder, repository, run_line, var_file
from torch import nn
from training_memory import layer_cost, qwen3_with_var, trainable

from unified import UnifiedProcessor
from unified.training.arguments import UnifiedTrainingArguments
from unified.training.tuning import prepare

__all__ = ["repository"]  # a fixture

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "recipes/configs/qwen3_1.7b_var256"
RUN = FOLDER / "lora.yaml"
HEADER = "\n".join(re.findall(r"^#(.*)$", RUN.read_text(encoding="utf-8"), re.MULTILINE))
SETTINGS = yaml.safe_load(RUN.read_text(encoding="utf-8"))
POSITIONS = 620  # of a photo with its caption: 552 codes and some 70 ids around them


def shown(pattern: str) -> float:
    """The number that the header has at the group of `pattern`."""
    found = re.search(pattern, HEADER)
    assert found, pattern
    return float(found[1].replace(",", ""))


def recipe_model(**settings: object) -> nn.Module:
    """Qwen3-1.7B with VAR's codes as the YAML trains it, without values."""
    names = ("tuning", "lora_positions", "lora_rank", "lora_alpha")
    args = UnifiedTrainingArguments(use_cpu=True, **{name: SETTINGS[name] for name in names})
    return prepare(qwen3_with_var(**settings).to(torch.bfloat16), args)


def test_the_memory_in_the_header_is_what_the_recipe_takes() -> None:
    model = recipe_model()
    parts, learns = trainable(model), sum(trainable(model).values())
    said = {name: int(shown(f"{name} ([0-9,]+)")) for name in ("updates", "rows", "embedding")}
    assert said == {"updates": parts["lora"], "rows": parts["rows"], "embedding": parts["image_embedding"]}
    core = model.get_base_model()
    backbone = qwen3_with_var().model.language_model
    tokenizer = sum(value.numel() for value in core.model.vq_model.state_dict().values())
    layer = layer_cost(recipe_model, SETTINGS["per_device_train_batch_size"], POSITIONS)
    layers = backbone.config.num_hidden_layers
    expected = {
        "codes' rows, bf16": sum(p.numel() for p in backbone.parameters()) * 2,
        "tokenizer, frozen, float32": tokenizer * 4,
        "what learns, float32": learns * 4,
        "its gradients": learns * 4,
        "AdamW": learns * 8,
        "backward pass:[^=]*": layer.saved * layers,
        "loss, a chunk[^=]*": 2**25 * (4 + 4 + 2),
    }
    found = {name: shown(name + r"[^=\n]*= +([0-9.]+)") for name in expected}
    assert found == pytest.approx({name: size / 1e9 for name, size in expected.items()}, abs=0.006)
    assert shown(r"sum ([0-9.]+)\.") == pytest.approx(sum(expected.values()) / 1e9, abs=0.06)
    assert sum(expected.values()) / 1e9 + 2 < 24 * 2**30 / 1e9 * 0.75  # room for what no count here sees
    check_hours(layer.both * layers / (SETTINGS["per_device_train_batch_size"] * POSITIONS))


def check_hours(per_position: float) -> None:
    """The header's TFLOP a step and hours follow from `per_position` FLOP of the layers' weights."""
    images = SETTINGS["per_device_train_batch_size"] * SETTINGS["gradient_accumulation_steps"]
    attention = 3.5 * 4 * POSITIONS * 2048 * 28  # two products forward, five backward, over all positions
    columns = 552 * 4096 + (552 / SETTINGS["modality_stride"] + 2) * 156_032  # codes alone; the whole vocabulary
    step = images * (POSITIONS * (per_position + attention) + columns * 2048 * 2 * 2)
    assert shown(r"(\d+) TFLOP a step of 16") == pytest.approx(step / 1e12, abs=0.6)
    told = re.findall(r"[Aa]t (\d+)[^;]*? ([0-9.]+) s, ([0-9.]+) hours", " ".join(HEADER.split()))
    assert len(told) == 2
    for rate, seconds, hours in told:
        assert float(seconds) == pytest.approx(step / float(rate) / 1e12, abs=0.06)
        assert float(hours) == pytest.approx(step / float(rate) / 1e12 * SETTINGS["max_steps"] / 3600, abs=0.06)


def published(*_: object) -> str:
    """The chat template of Qwen3 as published, which TRL has a copy of."""
    return (Path(trl.__file__).parent / "chat_templates/qwen3.jinja").read_text(encoding="utf-8")


@pytest.fixture
def toys(repository: Path) -> Path:
    """The downloads and the photos that the header speaks of, as toys."""
    folder = qwen3_folder(repository / "Qwen3-1.7B", "")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    text = json.dumps(config | {"chat_template": published()})  # where the published files have it
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
    var_file(repository / "vae_ch160v4096z32.pth")
    photos(repository / "my_photos", {"red": "a photo of Rex", "blue": "a photo of the sea", "green": "a meadow"})
    photos(repository / "my_photos_eval", {"yellow": "a photo of the sun"})
    return repository


def test_every_command_of_the_header_runs_on_toys(toys: Path, run_script: Callable[..., int]) -> None:
    downloads = [line.words for line in header_lines(RUN) if line.words[0] == "hf"]
    assert [words[words.index("--local-dir") + 1] for words in downloads] == ["Qwen3-1.7B", "."]
    lines = [line for line in header_lines(RUN) if line.words[0] != "hf"]
    assert lines[-1].words[:2] == ["unified", "chat"]
    for line in lines:
        run_line(line, run_script, stdin="a photo of Rex\n")
    out = toys / SETTINGS["output_dir"]
    state = json.loads((out / "trainer_state.json").read_text(encoding="utf-8"))
    logged = {name for entry in state["log_history"] for name in entry}
    assert {"loss", "eval_text_loss", "eval_image_loss"} <= logged
    assert list((out / "samples").glob("*.png")) and (out / "checkpoint-1").is_dir()
    processor = UnifiedProcessor.from_pretrained(toys / "out/qwen3_1.7b_var256/base")
    asked = [{"role": "user", "content": "Draw Rex."}]
    trained = processor.encode_chat([*asked, {"role": "assistant", "content": "No."}]).input_ids
    prompt = processor.prompt_ids(asked)
    assert trained[: len(prompt)] == prompt
    assert "<think>\n\n</think>\n\n" in processor.tokenizer.decode(prompt)
    answers = [json.loads(line) for line in (toys / "data/my_photos/replay.jsonl").read_text().splitlines()]
    assert answers and not [row for row in answers if "think" in row["messages"][-1]["content"]]
