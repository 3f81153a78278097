"""Runs that go on: along their trajectory, with what cannot change it, or not at all; and folders that are others'."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from accelerate import PartialState
from conftest import load_script
from pairs import toy_pairs
from PIL import Image
from safetensors.torch import load_file

from unified import UnifiedConfig
from unified.data.preferences import write_pairs
from unified.training.run_folder import check_group, holder_of, locked

ROOT = Path(__file__).parents[2]
CONFIGS = {"sft": "tiny", "dpo": "tiny_dpo", "train_vq": "tiny_vq"}
Run = Callable[..., tuple[int, str]]
WARM = ["--lr_scheduler_type", "constant_with_warmup"]  # without steps of it: constant


@pytest.fixture
def run(run_script: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run a recipe with its toy configuration; its exit status and what it said on stderr."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def run(recipe: str, *arguments: object) -> tuple[int, str]:
        config = ROOT / f"recipes/configs/{CONFIGS[recipe]}.yaml"
        status = run_script(f"recipes/{recipe}.py", "--config", config, *arguments)
        return status, capfd.readouterr().err

    return run


@pytest.fixture(scope="module")
def data(toy_checkpoint: Path, toy_rows: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Arguments of a run of every recipe, without its output_dir."""
    folder = tmp_path_factory.mktemp("data")
    config = UnifiedConfig.from_pretrained(toy_checkpoint)
    write_pairs(folder / "pairs.parquet", toy_pairs("imutimut"), config.vq_fingerprint, config.patch_nums)
    (folder / "images").mkdir()
    pixels = torch.randint(0, 256, (12, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for number, image in enumerate(pixels):
        Image.fromarray(image.numpy()).save(folder / f"images/{number:02d}.png")
    short = ["--max_steps", 4, "--save_steps", 2]
    return {
        "sft": ["--model", toy_checkpoint, "--train_files", toy_rows("dddddaaatttt"), *short, *WARM],
        "dpo": ["--model", toy_checkpoint, "--train_files", folder / "pairs.parquet", *short],
        "train_vq": ["--data_dir", folder / "images", *short, "--save_total_limit", 5],
    }


@pytest.fixture(scope="module")
def whole(data: Any, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """`whole("sft")`: folder of a finished run of four steps with a checkpoint every two."""
    made: dict[str, Path] = {}

    def make(recipe: str) -> Path:
        if recipe not in made:
            made[recipe] = tmp_path_factory.mktemp("whole") / recipe
            command = [f"{recipe}.py", "--config", ROOT / f"recipes/configs/{CONFIGS[recipe]}.yaml", *data[recipe]]
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("ACCELERATE_USE_CPU", "true")
                patch.setattr(sys, "argv", [*map(str, command), "--output_dir", str(made[recipe])])
                load_script(f"recipes/{recipe}.py").main()
        return made[recipe]

    return make


def half(whole: Path, out: Path) -> Path:
    """A folder with the checkpoint of step 2 of a run alone."""
    (name,) = [path.name for path in whole.glob("checkpoint-*2")]
    shutil.copytree(whole / name, out / name)
    return out


def content(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("recipe", CONFIGS)
def test_a_new_run_does_not_write_into_a_used_folder(
    run: Run, data: Any, whole: Callable[[str], Path], recipe: str
) -> None:
    before = content(whole(recipe))
    status, said = run(recipe, *data[recipe], "--output_dir", whole(recipe))
    line = said.splitlines()[-1]
    assert status == 2 and f"output_dir {whole(recipe)} holds checkpoint-" in line and "--resume" in line, line
    assert content(whole(recipe)) == before


@pytest.mark.parametrize("recipe", CONFIGS)
def test_a_finished_run_says_so_and_stays_as_it_is(
    run: Run, data: Any, whole: Callable[[str], Path], recipe: str
) -> None:
    before = content(whole(recipe))
    status, said = run(recipe, *data[recipe], "--output_dir", whole(recipe), "--resume", "True")
    assert status == 0 and "this run has finished after 4 steps; nothing is left to train" in said
    after = content(whole(recipe))
    assert {
        name
        for name in {*before, *after}
        if before.get(name) != after.get(name) and not name.startswith(("tensorboard", "runs"))
    } == set()


@pytest.mark.parametrize("recipe", CONFIGS)
def test_a_run_killed_before_its_result_trains_no_step_more(
    run: Run, data: Any, whole: Callable[[str], Path], recipe: str, tmp_path: Path
) -> None:
    (last,) = whole(recipe).glob("checkpoint-*4")
    shutil.copytree(last, tmp_path / last.name)
    assert run(recipe, *data[recipe], "--output_dir", tmp_path, "--resume", "True")[0] == 0
    expected, found = load_file(whole(recipe) / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("recipe", CONFIGS)
def test_a_run_that_goes_on_is_the_same_and_may_log_and_save_otherwise(
    run: Run, data: Any, whole: Callable[[str], Path], recipe: str, tmp_path: Path
) -> None:
    half(whole(recipe), tmp_path)
    logs = ["--log_steps", 2] if recipe == "train_vq" else ["--logging_steps", 2, "--save_total_limit", 7]
    status, said = run(recipe, *data[recipe], "--output_dir", tmp_path, "--resume", "True", *logs, "--save_steps", 1)
    assert status == 0, said
    expected, found = load_file(whole(recipe) / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    longer = run(recipe, *data[recipe], "--output_dir", tmp_path, "--resume", "True", "--max_steps", 5)
    assert longer[0] == 0 and list(tmp_path.glob("checkpoint-*5")), longer[1]


CHANGES = {
    "sft": {
        "learning_rate": 1e-5,
        "new_parts_learning_rate": 1e-6,
        "weight_decay": 0.5,
        "adam_beta1": 0.1,
        "max_grad_norm": 0.01,
        "lr_scheduler_type": "linear",
        "warmup_steps": 50,
        "seed": 1,
        "caption_dropout": 0.9,
        "last_scale_fraction": 1,
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "pack": False,
        "max_length": 64,
        "text_loss_weight": 3,
    },
    "dpo": {"beta": 0.1, "learning_rate": 1e-5, "loss_type": "ipo", "num_scales": 1},
    "train_vq": {"learning_rate": 1e-5, "weight_decay": 0.5, "batch_size": 2, "seed": 3, "beta": 0.5},
}


@pytest.mark.parametrize(("recipe", "name"), [(recipe, name) for recipe in CHANGES for name in CHANGES[recipe]])
def test_a_changed_setting_is_refused_by_name_with_both_values(
    run: Run, data: Any, whole: Callable[[str], Path], recipe: str, name: str, tmp_path: Path
) -> None:
    half(whole(recipe), tmp_path)
    given = [*data[recipe], "--output_dir", tmp_path, "--resume", "True", f"--{name}", CHANGES[recipe][name]]
    status, said = run(recipe, *given)
    line = said.splitlines()[-1]
    assert status == 2 and f"was trained with {name} " in line and f"--allow_changed {name}" in line, line
    assert not (tmp_path / "model.safetensors").exists() and not (tmp_path / "running.json").exists()


@pytest.mark.parametrize(
    ("recipe", "changes"),
    [("sft", ["--train_text_rows", True]), ("sft", ["--optim", "sgd"]), ("train_vq", ["--code_dim", 8])],
)
def test_what_cannot_change_is_refused_even_if_allowed(
    run: Run, data: Any, whole: Callable[[str], Path], recipe: str, changes: list[Any], tmp_path: Path
) -> None:
    half(whole(recipe), tmp_path)
    name = changes[0].removeprefix("--")
    given = [*data[recipe], "--output_dir", tmp_path, "--resume", "True", *changes]
    status, said = run(recipe, *given)
    assert status == 2 and f"was trained with {name} " in said and "--allow_changed" not in said.splitlines()[-1], said
    status, said = run(recipe, *given, "--allow_changed", name)
    assert status == 2 and f"error: allow_changed {name}: valid are " in said.splitlines()[-1], said


@pytest.mark.parametrize(("recipe", "name", "value"), [("sft", "rows", "dddt"), ("train_vq", "rows", "")])
def test_other_rows_are_refused(
    run: Run,
    data: Any,
    whole: Callable[[str], Path],
    toy_rows: Callable[[str], Path],
    recipe: str,
    name: str,
    value: str,
    tmp_path: Path,
) -> None:
    half(whole(recipe), tmp_path / "out")
    given = [*data[recipe], "--output_dir", tmp_path / "out", "--resume", "True"]
    if recipe == "sft":
        given += ["--train_files", toy_rows(value)]
    else:
        shutil.copytree(data[recipe][1], tmp_path / "images")
        Image.new("RGB", (16, 16)).save(tmp_path / "images/00.png")
        given += ["--data_dir", tmp_path / "images"]
    status, said = run(recipe, *given)
    assert status == 2 and "was trained with rows '12 " in said.splitlines()[-1], said


def test_another_base_is_refused_and_the_same_one_elsewhere_is_not(
    run: Run, data: Any, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    half(whole("sft"), tmp_path / "out")
    shutil.copytree(data["sft"][1], tmp_path / "base")
    given = [*data["sft"], "--output_dir", tmp_path / "out", "--resume", "True", "--model", tmp_path / "base"]
    weights = load_file(tmp_path / "base/model.safetensors")
    name = next(name for name in weights if name.endswith("q_proj.weight"))
    save_file(weights | {name: weights[name] + 1}, tmp_path / "base/model.safetensors", {"format": "pt"})
    status, said = run("sft", *given)
    assert status == 2 and "was trained with base " in said.splitlines()[-1], said
    shutil.copytree(data["sft"][1], tmp_path / "base", dirs_exist_ok=True)
    assert run("sft", *given)[0] == 0


@pytest.mark.parametrize("name", ["learning_rate", "new_parts_learning_rate", "weight_decay", "adam_beta1"])
def test_an_allowed_change_counts_and_is_on_record(
    run: Run, data: Any, whole: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    half(whole("sft"), tmp_path)
    value = CHANGES["sft"][name]
    given = [*data["sft"], "--output_dir", tmp_path, "--resume", "True", f"--{name}", value, "--allow_changed", name]
    status, said = run("sft", *given)
    assert status == 0 and f"changed as allowed: {name} " in said, said
    for path in (tmp_path / "run.json", tmp_path / "checkpoint-4/trainer_state.json"):
        kept = json.loads(path.read_text())
        kept = kept if path.name == "run.json" else kept["stateful_callbacks"]["Recorder"]["attributes"]["record"]
        (change,) = kept["changes"]
        assert change == {"after_step": 2, "name": name, "old": kept_default(whole("sft"), name), "new": value}
    groups = torch.load(tmp_path / "checkpoint-4/optimizer.pt", weights_only=True)["param_groups"]
    values = {
        "learning_rate": groups[0]["lr"],
        "new_parts_learning_rate": groups[-1]["lr"],
        "weight_decay": groups[0]["weight_decay"],
        "adam_beta1": groups[0]["betas"][0],
    }
    assert values[name] == value


def kept_default(folder: Path, name: str) -> Any:
    """What a run was made of."""
    return json.loads((folder / "run.json").read_text())["made_of"][name]


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors"])
def test_a_checkpoint_that_lacks_something_is_refused(
    run: Run, data: Any, whole: Callable[[str], Path], name: str, tmp_path: Path
) -> None:
    half(whole("sft"), tmp_path)
    (tmp_path / "checkpoint-2" / name).unlink()
    status, said = run("sft", *data["sft"], "--output_dir", tmp_path, "--resume", "True")
    assert status == 2 and "checkpoint-2" in said.splitlines()[-1], said


def test_a_checkpoint_from_before_goes_on_without_being_compared(
    run: Run, data: Any, whole: Callable[[str], Path], tmp_path: Path
) -> None:
    half(whole("sft"), tmp_path)
    path = tmp_path / "checkpoint-2/trainer_state.json"
    state = json.loads(path.read_text())
    del state["stateful_callbacks"]["Recorder"]
    path.write_text(json.dumps(state))
    status, said = run("sft", *data["sft"], "--output_dir", tmp_path, "--resume", "True")
    assert status == 0 and "checkpoint-2 has no run.json: what it was trained with is not compared" in said
    expected, found = load_file(whole("sft") / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_resume_over_a_model_without_a_checkpoint_is_refused(run: Run, data: Any, tmp_path: Path) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"")
    status, said = run("sft", *data["sft"], "--output_dir", tmp_path, "--resume", "True")
    assert status == 2 and "holds adapter_model.safetensors but no checkpoint to go on from" in said


def test_a_folder_is_trained_into_once_at_a_time(run: Run, data: Any, tmp_path: Path) -> None:
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = psutil.Process(sleeper.pid).create_time()
    lock = {"host": os.uname().nodename, "pid": sleeper.pid, "began": began}
    (tmp_path / "running.json").write_text(json.dumps(lock))
    try:
        status, said = run("sft", *data["sft"], "--output_dir", tmp_path)
        assert status == 2 and f"is being trained into by process {sleeper.pid} of this machine" in said
        assert holder_of(tmp_path / "running.json") == sleeper.pid
        (tmp_path / "running.json").write_text(json.dumps(lock | {"began": began - 5}))  # its number was given anew
        assert holder_of(tmp_path / "running.json") is None
        (tmp_path / "running.json").write_text(json.dumps(lock | {"host": "elsewhere"}))
        assert holder_of(tmp_path / "running.json") is None
        (tmp_path / "running.json").write_text(json.dumps(lock))
    finally:
        sleeper.communicate(b"\n")
    assert holder_of(tmp_path / "running.json") is None  # it is gone
    with locked(tmp_path, new=True):
        assert json.loads((tmp_path / "running.json").read_text())["pid"] == os.getpid()
    assert not (tmp_path / "running.json").exists()


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_processes_that_do_not_know_of_each_other_are_refused(
    variable: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    PartialState()  # of one process
    check_group(tmp_path)
    monkeypatch.setenv(variable, "2")
    with pytest.raises(ValueError, match=f"2 processes were launched .{variable}., but each would train alone"):
        check_group(tmp_path)
