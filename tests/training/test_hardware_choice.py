"""What a training runs on: whose word counts, what a resumed run keeps, and where it is written."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import TrainingArguments

from unified.hardware import setup
from unified.hardware.arguments import HardwareArguments
from unified.hardware.decisions import Wishes
from unified.hardware.machine import Gpu, Machine
from unified.training.hardware_choice import (
    HardwareRecord,
    as_before,
    choose_for_accelerator,
    choose_for_trainer,
    launched,
    read_record,
    write_record,
)

AMX = Machine("amx", cores=2, bf16_products=True, float32_gflops=140, bf16_gflops=385)
AVX2 = Machine("avx2", cores=2)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[Machine], None]:
    """Let the commands of this test run on another machine."""
    for name in ("UNIFIED_DEVICE", "UNIFIED_PRECISION", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(setup, "_CHOSEN", [])
    monkeypatch.setattr(setup, "measured", lambda found, *_: found)

    def be(one: Machine) -> None:
        monkeypatch.setattr(setup, "ask", lambda processes: replace(one, processes=processes))

    return be


def arguments(tmp_path: Path, **settings: object) -> TrainingArguments:
    return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **settings)


@pytest.mark.parametrize(("kind", "mixed"), [(AMX, "bf16"), (AVX2, "no")])
def test_the_machine_chooses_the_precision(kind: Machine, mixed: str, machine: Callable, tmp_path: Path) -> None:
    machine(kind)
    choice, args = choose_for_trainer(HardwareArguments(), arguments(tmp_path))
    assert (args.mixed_precision, args.bf16, args.fp16) == (mixed, mixed == "bf16", False)
    assert choice.machine == kind.cpu


def test_flags_settings_and_launcher_win_and_may_not_differ(
    machine: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(AMX)
    _, args = choose_for_trainer(HardwareArguments(precision="float32"), arguments(tmp_path))
    assert args.mixed_precision == "no" and not args.bf16
    machine(AVX2)
    choice, args = choose_for_trainer(HardwareArguments(), arguments(tmp_path, bf16=True))
    assert args.mixed_precision == "bf16" and dict(choice.reasons)["precision"] == "bf16 true"
    with pytest.raises(ValueError, match=r"precision float32 \(--precision\) and bf16 \(bf16 true\) are both asked"):
        choose_for_trainer(HardwareArguments(precision="float32"), arguments(tmp_path, bf16=True))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert launched(Wishes(), "cpu", {"ACCELERATE_USE_CPU": "true"}).device == "cpu"
    assert launched(Wishes(), "cuda", {"WORLD_SIZE": "8"}).device == "cuda"
    assert launched(Wishes(), "cuda", {}).device is None  # one process: the machine decides
    with pytest.raises(ValueError, match=r"device cuda \(.*\) and cpu \(accelerate launch\) are both asked for"):
        launched(Wishes(device="cuda"), "cpu", {"ACCELERATE_USE_CPU": "true"})


def test_deepspeed_keeps_the_precision_of_its_launch_file(machine: Callable, tmp_path: Path) -> None:
    machine(AMX)
    args = arguments(tmp_path)
    args.deepspeed_plugin, args.use_cpu = object(), False
    choice, args = choose_for_trainer(HardwareArguments(), args, compile_layers=None)
    assert args.mixed_precision == "no" and dict(choice.reasons)["precision"] == "the launch file"
    assert not choice.compile_layers and dict(choice.reasons)["compile_layers"] == "DeepSpeed or FSDP"


def test_a_slow_gpu_leaves_the_training_to_the_cpu(machine: Callable, tmp_path: Path) -> None:
    gpu = Gpu("old", memory_gib=4, float32_gflops=10)
    machine(replace(AVX2, float32_gflops=88, gpus=(gpu,)))
    choice, args = choose_for_trainer(HardwareArguments(), arguments(tmp_path))
    assert choice.device == args.device.type == "cpu" and args.use_cpu


def test_a_resumed_run_keeps_its_precision_whatever_the_machine_would_choose(
    machine: Callable, tmp_path: Path
) -> None:
    machine(AVX2)
    choose_for_trainer(HardwareArguments(), arguments(tmp_path))
    checkpoint = tmp_path / "checkpoint-2"
    checkpoint.mkdir()
    write_record(checkpoint)
    machine(AMX)
    choice, args = choose_for_trainer(HardwareArguments(), arguments(tmp_path), checkpoint)
    assert args.mixed_precision == "no"
    assert dict(choice.reasons)["precision"] == "as checkpoint-2 was trained"
    with pytest.raises(
        ValueError, match=r"checkpoint-2 was trained in float32, and bf16 is asked for \(--precision\)"
    ):
        choose_for_trainer(HardwareArguments(precision="bf16"), arguments(tmp_path), checkpoint)
    assert choose_for_trainer(HardwareArguments(precision="float32"), arguments(tmp_path), checkpoint)


def test_a_checkpoint_from_before_there_were_records_leaves_the_choice_open(tmp_path: Path) -> None:
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 2, "stateful_callbacks": {}}))
    assert read_record(tmp_path) is None and as_before(Wishes(), tmp_path) == Wishes()
    assert as_before(Wishes(), None) == Wishes()


def test_other_trainings_get_an_accelerator(machine: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(AVX2)
    assert choose_for_accelerator(HardwareArguments(), None).mixed_precision == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match="precision float32 .* and bf16 .accelerate launch --mixed_precision bf16"):
        choose_for_accelerator(HardwareArguments(precision="float32"), None)


def test_loading_a_model_changes_no_dtype(machine: Callable, toy_checkpoint: Path, tmp_path: Path) -> None:
    from unified.checkpoints.loading import load

    machine(AMX)
    choose_for_trainer(HardwareArguments(), arguments(tmp_path))
    model, _ = load(toy_checkpoint, "cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("mixed", ["fp16", "bf16"])
def test_the_launchers_precision_counts_or_is_refused(
    mixed: str, machine: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(replace(AVX2, float32_gflops=1, gpus=(Gpu("T4", memory_gib=16, float32_gflops=4000),)))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", mixed)
    wished = HardwareArguments(device="cuda")
    choice, args = choose_for_trainer(wished, TrainingArguments(output_dir=str(tmp_path), report_to="none"))
    assert (choice.precision, args.mixed_precision) == (mixed, mixed) and (args.bf16, args.fp16) == (
        mixed == "bf16", mixed == "fp16"
    )  # fmt: skip
    assert dict(choice.reasons)["precision"] == f"accelerate launch --mixed_precision {mixed}"
    with pytest.raises(ValueError, match=f"precision float32 .*and {mixed} .accelerate launch .* keep one"):
        choose_for_trainer(replace(wished, precision="float32"), arguments(tmp_path))
    if mixed == "fp16":
        with pytest.raises(ValueError, match=r"precision bf16 \(bf16 true\) and fp16 .* keep one"):
            choose_for_trainer(wished, arguments(tmp_path, bf16=True))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")  # also what a launcher says that was told nothing
    assert choose_for_trainer(HardwareArguments(device="cpu"), arguments(tmp_path))[0].precision == "float32"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(ValueError, match="mixed_precision fp8 is not supported; give bf16, fp16 or no"):
        choose_for_accelerator(HardwareArguments(), None)


def test_a_run_that_python_began_leaves_the_choice_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "_CHOSEN", [])
    state = {"stateful_callbacks": {"HardwareRecord": HardwareRecord().state()}}
    (tmp_path / "trainer_state.json").write_text(json.dumps(state))
    for wishes in (Wishes(), Wishes(precision="float32", compile_layers=False)):
        assert as_before(wishes, tmp_path) == wishes
