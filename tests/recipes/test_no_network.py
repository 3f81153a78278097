"""No recipe and no command looks up or calls a host, whatever the environment says; see conftest's `called`."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run
from pairs import toy_pairs
from PIL import Image

from unified import UnifiedConfig
from unified.data.preferences import write_pairs

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _asked_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing says that there is no network."""
    for name in ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "CI", "DO_NOT_TRACK", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY", False)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


def test_sockets_are_watched(called: list[Any]) -> None:
    with pytest.raises(OSError, match="example.org is called"):
        socket.create_connection(("example.org", 80), timeout=1)
    assert called == ["example.org"]
    called.clear()


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_fine_tuning(
    run_script: Callable[..., int],
    toy_checkpoint: Path,
    toy_rows: Callable[[str], Path],
    tmp_path: Path,
    tuning: str,
) -> None:
    rows = toy_rows("ddatdatt")
    given = ["--config", ROOT / "recipes/configs/tiny.yaml", "--model", toy_checkpoint, "--train_files", rows]
    given += ["--eval_files", rows, "--eval_strategy", "steps", "--eval_steps", 1, "--sample_prompts", "a cat"]
    out = tmp_path / "out"
    assert run_script("recipes/sft.py", *given, "--output_dir", out, "--tuning", tuning) == 0
    if tuning == "lora":
        assert run("draw", "a cat", "--model", out, "--out", tmp_path / "a.png").exit_code == 0


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_preferences(run_script: Callable[..., int], toy_checkpoint: Path, tmp_path: Path, tuning: str) -> None:
    config = UnifiedConfig.from_pretrained(toy_checkpoint)
    write_pairs(tmp_path / "pairs.parquet", toy_pairs("imut"), config.vq_fingerprint, config.patch_nums)
    given = ["--config", ROOT / "recipes/configs/tiny_dpo.yaml", "--model", toy_checkpoint, "--tuning", tuning]
    given += ["--train_files", tmp_path / "pairs.parquet", "--output_dir", tmp_path / "out"]
    assert run_script("recipes/dpo.py", *given) == 0


def test_image_tokenizer(run_script: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for number in range(12):
        Image.fromarray(torch.full((16, 16, 3), 20 * number, dtype=torch.uint8).numpy()).save(
            tmp_path / f"images/{number}.png"
        )
    given = ["--config", ROOT / "recipes/configs/tiny_vq.yaml", "--data_dir", tmp_path / "images"]
    assert run_script("recipes/train_vq.py", *given, "--output_dir", tmp_path / "vq") == 0


def test_extend_draw_and_chat(tiny_llm_dir: Path, vq_dir: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    assert run("extend", "--llm", tiny_llm_dir, "--vq", vq_dir, "--out", model).exit_code == 0
    assert run("draw", "a cat", "--model", model, "--out", tmp_path / "a.png").exit_code == 0
    assert run("chat", "--model", model, stdin="hello\n").exit_code == 0
