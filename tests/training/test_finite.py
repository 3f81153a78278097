"""A training that diverges stops, names step and rows, and saves nothing that is broken."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import load_script
from pairs import toy_pairs
from PIL import Image
from torch import Tensor

from unified import UnifiedConfig, UnifiedForCausalLM
from unified.data.chat_dataset import name_rows
from unified.data.preferences import write_pairs
from unified.data.rows import write_encoded_shard
from unified.training.finite import FiniteSteps, FiniteTrainer, not_finite

ROOT = Path(__file__).parents[2]
HUGE = ["--learning_rate", 1e18]
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(
    run_script: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> Run:
    """Run a recipe with its toy configuration and output_dir `out`; its exit status, and the last line on stderr."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")

    def run(recipe: str, config: str, *arguments: object) -> tuple[int, str]:
        given = ["--config", ROOT / f"recipes/configs/{config}.yaml", "--output_dir", tmp_path / "out"]
        status = run_script(f"recipes/{recipe}.py", *given, *arguments)
        said = capfd.readouterr().err
        assert "Traceback" not in said
        return status, said.splitlines()[-1]

    return run


def saved(out: Path) -> set[str]:
    """Names of everything with weights below a folder."""
    return {str(path.relative_to(out)) for path in out.rglob("*.safetensors")}


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_fine_tuning_that_diverges_stops(
    run: Run, tuning: str, toy_checkpoint: Path, toy_rows: Callable[[str], Path], tmp_path: Path
) -> None:
    rows = toy_rows("ddatddat")
    given = ["--model", toy_checkpoint, "--train_files", rows, *HUGE, "--new_parts_learning_rate", 1e18]
    status, line = run("sft", "tiny", *given, "--tuning", tuning, "--max_steps", 12, "--save_strategy", "no")
    assert status == 2 and line.startswith("error: step "), line
    assert "loss" in line and "gradient norm" in line and f"{rows}:" in line and "learning_rate 1e+18" in line
    assert not saved(tmp_path / "out")


def poison(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """A loss that is nan for batches with this code's id in row 0's place."""
    forward = UnifiedForCausalLM.forward

    def poisoned(self: UnifiedForCausalLM, *args: object, **kwargs: object) -> object:
        output = forward(self, *args, **kwargs)
        if (kwargs["input_ids"] == code + self.config.image_token_offset).any():
            output.loss = output.loss * torch.nan
        return output

    monkeypatch.setattr(UnifiedForCausalLM, "forward", poisoned)


@pytest.mark.parametrize("accumulated", [1, 2])
def test_the_row_of_a_bad_loss_is_named_and_the_last_checkpoint_stays(
    run: Run, monkeypatch: pytest.MonkeyPatch, toy_checkpoint: Path, tmp_path: Path, accumulated: int
) -> None:
    fingerprint = UnifiedConfig.from_pretrained(toy_checkpoint).vq_fingerprint
    draw = [{"role": "user", "content": [{"type": "text", "text": "a cat"}]}]
    draw.append({"role": "assistant", "content": [{"type": "image", "text": None}]})
    rows = [{"messages": draw, "codes": [[number + 1] * 5], "metadata": "{}", "source": "x"} for number in range(8)]
    rows[5]["codes"] = [[0] * 5]
    write_encoded_shard(tmp_path / "rows.parquet", rows, fingerprint, (1, 2))
    poison(monkeypatch, 0)
    given = ["--model", toy_checkpoint, "--train_files", tmp_path / "rows.parquet", "--max_steps", 8]
    given += ["--per_device_train_batch_size", 1, "--gradient_accumulation_steps", accumulated, "--save_steps", 1]
    order = ["--train_sampling_strategy", "sequential", "--caption_dropout", 0]
    status, line = run("sft", "tiny", *given, *order, "--save_total_limit", 1)
    step = 5 // accumulated
    last = tmp_path / f"out/checkpoint-{step}"
    assert status == 2 and line.startswith(f"error: step {step + 1}: loss nan"), line
    assert f"its rows are {tmp_path}/rows.parquet:6;" in line and f"the last good checkpoint is {last};" in line
    assert saved(tmp_path / "out") == {f"checkpoint-{step}/model.safetensors"}
    assert json.loads((last / "trainer_state.json").read_text())["global_step"] == step


@pytest.mark.parametrize(("engine", "tuning"), [("ddp_checkpointed", "diverges")])
def test_all_processes_stop_together(engine: str, tuning: str, cell: Callable[[str, str], Path]) -> None:
    out = cell(engine, tuning)
    ends = [json.loads((out / f"ended.{rank}.json").read_text()) for rank in range(2)]
    assert [end["status"] for end in ends] == [2, 2]
    lines = [line for end in ends for line in end["said"] if line.startswith("error: ")]
    assert len(lines) == 2 and len({*lines}) == 1, ends
    assert lines[0].count(".parquet:") == 2  # a row of each
    assert lines[0].startswith("error: step ") and "not finite" not in lines[0].split(";")[0]
    assert not saved(out)


def test_an_evaluation_that_is_not_finite_stops(
    run: Run, monkeypatch: pytest.MonkeyPatch, toy_checkpoint: Path, toy_rows: Callable[[str], Path], tmp_path: Path
) -> None:
    forward = UnifiedForCausalLM.forward

    def poisoned(self: UnifiedForCausalLM, *args: object, **kwargs: object) -> object:
        output = forward(self, *args, **kwargs)
        output.loss = output.loss if self.training else output.loss * torch.inf
        return output

    monkeypatch.setattr(UnifiedForCausalLM, "forward", poisoned)
    rows = toy_rows("ddatddat")
    given = ["--model", toy_checkpoint, "--train_files", rows, "--eval_files", rows, "--eval_strategy", "steps"]
    status, line = run("sft", "tiny", *given, "--eval_steps", 1)
    assert status == 2 and line.startswith("error: step 1: eval_loss is inf in evaluation"), line
    assert not saved(tmp_path / "out")


def test_a_preference_tuning_that_diverges_stops(run: Run, toy_checkpoint: Path, tmp_path: Path) -> None:
    config = UnifiedConfig.from_pretrained(toy_checkpoint)
    write_pairs(tmp_path / "pairs.parquet", toy_pairs("imut"), config.vq_fingerprint, config.patch_nums)
    given = ["--model", toy_checkpoint, "--train_files", tmp_path / "pairs.parquet", *HUGE, "--max_steps", 6]
    status, line = run("dpo", "tiny_dpo", *given, "--save_strategy", "no", "--per_device_train_batch_size", 1)
    assert status == 2 and line.startswith("error: step ") and f"its rows are {tmp_path}/pairs.parquet:" in line, line
    assert not saved(tmp_path / "out")


def write_images(folder: Path) -> Path:
    """A folder of twelve pictures of noise."""
    pixels = torch.randint(0, 256, (12, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    folder.mkdir()
    for number, image in enumerate(pixels):
        Image.fromarray(image.numpy()).save(folder / f"{number:02d}.png")
    return folder


def test_a_tokenizer_that_diverges_stops(run: Run, tmp_path: Path) -> None:
    given = ["--data_dir", write_images(tmp_path / "images"), *HUGE, "--max_steps", 12, "--revive_after_steps", 0]
    status, line = run("train_vq", "tiny_vq", *given, "--save_steps", 1)
    assert status == 2 and line.startswith("error: step ") and f"{tmp_path}/images/" in line, line
    for folder in (tmp_path / "out").glob("checkpoint-*"):
        assert f"the last good checkpoint is {folder}" in line
    assert not (tmp_path / "out/model.safetensors").exists()


def test_a_discriminator_that_is_not_finite_stops(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """After its last step, behind a loss that was finite."""
    kind = load_script("recipes/train_vq.py").TokenizerRun
    step_critic = kind.step_critic

    def spoilt(self: Any, *args: Any) -> None:
        step_critic(self, *args)
        next(self.critic_core.parameters()).data.fill_(torch.nan)

    monkeypatch.setattr(kind, "step_critic", spoilt)
    given = ["--data_dir", write_images(tmp_path / "images"), "--max_steps", 1, "--gan_weight", 0.5]
    status, line = run("train_vq", "tiny_vq", *given, "--gan_start_step", 0, "--gan_base_channels", 8)
    assert status == 2 and line.startswith("error: step 1: weights are not finite (1 of "), line
    assert not saved(tmp_path / "out")


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_weights_that_the_last_step_overflows_are_not_saved(
    run: Run, tuning: str, toy_checkpoint: Path, toy_rows: Callable[[str], Path], tmp_path: Path
) -> None:
    given = ["--model", toy_checkpoint, "--train_files", toy_rows("dd"), "--max_steps", 1, "--tuning", tuning]
    status, line = run("sft", "tiny", *given, "--learning_rate", 1e300, "--new_parts_learning_rate", 1e300)
    assert status == 2 and line.startswith("error: step 1: weights are not finite ("), line
    assert not saved(tmp_path / "out")


def test_first_bad_step_of_a_loop_is_found_where_it_waits() -> None:
    from accelerate import Accelerator

    steps, model = FiniteSteps(Accelerator(cpu=True)), torch.nn.Linear(2, 2)
    for step in range(3):
        steps.add(step, torch.tensor(1.0), torch.tensor(2.0))
    steps.check(model, 3, lambda step: [], "")
    steps.add(3, torch.tensor(1.5), torch.tensor(torch.inf))
    steps.add(4, torch.tensor(torch.nan), torch.tensor(torch.nan))
    with pytest.raises(FloatingPointError, match=r"step 4: loss 1.5, gradient norm inf; its rows are row of 3; less"):
        steps.check(model, 5, lambda step: [f"row of {step}"], "less")


def test_weights_that_are_not_finite_are_counted() -> None:
    from accelerate import Accelerator

    model = torch.nn.Linear(2, 2)
    assert not_finite(model, Accelerator(cpu=True)) == ""
    with torch.no_grad():
        model.bias[0] = torch.inf
    assert not_finite(model, Accelerator(cpu=True)) == "1 of 2 tensors"
    model.bias.requires_grad_(False)
    assert not_finite(model, Accelerator(cpu=True)) == ""


class Scaler:
    """fp16's gradient scaler at a scale."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def is_enabled(self) -> bool:
        return True

    def get_scale(self) -> float:
        return self.scale


@pytest.mark.parametrize(("scale", "legal"), [(None, False), (1024.0, True), (1.0, False)])
@pytest.mark.parametrize("norm", [torch.inf, torch.nan, -1.0])
def test_infinite_gradients_are_legal_where_fp16_scales_less(scale: float | None, legal: bool, norm: float) -> None:
    class Fake:
        scaler = None if scale is None else Scaler(scale)
        device = torch.device("cpu")
        mixed_precision = "no"

    trainer = FiniteTrainer.__new__(FiniteTrainer)
    trainer.accelerator, trainer.is_deepspeed_enabled = Fake(), False
    assert bool(trainer.is_legal(torch.tensor(norm))) == legal and bool(trainer.is_legal(1.0))


def test_rows_are_named_by_file_and_line(toy_rows: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"x": 1}\n\n{"x": 2}\n')
    first = str(toy_rows("dt"))
    names = name_rows([first, str(tmp_path / "a.jsonl"), first], [0, 1, 2, 3, 4])
    assert names == [f"{first}:1", f"{first}:2", f"{tmp_path}/a.jsonl:1", f"{tmp_path}/a.jsonl:3", f"{first}:1"]


def test_a_calibration_on_states_that_are_not_finite_is_refused() -> None:
    from unified.training.image_start import ModalityDecisions, calibrate

    states: Tensor = torch.full((4, 3), torch.nan, dtype=torch.float64)
    decisions = ModalityDecisions(states, torch.zeros(4, 5, dtype=torch.float64), torch.zeros(4).long(), torch.ones(4))
    with pytest.raises(FloatingPointError, match="states are not finite"):
        calibrate(decisions, 0.01)
