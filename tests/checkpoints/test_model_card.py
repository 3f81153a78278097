"""Model cards: of all that is saved, with what its folder, its base and its run say; nobody's own is touched."""

import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from commands import run
from conftest import ROOT, load_script
from huggingface_hub import ModelCard
from PIL import Image
from toys import make_tokenizer, make_vq, save_llm, write_toy_rows

from unified import UnifiedConfig
from unified.checkpoints.averaging import average
from unified.checkpoints.extension import extend
from unified.checkpoints.loading import load
from unified.checkpoints.model_card import MARK, write_card
from unified.checkpoints.publishing import merge, publish
from unified.files.weights import fingerprint

LICENCE = "---\nlicense: other\nlicense_name: toy-1.0\nlicense_link: https://example.org/toy\n---\n\n# A toy LLM\n"
PROMPTS = ("a red cat", "a dog")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base`, extended from an LLM with a licence; `lora` and `full` trained from it, `more` from lora."""
    place = tmp_path_factory.mktemp("cards")
    make_vq().save_pretrained(place / "vq")
    save_llm(place / "llm", make_tokenizer())
    (place / "llm/README.md").write_text(LICENCE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        extend("llm", "vq", "base")
        patch.setenv("ACCELERATE_USE_CPU", "true")
        rows = write_toy_rows(Path("rows.parquet"), "dd", UnifiedConfig.from_pretrained("base").vq_fingerprint)
        for name, start, tuning in (("lora", "base", "lora"), ("full", "base", "full"), ("more", "lora", "lora")):
            flags = [
                "--model",
                start,
                "--tuning",
                tuning,
                "--output_dir",
                name,
                "--sample_prompts",
                "a red cat",
                "a dog",
            ]
            flags += ["--max_steps", 2, "--eval_files", rows, "--eval_strategy", "steps", "--eval_steps", 2]
            command = ["sft.py", "--config", ROOT / "recipes/configs/tiny.yaml", "--train_files", rows, *flags]
            patch.setattr(sys, "argv", [*map(str, command), "--save_steps", "1", "--learning_rate", "0.05"])
            load_script("recipes/sft.py").main()
    return place


@pytest.fixture(autouse=True)
def _inside(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)


def card(folder: str | Path) -> str:
    return Path(folder, "README.md").read_text(encoding="utf-8")


def links(text: str, folder: str | Path) -> list[str]:
    """Relative links and pictures, each of which is there."""
    found = [link for link in re.findall(r"\]\(([^)]+)\)", text) if "://" not in link]
    assert all((Path(folder) / link).is_file() for link in found), found
    return found


@pytest.mark.parametrize("folder", ["base", "lora", "full", "more", "lora/checkpoint-1", "full/checkpoint-1"])
def test_every_save_has_a_card(folder: str) -> None:
    text, data = card(folder), ModelCard.load(Path(folder, "README.md")).data.to_dict()
    assert MARK in text and "More Information Needed" not in text
    assert (data["license"], data["license_name"], data["pipeline_tag"]) == ("other", "toy-1.0", "any-to-any")
    assert data["library_name"] == ("peft" if folder.startswith(("lora", "more")) else "transformers")
    assert (
        "toy-1.0 (https://example.org/toy)" in text
        and UnifiedConfig.from_pretrained("base").vq_fingerprint[:16] in text
    )
    assert f"`{fingerprint(Path(folder))}`" in text
    assert f'load("{folder}")' in text and f"unified chat --model {folder} " in text
    if folder == "base":
        return
    assert "`rows.parquet` (2 rows, sha256 " in text and "| learning_rate | 0.05 |" in text
    assert (" 1 step." if "checkpoint" in folder else " 2 steps.") in text  # as far as it had come
    if "checkpoint" not in folder:
        assert links(text, folder) == ["samples/000002.png"] and "1. a red cat" in text and "2. a dog" in text


def test_what_it_tells_to_do_works() -> None:
    text = card("lora")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(code, {})
    lines = [line.split() for line in text.splitlines() if line.startswith("unified draw")]
    assert len(lines) == 1 and '"a red cat" --model lora' in text
    words = [*re.sub(r'"[^"]*"', "x", text[text.index("unified draw") :].splitlines()[0]).split()[1:]]
    assert run(*words[:-4], "--temperature", 0.7).exit_code == 0 and Path("picture.png").is_file()


@pytest.mark.parametrize("model", ["lora", "full", "lora/checkpoint-1"])
def test_published(model: str, tmp_path: Path) -> None:
    """Pictures and scores come along, results are linked, no path of this machine is told."""
    out, scores = tmp_path / "out", tmp_path / "scores"
    scores.mkdir()
    result = {"metric": "geneval_overall", "value": 0.5, "stderr": 0.01, "n": 8, "seed": 3}
    (scores / "geneval.json").write_text(json.dumps(result))
    words = ["--results", scores, "--name", "me/mine", "--licence", "mit"]
    made_with = [] if model == "full" else ["--made-with", "unified extend --llm llm --vq vq --out base"]
    assert run("publish", "--model", model, "--out", out, *words, *made_with).exit_code == 0
    text, data = card(out), ModelCard.load(out / "README.md").data.to_dict()
    assert data["license"] == "mit" and 'load("me/mine")' in text and "# mine\n" in text
    assert "| geneval_overall | 0.5 ± 0.01 | 8 | 3 |" in text
    pictures = [] if "checkpoint" in model else ["samples.png"]
    assert links(text, out) == [*pictures, "results/geneval.json"]
    assert "| learning_rate | 0.05 |" in text and "`rows.parquet` (2 rows" in text
    assert (" 1 step." if "checkpoint" in model else " 2 steps.") in text
    assert all(command in text for command in made_with[1:])
    for path in out.rglob("*.json"):
        assert str(Path.cwd()) not in path.read_text(encoding="utf-8")
    names = {path.name for path in out.iterdir()}
    assert not names & {"optimizer.pt", "training_args.bin", "trainer_state.json", "running.json"}
    loaded, _ = load(out, "cpu")
    assert loaded.dtype == (torch.bfloat16 if model == "full" else torch.float32)
    assert {b.dtype for b in loaded.model.vq_model.buffers()} <= {torch.float32, torch.int64}
    again = tmp_path / "again"
    publish(out, again)
    assert "| learning_rate | 0.05 |" in card(again) and (again / "results/geneval.json").is_file()


def test_pictures_can_be_drawn_for_it(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na dog\n")
    words = ["--model", "base", "--out", tmp_path / "out", "--prompts", tmp_path / "prompts.txt"]
    assert run("publish", *words).exit_code == 0
    assert links(card(tmp_path / "out"), tmp_path / "out") == ["samples.png"]
    with Image.open(tmp_path / "out/samples.png") as grid:
        assert grid.width > 100


def test_what_is_made_of_adapters_has_one_too(tmp_path: Path) -> None:
    merge("lora", tmp_path / "merged")
    average(["lora", "more"], [0.5, 0.5], tmp_path / "mean")
    for folder in ("merged", "mean"):
        text = card(tmp_path / folder)
        assert "| learning_rate | 0.05 |" in text and f"`{fingerprint(tmp_path / folder)}`" in text
    load(tmp_path / "mean", "cpu")


def test_a_card_of_ones_own_stays(tmp_path: Path) -> None:
    shutil.copytree("lora", tmp_path / "lora")
    for text, stays in (("# Mine\n", True), ("# Model Card for x\n", False), (f"x {MARK}", False)):
        (tmp_path / "lora/README.md").write_text(text)
        write_card(tmp_path / "lora", ["base"])
        assert (card(tmp_path / "lora") == text) == stays


@pytest.mark.parametrize("source", ["nothing", "no head", "broken head"])
def test_a_base_that_does_not_say_its_licence(source: str, tmp_path: Path) -> None:
    shutil.copytree("base", tmp_path / "base")
    texts = {"no head": "# A model\n", "broken head": "---\nlicense: [\n---\n"}
    (tmp_path / "base/README.md").unlink()
    if source in texts:
        (tmp_path / "base/README.md").write_text(texts[source])
    shutil.copytree("lora", tmp_path / "lora")
    write_card(tmp_path / "lora", [tmp_path / "base"])
    assert "licence | that of the base, whose folder does not say |" in card(tmp_path / "lora")
    assert "license" not in ModelCard.load(tmp_path / "lora/README.md").data.to_dict()
