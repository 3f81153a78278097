"""recipes/sft.py on a toy: launched as users launch it, stopped and resumed, and what it refuses before training."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import load_script
from endings import check_ending, check_plot, tracked_images
from safetensors.torch import load_file
from torch import nn
from toys import toy_row, write_toy_rows

from unified import UnifiedConfig, UnifiedForCausalLM
from unified.checkpoints.loading import load
from unified.data.rows import write_encoded_shard
from unified.hardware import setup
from unified.hardware.machine import Machine
from unified.training import trackers
from unified.training.arguments import UnifiedTrainingArguments
from unified.training.trainer import newest_checkpoint

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "recipes/configs/tiny.yaml"
STEPS = 6  # 12 rows in batches of 4: two epochs


@pytest.fixture
def sft(run_script: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the recipe with tiny.yaml in this process, which saves the imports; returns its exit status."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return lambda *arguments: run_script("recipes/sft.py", "--config", CONFIG, *arguments)


@pytest.fixture(scope="module")
def arguments(toy_checkpoint: Path, toy_rows: Callable[[str], Path]) -> list[object]:
    return ["--model", toy_checkpoint, "--train_files", toy_rows("dddddaaatttt"), "--max_steps", STEPS]


@pytest.fixture(scope="module")
def whole(arguments: list[object], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output of a run that was never stopped."""
    out = tmp_path_factory.mktemp("sft") / "whole"
    command = ["sft.py", "--config", CONFIG, *arguments, "--output_dir", out]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        patch.setattr(sys, "argv", list(map(str, command)))
        load_script("recipes/sft.py").main()
    return out


def history(out: Path) -> list[dict[str, float]]:
    """What every step logged, without times."""
    entries = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return [{key: entry[key] for key in entry if key != "images_per_second"} for entry in entries if "loss" in entry]


def assert_same_run(out: Path, whole: Path) -> None:
    assert history(out) == history(whole)
    weights, expected = load_file(out / "model.safetensors"), load_file(whole / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0, atol=0, msg=name)


def test_launched_as_the_manual_says_it_is_the_same_run(arguments: list[object], whole: Path, tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", "recipes/accelerate_configs/cpu.yaml", "recipes/sft.py", "--config", str(CONFIG)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [*launch, *map(str, arguments), "--output_dir", str(tmp_path / "out")]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    check_ending(result.stderr, tmp_path / "out", "text loss", "image loss")
    assert "loss=" in result.stderr and "image=" in result.stderr  # on the bar
    steps = [line for line in result.stdout.splitlines() if line.strip().startswith("step ")]
    assert len(steps) == STEPS and all("image " in line and "{" not in line for line in steps)
    check_plot(tmp_path / "out", panels=2)
    assert_same_run(tmp_path / "out", whole)


def test_a_run_logs_every_group_and_leaves_a_checkpoint(whole: Path) -> None:
    logs = history(whole)
    assert [entry["step"] for entry in logs] == list(range(1, STEPS + 1))
    assert {"text_loss", "image_loss", "scale_1_loss", "scale_2_loss", "images_seen"} <= logs[-1].keys()
    assert logs[-1]["images_seen"] == 10  # two epochs of five drawings
    assert logs[-1]["loss"] < logs[0]["loss"]
    assert list((whole / "runs").rglob("events.out.tfevents*"))
    for folder in (whole, whole / "checkpoint-2"):
        chosen = json.loads((folder / "hardware.json").read_text())
        assert (chosen["device"], chosen["precision"]) == ("cpu", "float32")
        assert chosen["threads"] == int(os.environ["UNIFIED_THREADS"])
    model, processor = load(whole, device="cpu")
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": "a photo of 1 red cats"}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
    )
    boi = torch.tensor([[processor.boi_token_id]])
    ids = model.generate(torch.cat([prompt["input_ids"], boi], dim=1), max_new_tokens=0)
    assert processor.vocabulary.is_image(ids).sum() == 5


@pytest.mark.parametrize("step", [2, 4])
def test_a_killed_run_goes_on_as_if_it_had_not_been(
    sft: Callable[..., int], arguments: list[object], whole: Path, tmp_path: Path, step: int
) -> None:
    shutil.copytree(whole / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    shutil.copytree(whole / f"checkpoint-{step}", tmp_path / "checkpoint-10")  # as a kill may leave it
    cut_off(tmp_path / "checkpoint-10/model.safetensors")
    (tmp_path / "checkpoint-10/trainer_state.json").unlink()
    assert sft(*arguments, "--output_dir", tmp_path, "--resume") == 0
    shutil.rmtree(tmp_path / "checkpoint-10", ignore_errors=True)
    assert_same_run(tmp_path, whole)


def test_samples_and_held_out_losses_are_shown(
    sft: Callable[..., int], arguments: list[object], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    held_out = ["--eval_files", arguments[3], "--eval_strategy", "steps", "--eval_steps", 1, "--max_steps", 2]
    assert sft(*arguments, *held_out, "--sample_prompts", "a red cat", "--output_dir", tmp_path) == 0
    printed = capfd.readouterr()
    check_ending(printed.err, tmp_path, "held-out text loss", "held-out image loss")
    assert f"next: unified draw 'a red cat' --model {tmp_path} --out picture.png" in printed.err
    assert "step 2, held out: loss " in printed.out
    assert tracked_images(tmp_path / "runs") == {"samples": [1, 2]}


@pytest.mark.parametrize("installed", [False, True])
def test_a_tracker_that_is_absent_or_cannot_be_reached_is_one_line(
    refuse: Callable[..., None], installed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """W&B is no requirement: a stand-in has its errors."""
    if not installed:
        monkeypatch.setattr(trackers, "find_spec", lambda name: None)
        refuse("--report_to", "wandb", words=["report_to wandb: wandb is not installed", "pip install wandb"])
        return
    refuse("--report_to", "wanbd", words=["report_to wanbd: no tracker; choose from tensorboard, wandb"])
    error = type("CommError", (Exception,), {"__module__": "wandb.errors"})
    with pytest.raises(ValueError, match="report_to wandb: no API key; `wandb login`, WANDB_MODE=offline"):
        with trackers.Reached(["wandb"]):
            raise error("no API\nkey")
    with pytest.raises(KeyError):
        with trackers.Reached(["wandb"]):
            raise KeyError("of something else")


def test_a_run_that_resumes_where_nothing_is_starts(tmp_path: Path) -> None:
    args = UnifiedTrainingArguments(output_dir=str(tmp_path / "none"), resume=True, use_cpu=True)
    assert newest_checkpoint(args, nn.Linear(1, 1)) is None
    assert not (tmp_path / "none").exists()  # other processes may ask before the first has made it


def test_a_run_out_of_time_saves_and_goes_on(
    sft: Callable[..., int], arguments: list[object], whole: Path, tmp_path: Path
) -> None:
    assert sft(*arguments, "--output_dir", tmp_path, "--max_minutes", 1e-9) == 0
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-1"]
    assert sft(*arguments, "--output_dir", tmp_path, "--resume") == 0
    assert_same_run(tmp_path, whole)


def test_a_run_that_goes_on_keeps_the_precision_of_its_checkpoint(
    sft: Callable[..., int],
    arguments: list[object],
    whole: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(whole / "checkpoint-2", tmp_path / "checkpoint-2")
    (tmp_path / "checkpoint-2/hardware.json").unlink()  # a kill may come between: the state has it too
    monkeypatch.delenv("UNIFIED_PRECISION")
    assert sft(*arguments, "--output_dir", tmp_path, "--resume", "--precision", "bf16") == 2
    assert "checkpoint-2 was trained in float32, and bf16 is asked for" in capfd.readouterr().err
    units = Machine("amx", bf16_products=True, float32_gflops=140, bf16_gflops=385)
    monkeypatch.setattr(setup, "measured", lambda *_: units)
    assert sft(*arguments, "--output_dir", tmp_path, "--resume") == 0
    assert "float32 (as checkpoint-2 was trained)" in capfd.readouterr().err
    assert_same_run(tmp_path, whole)


def test_out_of_memory_is_one_line_with_parts_and_settings(
    sft: Callable[..., int],
    arguments: list[object],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def forward(self: UnifiedForCausalLM, *args: object, **kwargs: object) -> None:
        torch.empty(2**50)

    monkeypatch.setattr(UnifiedForCausalLM, "forward", forward)
    assert sft(*arguments, "--output_dir", tmp_path) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith("error: out of memory: 4194304.0 GiB more were asked for; there are parameters "), line
    settings = "per_device_train_batch_size 2 with gradient_accumulation_steps 2, activation_checkpointing True, "
    settings += "max_length below 128, tuning lora, ZeRO over several GPUs (accelerate's DeepSpeed)"
    assert line.endswith(f"; try {settings}"), line


def test_a_damaged_checkpoint_of_the_run_is_named(
    sft: Callable[..., int], arguments: list[object], whole: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole / "checkpoint-2", tmp_path / "checkpoint-2")
    cut_off(tmp_path / "checkpoint-2/model.safetensors")
    assert sft(*arguments, "--output_dir", tmp_path, "--resume") == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert f"error: {tmp_path}/checkpoint-2/model.safetensors is truncated or damaged" in line


def cut_off(path: Path) -> None:
    """Leave out the last byte of a file."""
    path.write_bytes(path.read_bytes()[:-1])


@pytest.fixture
def refuse(
    sft: Callable[..., int], arguments: list[object], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> Callable[..., None]:
    """Run the recipe, which must end with status 2 and one line that has all `words`, before the first step."""

    def run(*changes: object, words: list[str]) -> None:
        assert sft(*arguments, "--output_dir", tmp_path / "out", *changes) == 2
        printed = capfd.readouterr().err
        line = printed.splitlines()[-1]
        assert line.startswith("error: ") and "Traceback" not in printed
        assert not [word for word in words if word not in line], line
        assert not (tmp_path / "out").exists()

    return run


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--learnig_rate", "1"], ["learnig_rate", "learning_rate"]),
        (["--config", "/nowhere.yaml"], ["/nowhere.yaml", "does not exist"]),
        (["--model", "/nowhere"], ["/nowhere", "not a folder"]),
        (["--train_files", "/nowhere.parquet"], ["/nowhere.parquet", "no encoded rows"]),
        (["--max_length", "40"], ["row 0", "more than max_length 40", "raise max_length"]),
        (["--max_length", "513"], ["max_length 513", "context of 512", "lower"]),
        (["--scale_loss_weights", "1"], ["scale_loss_weights", "1 values for 2 scales"]),
        (["--last_scale_fraction", "0"], ["last_scale_fraction", "(0, 1]"]),
        (["--tuning", "lora", "--lora_target_modules", "query"], ["query", "match nothing"]),
        (["--tuning", "align", "--lora_rank", "8"], ["lora_rank 8 would have no effect", "set tuning to lora"]),
        (["--lora_dropout", "0.1"], ["lora_dropout 0.1 would have no effect"]),
        (["--code_noise", "1.5"], ["code_noise 1.5", "not in [0, 1)"]),
    ],
)
def test_bad_settings_are_one_line_and_status_2(
    refuse: Callable[..., None], changes: list[str], words: list[str]
) -> None:
    refuse(*changes, words=words)


def test_an_unknown_key_of_a_file_is_refused(refuse: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("tunning: full\n")
    refuse("--config", tmp_path / "bad.yaml", words=["tunning", "bad.yaml", "tuning"])


def test_a_prompt_beyond_the_limit_is_named(refuse: Callable[..., None], toy_checkpoint: Path, tmp_path: Path) -> None:
    row = toy_row("text", 1, [])
    row["messages"][0]["content"][0]["text"] = "cat " * 300
    write_encoded_shard(tmp_path / "long.parquet", [toy_row("text", 0, []), row], "", ())
    refuse("--train_files", tmp_path / "long.parquet", words=["row 1", "more than max_length 128"])


def test_codes_of_another_tokenizer_are_refused(refuse: Callable[..., None], tmp_path: Path) -> None:
    other = write_toy_rows(tmp_path / "other.parquet", "dd", fingerprint="beef")
    refuse("--train_files", other, words=["other.parquet", "tokenizer beef", "encode_images"])


def test_codes_of_another_length_are_refused(
    refuse: Callable[..., None], toy_checkpoint: Path, tmp_path: Path
) -> None:
    fingerprint = UnifiedConfig.from_pretrained(toy_checkpoint).vq_fingerprint
    rows = [toy_row("draw", 0, [1, 2, 3, 4])]
    write_encoded_shard(tmp_path / "short.parquet", rows, fingerprint, (2,))
    refuse("--train_files", tmp_path / "short.parquet", words=["row 0", "4 codes", "make 5", "complete images"])


def test_rows_without_messages_or_with_unencoded_images_are_refused(
    refuse: Callable[..., None], tmp_path: Path
) -> None:
    empty, raw = tmp_path / "empty.jsonl", tmp_path / "raw.jsonl"
    empty.write_text('{"prompt": "a cat"}\n')
    refuse("--train_files", empty, words=["empty.jsonl:1", "no `messages`"])
    raw.write_text('{"messages": [{"role": "user", "content": [{"type": "image"}]}], "images": ["a.png"]}\n')
    refuse("--train_files", raw, words=["raw.jsonl:1", "encode_images"])


def test_a_checkpoint_with_another_tokenizers_weights_is_refused(
    refuse: Callable[..., None], toy_checkpoint: Path, tmp_path: Path
) -> None:
    shutil.copytree(toy_checkpoint, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    (tmp_path / "model/config.json").write_text(json.dumps(config | {"vq_fingerprint": "beef"}))
    refuse("--model", tmp_path / "model", words=["fingerprint", "beef", "unified extend"])
    cut_off(tmp_path / "model/model.safetensors")
    refuse("--model", tmp_path / "model", words=["model/model.safetensors", "truncated or damaged", "copy it again"])
