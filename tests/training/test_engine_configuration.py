"""What of DeepSpeed's configuration counts in a run's record, and what would overrule the run's own settings."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate.utils import DistributedType

from unified.training.arguments import UnifiedTrainingArguments
from unified.training.engines import check_deepspeed, engine_of, recorded
from unified.training.run_record import RunRecord, finished_after
from unified.training.tokenizer_arguments import TokenizerArguments

ADAM = {"type": "AdamW", "params": {"lr": "auto", "weight_decay": 0.1, "torch_adam": True}}


def launched(**config: Any) -> Any:
    """What is read of an Accelerator that `accelerate launch` gives a DeepSpeed configuration."""
    plugin = SimpleNamespace(zero_stage=2, deepspeed_config={"zero_optimization": {"stage": 2}, **config})
    return SimpleNamespace(distributed_type=DistributedType.DEEPSPEED, state=SimpleNamespace(deepspeed_plugin=plugin))


def arguments(tmp_path: Path, **settings: Any) -> UnifiedTrainingArguments:
    return UnifiedTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **settings)


@pytest.mark.parametrize(
    ("use_cpu", "variable", "asked"),
    [(True, "false", "use_cpu true"), (False, "true", "ACCELERATE_USE_CPU in"), (False, "1", "ACCELERATE_USE_CPU in")],
)
def test_cpus_that_would_turn_deepspeed_off_are_refused(
    use_cpu: bool, variable: str, asked: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", variable)
    args: Any = SimpleNamespace(deepspeed_plugin=object(), use_cpu=use_cpu, fsdp_plugin_args=None)
    with pytest.raises(ValueError, match=f"{asked}.* turns off the DeepSpeed .* take it away"):
        engine_of(args)
    args.deepspeed_plugin = None
    assert engine_of(args) is None
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    args = SimpleNamespace(deepspeed_plugin=object(), use_cpu=False, fsdp_plugin_args=None)
    assert engine_of(args) == "DeepSpeed"


AUTO = dict.fromkeys(["warmup_min_lr", "warmup_max_lr", "warmup_num_steps", "total_num_steps"], "auto")


@pytest.mark.parametrize(
    ("kind", "params", "text"),
    [
        ("WarmupLR", AUTO, "WarmupLR, which is lr_scheduler_type constant_with_warmup, and the run .* linear"),
        ("OneCycle", {}, "a scheduler, OneCycle and the run lr_scheduler_type linear; remove it, and set lr_sched"),
        ("WarmupDecayLR", AUTO | {"warmup_num_steps": 7}, "warmup_num_steps 7, where only auto counts; remove it"),
        ("WarmupDecayLR", AUTO | {"warmup_max_lr": 2e-3}, "warmup_max_lr 0.002, where only auto counts"),
        ("WarmupDecayLR", AUTO | {"warmup_type": "log"}, "warmup_type log, where only auto counts"),
    ],
)
def test_a_scheduler_that_would_overrule_the_runs_own_is_refused(
    kind: str, params: dict[str, Any], text: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=text):
        check_deepspeed(launched(scheduler={"type": kind, "params": params}), arguments(tmp_path))


@pytest.mark.parametrize(
    ("kind", "own"), [("WarmupDecayLR", "linear"), ("WarmupLR", "constant_with_warmup"), ("WarmupCosineLR", "cosine")]
)
def test_a_scheduler_that_says_auto_gives_way_to_the_runs_own(kind: str, own: str, tmp_path: Path) -> None:
    """HF fills in the rates before; a record is that of a run without it."""
    args = arguments(tmp_path, lr_scheduler_type=own)
    for params in (AUTO, AUTO | {"warmup_min_lr": 0, "warmup_max_lr": args.learning_rate}, {"warmup_type": "linear"}):
        configuration = launched(scheduler={"type": kind, "params": params})
        check_deepspeed(configuration, args)
        assert recorded(configuration) == recorded(launched())


@pytest.mark.parametrize(
    ("settings", "text"), [({"optim": "sgd"}, "optim sgd"), ({"optim_args": "a=1"}, "optim_args a=1")]
)
def test_two_optimizers_are_refused(settings: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"has an optimizer, AdamW, and the run {text}; keep one"):
        check_deepspeed(launched(optimizer=ADAM), arguments(tmp_path, **settings))
    check_deepspeed(launched(optimizer=ADAM), arguments(tmp_path))
    check_deepspeed(launched(), arguments(tmp_path, **settings))
    check_deepspeed(SimpleNamespace(distributed_type=DistributedType.NO), arguments(tmp_path, **settings))


@dataclass
class Settings:
    learning_rate: float = 1e-3


@pytest.mark.parametrize(
    ("config", "same"),
    [
        ({"optimizer": ADAM}, True),
        ({"optimizer": ADAM, "steps_per_print": 7, "zero_optimization": {"stage": 2, "overlap_comm": False}}, True),
        ({"optimizer": ADAM | {"params": {**ADAM["params"], "lr": 1e-3}}}, True),  # HF holds it against the run's own
        ({}, False),
        ({"optimizer": {"type": "Lamb", "params": {}}}, False),
        ({"optimizer": ADAM | {"params": {"bias_correction": False}}}, False),
        ({"optimizer": ADAM, "progressive_layer_drop": {"enabled": True}}, False),
    ],
)
def test_a_run_goes_on_with_the_optimizer_of_its_configuration(
    config: dict[str, Any], same: bool, tmp_path: Path
) -> None:
    before = RunRecord.of([Settings()], "rows", "base", recorded(launched(optimizer=ADAM)))
    now = RunRecord.of([Settings()], "rows", "base", recorded(launched(**config)))
    if same:
        assert now.go_on(before, [], tmp_path / "checkpoint-2") == []
        return
    with pytest.raises(ValueError, match="checkpoint-2 was trained with deepspeed .*; give it as it was or use"):
        now.go_on(before, [], tmp_path / "checkpoint-2")


def test_a_record_from_before_configurations_were_compared_goes_on(tmp_path: Path) -> None:
    before = RunRecord.of([Settings()], "rows", "base", {"engine": "ZeRO-2"})
    now = RunRecord.of([Settings()], "rows", "base", recorded(launched(optimizer=ADAM)))
    assert now.go_on(before, [], tmp_path / "checkpoint-2") == []


def test_a_run_that_an_earlier_version_has_finished_has_finished(tmp_path: Path) -> None:
    before = RunRecord.of([Settings()], "rows", "base", {"engine": "none or DDP"})
    now = RunRecord.of([Settings()], "rows", "base", recorded(SimpleNamespace(distributed_type=DistributedType.NO)))
    assert now.made_of.keys() > before.made_of.keys()
    for finished, found in ((None, None), (4, 4)):
        before.write(tmp_path, finished)
        assert finished_after(tmp_path, now) == found
    other = RunRecord.of([Settings(learning_rate=1.0)], "rows", "base", {})
    assert finished_after(tmp_path, other) is None and finished_after(tmp_path / "no", now) is None


def test_a_tokenizer_of_the_earlier_decoder_goes_on_with_it_alone(tmp_path: Path) -> None:
    now = RunRecord.of([TokenizerArguments(image_size=64)], "rows", "base", recorded(launched(optimizer=ADAM)))
    kept = RunRecord(
        {name: value for name, value in now.made_of.items() if name not in ("upsampling", "fit")}, now.length
    )
    with pytest.raises(ValueError, match="was trained with upsampling 'shuffle', and this run has 'bilinear'"):
        now.go_on(kept, [], tmp_path / "checkpoint-0000001")
    same = TokenizerArguments(image_size=64, upsampling="shuffle")
    assert (
        RunRecord.of([same], "rows", "base", recorded(launched(optimizer=ADAM))).go_on(kept, [], tmp_path / "c-1")
        == []
    )
