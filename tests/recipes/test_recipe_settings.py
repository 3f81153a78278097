"""YAMLs people start from: every run logs, evaluates, saves, draws samples and has rows in words."""

import re
from pathlib import Path

import pytest
import yaml
from shell_blocks import read_page

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "recipes/configs"
RECIPES = ("recipes/sft.py", "recipes/dpo.py")


def header(path: Path) -> str:
    return "".join(re.findall(r"^#(.*\n)", path.read_text(encoding="utf-8"), re.MULTILINE))


def launched(path: Path) -> str | None:
    """The launch line of a YAML that a recipe of `RECIPES` runs; None for others and the toys of tests."""
    if path.stem.startswith("tiny"):
        return None
    found = re.search(rf"(recipes/\w+\.py)[\s\\]+--config\s+{path.relative_to(ROOT)}((?:.*\\\n)*.*)", header(path))
    return found[2] if found and found[1] in RECIPES else None


LAUNCHED = {path: line for path in sorted(CONFIGS.rglob("*.yaml")) if (line := launched(path)) is not None}


def assert_whole(run: dict, launch: str, preferences: bool = False) -> None:
    """Whether a run, with what its launch line adds, is one to start from."""
    assert run["logging_steps"] <= run.get("max_steps", 1000) / 3
    evaluated = "--eval_strategy steps --eval_steps" in launch or (
        run["eval_strategy"] == "steps" and run["eval_steps"]
    )
    assert evaluated and run["save_steps"] and run["save_total_limit"]
    assert run.get("sample_prompts") or "--sample_prompts" in launch
    assert run.get("eval_files") or run.get("held_out_share") or "--eval_files" in launch
    given = [*run.get("train_files", []), *launch.split()]
    assert preferences or any(name.endswith(".jsonl") for name in given), "no rows in words"
    assert run["tuning"] != "lora" or preferences or "lora_positions" in run or "--model" in launch


@pytest.mark.parametrize("path", LAUNCHED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_run_to_start_from_is_whole(path: Path) -> None:
    run = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert_whole(run, LAUNCHED[path], preferences="loss_type" in run)


def test_there_are_such_runs() -> None:
    names = {str(path.relative_to(CONFIGS)) for path in LAUNCHED}
    wanted = {"qwen3_1.7b_var256/lora.yaml", "qwen2_7b_var256/2_sft.yaml", "smollm2_scenes/demo_sft.yaml"}
    assert wanted <= names and len(names) >= 10


def test_the_run_of_the_training_guide_is_whole() -> None:
    (run,) = read_page(ROOT / "docs/training.md").runs
    assert_whole(run, "")
    assert run["lora_positions"] == "image_tokens"
