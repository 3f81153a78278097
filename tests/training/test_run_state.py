"""State of runs is read without executing anything: a pickle that runs something is refused, in every file."""

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import load_file

from unified.training.run_state import check_states, read_accelerators_files, read_state

ROOT = Path(__file__).parents[2]
Resume = Callable[..., tuple[int, str]]


class Planted:
    """Makes a folder as it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.mark),)


def plant(path: Path, mark: Path, form: str) -> None:
    """Put such a pickle in a file's place, as torch writes it or as it is."""
    if form == "torch":
        torch.save({"state": Planted(mark), "param_groups": []}, path)
    else:
        path.write_bytes(pickle.dumps(Planted(mark), protocol=2 if form == "old" else 4))


@pytest.fixture
def resume(
    run_script: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Resume:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def run(recipe: str, config: str, *arguments: object) -> tuple[int, str]:
        given = ["--config", ROOT / f"recipes/configs/{config}.yaml", *arguments]
        status = run_script(f"recipes/{recipe}.py", *given)
        return status, capfd.readouterr().err.splitlines()[-1]

    return run


@pytest.fixture
def images(tmp_path: Path) -> Path:
    pixels = torch.randint(0, 256, (12, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    (tmp_path / "images").mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image.numpy()).save(tmp_path / f"images/{number:02d}.png")
    return tmp_path / "images"


@pytest.fixture
def tokenizer_run(resume: Resume, images: Path, tmp_path: Path) -> list[object]:
    """Arguments of a tokenizer's run that is in tmp_path/whole, with a discriminator."""
    given = ["--data_dir", images, "--gan_weight", 0.5, "--gan_start_step", 0, "--gan_base_channels", 8]
    assert resume("train_vq", "tiny_vq", *given, "--output_dir", tmp_path / "whole", "--max_minutes", 1e-9)[0] == 0
    assert (tmp_path / "whole/checkpoint-0000001").is_dir()
    return given


def test_planted_pickles_do_not_run_in_a_tokenizers_checkpoint(
    resume: Resume, tokenizer_run: list[object], tmp_path: Path
) -> None:
    files = [path.name for path in (tmp_path / "whole/checkpoint-0000001").iterdir()]
    assert {"average.safetensors", "usage.safetensors", "optimizer_1.bin", "random_states_0.pkl"} <= {*files}
    assert not [name for name in files if name.startswith("custom_checkpoint")]
    for name in ["custom_checkpoint_0.pkl", *files]:
        for form in ("torch", "old", "new") if name == "optimizer.bin" else ("torch",):
            out = tmp_path / "out"
            shutil.copytree(tmp_path / "whole/checkpoint-0000001", out / "checkpoint-0000001")
            plant(out / "checkpoint-0000001" / name, tmp_path / "mark", form)
            if name == "custom_checkpoint_0.pkl":
                (out / "checkpoint-0000001/average.safetensors").unlink()
            status, line = resume("train_vq", "tiny_vq", *tokenizer_run, "--output_dir", out, "--resume")
            assert not (tmp_path / "mark").exists(), (name, form)
            assert status == 2 and line.startswith("error: ") and name in line, (name, form, line)
            shutil.rmtree(out)


def test_a_checkpoint_of_before_is_read_and_goes_on_the_same(
    resume: Resume, tokenizer_run: list[object], tmp_path: Path
) -> None:
    out = tmp_path / "old"
    shutil.copytree(tmp_path / "whole", out)
    for number, name in enumerate(("average", "usage")):
        path = out / f"checkpoint-0000001/{name}.safetensors"
        torch.save(load_file(path), path.with_name(f"custom_checkpoint_{number}.pkl"))
        path.unlink()
    for folder in (tmp_path / "whole", out):
        assert resume("train_vq", "tiny_vq", *tokenizer_run, "--output_dir", folder, "--resume")[0] == 0
    whole, found = load_file(tmp_path / "whole/model.safetensors"), load_file(out / "model.safetensors")
    assert all(torch.equal(whole[name], found[name]) for name in whole)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_planted_pickles_do_not_run_in_a_fine_tunings_checkpoint(
    resume: Resume, toy_checkpoint: Path, toy_rows: Callable[[str], Path], tmp_path: Path, tuning: str
) -> None:
    given = ["--model", toy_checkpoint, "--train_files", toy_rows("dddtatdd"), "--tuning", tuning]
    assert resume("sft", "tiny", *given, "--output_dir", tmp_path / "whole", "--max_steps", 2)[0] == 0
    files = [path.name for path in (tmp_path / "whole/checkpoint-2").iterdir() if path.is_file()]
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"} <= {*files}
    text = (".json", ".md", ".jinja", ".py")  # nothing unpickles it
    for name in [*(name for name in files if not name.endswith(text)), "scaler.pt", "pytorch_model.bin"]:
        out = tmp_path / "out"
        shutil.copytree(tmp_path / "whole/checkpoint-2", out / "checkpoint-2")
        plant(out / "checkpoint-2" / name, tmp_path / "mark", "torch")
        more = ["--output_dir", out, "--resume", "True", "--max_steps", 3]
        status, line = resume("sft", "tiny", *given, *more)
        assert not (tmp_path / "mark").exists(), name
        if name.endswith((".bin", ".pt", ".pth")) and name != "training_args.bin":
            assert status == 2 and line.startswith("error: ") and name in line, (name, line)
        shutil.rmtree(out)


@pytest.mark.parametrize("form", ["torch", "old", "new"])
def test_a_planted_pickle_is_found_and_not_opened(tmp_path: Path, form: str) -> None:
    (tmp_path / "c/global_step2").mkdir(parents=True)
    torch.save({"a": torch.ones(2), "n": 1.5}, tmp_path / "c/global_step2/good.pt")
    check_states(tmp_path / "c")
    plant(tmp_path / "c/global_step2/bad.pt", tmp_path / "mark", form)
    with pytest.raises(ValueError, match="bad.pt holds more than a training's state or is damaged"):
        check_states(tmp_path / "c")
    with pytest.raises(ValueError, match="bad.pt holds more"):
        read_state(tmp_path / "c/global_step2/bad.pt")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["pytorch_model_fsdp_0/.metadata", "optimizer_0/__0_0.distcp"])
def test_a_checkpoint_in_shards_is_not_opened(tmp_path: Path, name: str) -> None:
    """Its metadata is a pickle: torch's reader of distributed checkpoints executes what that names."""
    (tmp_path / "checkpoint-2" / name).parent.mkdir(parents=True)
    plant(tmp_path / "checkpoint-2" / name, tmp_path / "mark", "new")
    with pytest.raises(ValueError, match="checkpoint in shards .* FULL_STATE_DICT, and remove .*checkpoint-2"):
        check_states(tmp_path / "checkpoint-2")
    assert not (tmp_path / "mark").exists()


def test_a_process_that_was_not_there_draws_random_numbers_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """More processes than before, or a checkpoint of another machine."""
    accelerator = Accelerator(cpu=True)
    accelerator.save_state(str(tmp_path))
    (tmp_path / "random_states_0.pkl").unlink()
    read_accelerators_files(tmp_path, accelerator, [])
    assert "random numbers begin anew" in capsys.readouterr().err


def test_a_state_that_is_missing_is_not_called_damaged(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="optimizer.bin is missing; copy the checkpoint again"):
        read_state(tmp_path / "optimizer.bin")


def test_a_bad_state_of_an_engine_names_the_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-2/global_step2").mkdir(parents=True)
    plant(tmp_path / "checkpoint-2/global_step2/bad.pt", tmp_path / "mark", "torch")
    with pytest.raises(ValueError, match=r"remove \S*checkpoint-2, and the run"):
        check_states(tmp_path / "checkpoint-2")
