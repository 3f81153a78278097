"""recipes/configs/photos on a toy: its commands in their order, at 64 and at 128 pixels."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from header_commands import header_lines, photos, repository, run_line
from toys import make_tokenizer, save_llm

from unified import UnifiedProcessor, VQModel
from unified.data.rows import read_encoded_rows
from unified.files.images import OPENER_VERSION

__all__ = ["repository"]  # a fixture

ROOT = Path(__file__).parents[2]
RUN = ROOT / "recipes/configs/photos/1_lora.yaml"
MADE_HERE = ("data_prep/fetch_photos.py", "data_prep/convert_smollm2.py")  # 210 MB, and a package of 90 MB


def test_the_commands_lead_from_a_folder_to_an_adapter_at_both_sizes(
    repository: Path, run_script: Callable[..., int]
) -> None:
    photos(repository / "data/photos", {"red": "a red thing", "green": "a green thing", "blue": "a blue thing"})
    save_llm(repository / "out/smollm2", make_tokenizer())
    lines = [line for line in header_lines(RUN) if not set(MADE_HERE) & set(line.words)]
    assert len(lines) == 12
    said = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    (repository / "talk.jsonl").write_text(json.dumps(said) + "\n", encoding="utf-8")
    for line in lines:
        words = list(line.words)
        if "--eval_images" in words:
            words += ["--eval_images", "1"]
        if "recipes/sft.py" in words:  # the shipped texts are too long in the toy's letters
            words += ["--train_files", "data/photos_128" if "out/photos/base_128" in words else "data/photos_64"]
            words += ["talk.jsonl", "--max_length", "512"]
        run_line(replace(line, words=words), run_script)
    for side, codes in ((64, 85), (128, 341)):
        vq = VQModel.from_pretrained(repository / f"out/photos/vq_{side}")
        assert (vq.config.image_size, vq.config.upsampling) == (side, "bilinear")
        rows = read_encoded_rows(repository / f"data/photos_{side}/00000.parquet")
        assert len(rows) == 20 and {len(row["codes"][0]) for row in rows} == {codes}
        assert json.loads((repository / f"data/photos_{side}/settings.json").read_text())["opener"] == OPENER_VERSION
        assert (repository / f"out/photos/lora_{side}/adapter_model.safetensors").is_file()
        logged = json.loads((repository / f"out/photos/lora_{side}/trainer_state.json").read_text())["log_history"]
        assert any("eval_image_loss" in entry for entry in logged)
        assert UnifiedProcessor.from_pretrained(repository / f"out/photos/lora_{side}").image_size == side
    drawn = [
        json.loads(path.read_text()) for path in sorted((repository / "out/photos").glob("drawn_64/*/meta*.jsonl"))
    ]
    assert [record["held_out"] for record in drawn] == [True, False]
    assert (repository / "out/photos/drawn_64.png").is_file()


@pytest.mark.parametrize("name", ["0_vq_64.yaml", "0_vq_128.yaml"])
def test_headers_of_the_tokenizers_begin_as_the_adapters_does(name: str) -> None:
    known = {tuple(line.words) for line in header_lines(RUN)}
    assert {tuple(line.words) for line in header_lines(RUN.parent / name)} <= known
