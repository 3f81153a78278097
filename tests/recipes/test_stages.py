"""VARGPT's four stages, recipes/configs/vargpt_stages: the commands of their headers, one after the other, on toys."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from header_commands import header_lines, photos, qwen3_folder, repository, run_line, var_file
from safetensors.torch import load_file
from toy_clip import save_clip
from toys import CHAT_TEMPLATE

__all__ = ["repository"]  # a fixture

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes/configs"
STAGES = ("1_alignment", "2_instruction", "3_generation", "4_preference")
IMAGE = {"type": "image"}


def row(question: list[dict], answer: list[dict], picture: str) -> str:
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return json.dumps({"messages": turns, "images": [picture]}) + "\n"


@pytest.fixture
def toys(repository: Path) -> Path:
    """The two downloads, and the rows, prompts and CLIP that the headers ask for."""
    qwen3_folder(repository / "Qwen3-1.7B", CHAT_TEMPLATE)
    var_file(repository / "vae_ch160v4096z32.pth")
    save_clip(repository / "CLIP_DIR")
    photos(repository / "pictures", {"red": "a red wall", "blue": "the sea"})
    drawn = row([{"type": "text", "text": "a red wall"}], [IMAGE], "pictures/red.png")
    told = row(
        [IMAGE, {"type": "text", "text": "What is it?"}], [{"type": "text", "text": "The sea."}], "pictures/blue.png"
    )
    for name, line in (("captions", drawn), ("instructions", told), ("requests", drawn)):
        for split in ("", "_eval"):
            (repository / f"{name}{split}.jsonl").write_text(line * 3, encoding="utf-8")
    prompts = "".join(json.dumps({"prompt": word}) + "\n" for word in ("a red wall", "the sea", "a cat"))
    (repository / "prompts.jsonl").write_text(prompts, encoding="utf-8")
    return repository


def weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return load_file(folder / f"{name}.safetensors")


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    return {
        name for name in before.keys() & after.keys() if not torch.equal(before[name].float(), after[name].float())
    }


def test_the_four_stages_run_and_each_trains_what_it_says(toys: Path, run_script: Callable[..., int]) -> None:
    first = [line for line in header_lines(CONFIGS / "qwen3_1.7b_var256/lora.yaml") if line.words[0] != "hf"][:2]
    assert [line.words[0] for line in first] == ["python", "unified"]
    for stage in ("", *STAGES):
        lines = header_lines(CONFIGS / f"vargpt_stages/{stage}.yaml") if stage else first
        for line in lines:
            run_line(line, run_script, stdin="a red wall\n")
    folders = [toys / "out/qwen3_1.7b_var256/base", *(toys / "out/vargpt_stages" / stage for stage in STAGES)]
    base, aligned, instructed = (weights(folder, "model") for folder in folders[:3])
    assert {name.split(".")[1] for name in changed(base, aligned)} <= {"image_embedding", "language_model"}
    layers = {name for name in base if ".layers." in name}
    assert not changed(base, aligned) & layers and changed(aligned, instructed) & layers
    assert not [name for name in changed(base, instructed) if "vq_model" in name]
    drawing, preferred = (weights(folder, "adapter_model") for folder in folders[3:])
    assert changed(drawing, preferred)
    for folder in folders[1:]:
        assert list((folder / "samples").glob("*.png")) and list(folder.glob("checkpoint-*")), folder
