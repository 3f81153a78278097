"""`--help` of every script: its manual, an example, the flags of the project in groups, those of libraries counted."""

import ast
import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = [
    str(path.relative_to(ROOT))
    for folder in ("recipes", "data_prep", "eval")
    for path in sorted((ROOT / folder).glob("*.py"))
    if path.stem != "__init__"
]
BY_ARGPARSE = "data_prep/convert_var_vq.py"


@pytest.mark.parametrize("name", SCRIPTS)
def test_help_opens_with_the_manual_and_an_example_and_ends(
    name: str, run_script: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert not run_script(name, "--help")
    said = capsys.readouterr()
    manual = ast.get_docstring(ast.parse((ROOT / name).read_text(encoding="utf-8")))
    assert said.err == "" and manual and manual in said.out
    assert re.search(rf"(python|accelerate launch|make) .*{name.split('/')[1]}", manual.replace("\\\n", " ")), (
        "example"
    )
    if name != BY_ARGPARSE:
        assert said.out.startswith(manual.splitlines()[0])
        groups = re.findall(r"^(\w[\w ]*): .*:$", said.out, re.MULTILINE)
        assert groups and len(groups) == len(set(groups)), said.out
        assert len(said.out.splitlines()) < 160 and max(map(len, said.out.splitlines())) <= 160


def test_flags_of_libraries_come_last_counted_and_are_listed_on_demand(
    run_script: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    run_script("recipes/sft.py", "--model", "x", "--help")
    short = capsys.readouterr().out
    groups = re.findall(r"^(Model|Data|Training|Tuning|Hardware|Inherited):", short, re.MULTILINE)
    assert groups == ["Model", "Data", "Training", "Tuning", "Hardware", "Inherited"]
    last = short[short.index("Inherited:") :]
    counted = re.match(
        r"Inherited: (\d+) flags of TrainingArguments, among them --learning_rate, ", " ".join(last.split())
    )
    assert counted and "--help-all lists them" in last and not re.search(r"^  --adam_beta1 ", short, re.MULTILINE)
    run_script("recipes/sft.py", "--help-all")
    long = capsys.readouterr().out
    assert long.startswith(short[: short.index("Inherited:")])
    listed = re.findall(r"^  --(\w+)", long[long.index("Inherited:") :], re.MULTILINE)
    assert len(listed) == int(counted[1]) and "adam_beta1" in listed and "lora_rank" not in listed
    run_script("recipes/dpo.py", "--help")
    assert "flags of DPOConfig and" in capsys.readouterr().out


def test_a_flag_shows_what_it_takes_and_its_default(
    run_script: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    run_script("recipes/train_vq.py", "-h")
    said = " ".join(capsys.readouterr().out.split())
    assert "--patch_nums N ... sides of the scales" in said and "(default: 96 152)" in said
    assert "--cosine true|false nearest" in said and "--report_to tensorboard|wandb|none" in said
    run_script("eval/geneval.py", "--help")
    assert "--images TEXT folder in GenEval's layout (required)" in " ".join(capsys.readouterr().out.split())
