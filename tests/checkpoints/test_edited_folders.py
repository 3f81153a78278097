"""What was edited beside the weights since a checkpoint was made or trained: noticed where it is loaded or scored."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

from unified import UnifiedConfig
from unified.checkpoints.loading import load, weights_digest

TEMPLATE, PROCESSOR, TOKENIZER = "chat_template.jinja", "processor_config.json", "tokenizer.json"
CHATS = "chats are encoded otherwise than when the model was made or trained"
Edit = Callable[[Path], None]


def replaced(name: str, old: str, new: str) -> Edit:
    def edit(folder: Path) -> None:
        text = (folder / name).read_text(encoding="utf-8")
        assert old in text
        (folder / name).write_text(text.replace(old, new), encoding="utf-8")

    return edit


def valued(name: str, key: str, value: Any) -> Edit:
    def edit(folder: Path) -> None:
        stored = json.loads((folder / name).read_text(encoding="utf-8"))
        place = stored["model"] if name == TOKENIZER else stored
        assert place[key] != value
        place[key] = value
        (folder / name).write_text(json.dumps(stored), encoding="utf-8")

    return edit


EDITS: dict[str, tuple[Edit, str]] = {
    "role marker": (replaced(TEMPLATE, "<|im_start|>assistant", "<|im_start|>bot"), CHATS),
    "line break": (replaced(TEMPLATE, "<|im_end|>\n", "<|im_end|>"), CHATS),
    "start": (replaced(TEMPLATE, "{% for", "Today is Monday.{% for"), CHATS),
    "merges": (valued(TOKENIZER, "merges", []), CHATS),
    "image_positions": (valued("config.json", "image_positions", "sequential"), CHATS),
    "image_size": (valued(PROCESSOR, "image_size", 32), "image_size 32, and the model was made with 16"),
    "patch_nums": (valued(PROCESSOR, "patch_nums", [[1, 1], [3, 3]]), "has patch_nums"),
    "image_order": (valued(PROCESSOR, "image_order", "raster"), "image_order raster, and the model was made with sca"),
    "image_token_offset": (valued(PROCESSOR, "image_token_offset", 351), "has image_token_offset 351"),
    "boi_token_id": (valued(PROCESSOR, "boi_token_id", 5), "has boi_token_id 5"),
}


@pytest.mark.parametrize("name", EDITS)
def test_it_is_refused_in_one_line(name: str, toy_checkpoint: Path, tmp_path: Path) -> None:
    edit, problem = EDITS[name]
    edit(Path(shutil.copytree(toy_checkpoint, tmp_path / "model")))
    with pytest.raises(ValueError, match=problem) as error:
        load(tmp_path / "model", device="cpu")
    assert str(error.value).startswith(str(tmp_path / "model")) and "\n" not in str(error.value)


def test_a_folder_that_does_not_know_its_chats_loads(toy_checkpoint: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy_checkpoint, tmp_path / "model"))
    replaced(TEMPLATE, "<|im_start|>assistant", "<|im_start|>bot")(folder)
    valued("config.json", "chat_fingerprint", "")(folder)
    model, processor = load(folder, device="cpu")
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    assert UnifiedConfig.from_pretrained(folder).chat_fingerprint
    load(folder, device="cpu")


@pytest.mark.parametrize("system_prompt", [None, "You paint."])
def test_another_system_prompt_is_another_model_where_it_is_scored(
    system_prompt: str | None, toy_checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(toy_checkpoint, tmp_path / "model"))
    assert weights_digest(folder) == weights_digest(toy_checkpoint)
    valued(PROCESSOR, "system_prompt", system_prompt)(folder)
    assert load(folder, device="cpu")[1].system_prompt == system_prompt
    assert weights_digest(folder) != weights_digest(toy_checkpoint)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_training_takes_the_edited_template_and_its_result_notices_the_old_one(
    tuning: str,
    toy_checkpoint: Path,
    toy_rows: Callable[[str], Path],
    run_script: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    start = Path(shutil.copytree(toy_checkpoint, tmp_path / "start"))
    replaced(TEMPLATE, "<|im_start|>assistant", "<|im_start|>bot")(start)
    given = ["--config", ROOT / "recipes/configs/tiny.yaml", "--train_files", toy_rows("ddat"), "--max_steps", 1]
    given += ["--model", start, "--output_dir", tmp_path / "out", "--tuning", tuning, "--save_strategy", "no"]
    assert run_script("recipes/sft.py", *given, "--learning_rate", 0.05) == 0
    assert f"{start}: chats are encoded otherwise than when it was made or trained" in capfd.readouterr().err
    load(tmp_path / "out", device="cpu")
    shutil.copyfile(toy_checkpoint / TEMPLATE, (tmp_path / "out" if tuning == "full" else start) / TEMPLATE)
    with pytest.raises(ValueError, match=CHATS):
        load(tmp_path / "out", device="cpu")
