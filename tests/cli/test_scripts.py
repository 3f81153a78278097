"""`unified ls`, `cp`, `run` and `--version`: which files are meant, what is copied, and what command a run is."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml
from commands import error_of, run

import unified
from unified.arguments.parser import parse
from unified.arguments.shipped_files import COMMAND, FOLDER
from unified.cli.running import command_of
from unified.cli.shipped import FOLDERS, find, names, purpose, root
from unified.reports.commands import run_step
from unified.training.planned_end import command_to_go_on

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that is not the repository."""
    monkeypatch.chdir(tmp_path)


def test_all_that_stands_in_the_folders_is_listed_with_a_purpose() -> None:
    listed = run("ls")
    assert listed.exit_code == 0
    there = {str(path.relative_to(ROOT)) for folder in FOLDERS for path in (ROOT / folder).rglob("*")}
    files = {name for name in there if (ROOT / name).is_file() and "__" not in name}
    found = dict(re.findall(r"^(\S+) +(\S.*)$", listed.stdout, re.MULTILINE))
    assert found.keys() == files == {*names()}
    assert "Fine-tune" in found["recipes/sft.py"] and "ZeRO-3" in found["recipes/accelerate_configs/zero3.yaml"]
    for name in files:
        assert len(purpose(name)) > 3 and not re.match(r"python |make |accelerate |\.venv", purpose(name)), name
    assert max(map(len, listed.stdout.splitlines())) < 160


@pytest.mark.parametrize(
    ("patterns", "there", "not_there"),
    [
        (["dpo"], "recipes/iterate_dpo.py", "recipes/sft.py"),
        (["recipes/*.py"], "recipes/sft.py", "eval/fid.py"),
        (["*.jsonl", "fid"], "eval/fid.py", "recipes/sft.py"),
    ],
)
def test_a_filter_is_a_glob_or_a_part_of_the_name(patterns: list[str], there: str, not_there: str) -> None:
    listed = [line.split()[0] for line in run("ls", *patterns).stdout.splitlines() if line]
    assert there in listed and not_there not in listed


def test_a_name_that_is_not_there_is_one_line_with_the_nearest() -> None:
    assert "no script or file matches 'stf'; nearest: recipes/sft.py" in error_of("ls", "stf")
    assert "there is no tiny_vd; nearest: recipes/configs/tiny_v" in error_of("cp", "tiny_vd", ".")
    assert "there is no script sft_.py; nearest: recipes/sft.py" in error_of("run", "--num_processes", 2, "sft_.py")
    assert "no script is named" in error_of("run", "--multi_gpu")
    assert "tini is no file here and no YAML of the package; nearest" in error_of("run", "sft", "--config", "tini")
    assert "is not launched by accelerate; leave out --num_processes 2" in error_of(
        "run", "--num_processes", 2, "eval/geneval.py"
    )


def test_names_may_leave_out_what_is_clear() -> None:
    assert find("sft", ".py") == find("sft.py", ".py") == find("recipes/sft", ".py") == "recipes/sft.py"
    assert find("smollm2_scenes/3_dpo", ".yaml") == "recipes/configs/smollm2_scenes/3_dpo.yaml"
    with pytest.raises(ValueError, match="3_dpo may be .*qwen2_7b_var256/3_dpo.yaml or .*smollm2_scenes/3_dpo.yaml"):
        find("3_dpo", ".yaml")


def test_a_copied_folder_names_its_own_files_and_nothing_is_overwritten() -> None:
    copied = run("cp", "recipes/configs/smollm2_scenes", "mine")
    written = copied.stdout.split()
    assert copied.exit_code == 0 and all(Path(path).is_file() for path in written)
    full = yaml.safe_load(Path("mine/smollm2_scenes/demo_full.yaml").read_text())
    assert full["runs"] == ["mine/smollm2_scenes/1_align.yaml", "mine/smollm2_scenes/2_sft.yaml"]
    assert full["text_files"] == ["data_prep/replay/smollm2_135m_instruct.jsonl"]  # not copied, so the package's
    Path("mine/smollm2_scenes/2_sft.yaml").unlink()
    Path("mine/smollm2_scenes/demo.yaml").write_text("edited")
    error = error_of("cp", "recipes/configs/smollm2_scenes/", "mine")
    assert "mine/smollm2_scenes/demo.yaml" in error and "exists already; give another folder" in error
    assert not Path("mine/smollm2_scenes/2_sft.yaml").exists()
    assert Path("mine/smollm2_scenes/demo.yaml").read_text() == "edited"


def test_a_copied_file_is_the_file_and_its_launch_line_names_it() -> None:
    assert run("cp", "eval/lmms/scenes.parquet", "a").stdout.split() == ["a/scenes.parquet"]
    assert Path("a/scenes.parquet").read_bytes() == (ROOT / "eval/lmms/scenes.parquet").read_bytes()
    assert run("cp", "sft", ".").stdout.split() == ["sft.py"]
    assert Path("sft.py").read_bytes() == (ROOT / "recipes/sft.py").read_bytes()
    run("cp", "tiny", "a")
    assert "--config a/tiny.yaml " in Path("a/tiny.yaml").read_text()


def test_a_script_that_is_launched_goes_through_accelerate_and_others_do_not() -> None:
    words = ["--config_file", "zero3", "--num_processes", "2", "sft", "--config", "tiny", "--learning_rate=1e-3"]
    assert command_of(words) == [
        *[sys.executable, "-m", "accelerate.commands.launch"],
        *["--config_file", str(root() / "recipes/accelerate_configs/zero3.yaml"), "--num_processes", "2"],
        *[str(root() / "recipes/sft.py"), "--config", str(root() / "recipes/configs/tiny.yaml")],
        "--learning_rate=1e-3",
    ]
    assert command_of(["eval/geneval.py", "--help"]) == [sys.executable, str(root() / "eval/geneval.py"), "--help"]


def test_files_here_come_before_those_of_the_package() -> None:
    Path("tiny.yaml").write_text("tuning: lora\n")
    run("cp", "sft", ".")
    command = command_of(["--config-file=cpu", "sft.py", "--config=tiny.yaml"])
    assert command[-2:] == ["sft.py", "--config=tiny.yaml"]
    assert command[3] == f"--config-file={root()}/recipes/accelerate_configs/cpu.yaml"


@dataclass
class Settings:
    chats: str = field(default="data_prep/replay/smollm2_heldout.jsonl", metadata={"help": ""})
    files: list[str] = field(default_factory=list, metadata={"help": ""})
    out: str = field(default="eval/lmms/scenes.parquet", metadata={"help": ""})


def test_values_name_shipped_files_in_a_run_alone_and_never_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("eval/lmms").mkdir(parents=True)
    Path("eval/lmms/scenes_vqa.yaml").write_text("mine")
    flags = ["--files", "eval/lmms/scenes_vqa.yaml", "recipes/configs/tiny.yaml", "recipes/none.yaml"]
    (plain,) = parse((Settings,), flags)
    assert plain.chats == Settings.chats and plain.files == flags[1:]
    monkeypatch.setenv(FOLDER, str(ROOT))
    (settings,) = parse((Settings,), flags)
    assert settings.chats == str(ROOT / Settings.chats) and settings.out == Settings.out
    assert settings.files == [flags[1], str(ROOT / flags[2]), flags[3]]


def test_a_step_of_a_script_finds_the_next_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(FOLDER, str(tmp_path / "package"))
    (tmp_path / "package/eval").mkdir(parents=True)
    (tmp_path / "package/eval/touch.py").write_text("import pathlib; pathlib.Path('ran').touch()")
    assert run_step(tmp_path / "done", "one", ["eval/touch.py"]) and Path("ran").exists()


def test_a_run_is_told_how_to_go_on_as_it_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMAND, "unified run sft --config 'a b.yaml'")
    assert command_to_go_on(["/x/sft.py"]) == "unified run sft --config 'a b.yaml' --resume True"


def test_the_scripts_status_and_words_pass_through(tmp_path: Path) -> None:
    script = "import os, sys; print(sys.argv[1:], 'torch' in sys.modules); sys.exit(7)"
    Path("mine.py").write_text(f'"""Mine."""\n{script}\n')
    command = [sys.executable, "-m", "unified.cli", "run", "mine.py", "--a_b", "c d", "--help"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 7 and done.stdout.strip() == "['--a_b', 'c d', '--help'] False", done.stderr


def test_the_version_is_that_of_the_distribution() -> None:
    assert run("--version").stdout == f"unified {unified.__version__}\n" and re.match(r"\d+\.\d+", unified.__version__)
    assert "__version__" in dir(unified)
