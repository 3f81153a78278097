"""Flags, environment variables, the early call, and the one call of every command."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unified.arguments.parser import parse
from unified.hardware import device, limits, probe, setup, waiting
from unified.hardware.allocator import keep_freed_memory
from unified.hardware.arguments import HardwareArguments
from unified.hardware.decisions import Wishes, decide
from unified.hardware.device import best_device
from unified.hardware.machine import Gpu, Machine
from unified.hardware.setup import products, record, set_up
from unified.hardware.waiting import current_policy, set_wait_policy, wished_policy

ROOT = Path(__file__).parents[2]
VARIABLES = (
    "UNIFIED_DEVICE",
    "UNIFIED_PRECISION",
    "UNIFIED_THREADS",
    "UNIFIED_WAIT_POLICY",
    "OMP_WAIT_POLICY",
    "GOMP_SPINCOUNT",
)


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def python(code: str, **variables: str) -> str:
    """What a new process prints."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment | variables | {"PYTHONPATH": str(ROOT)}, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_import_sets_nothing_and_loads_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'PIL'} & set(sys.modules)"
    code = f"import os, sys; before = dict(os.environ); import unified; print(before == dict(os.environ), {heavy})"
    assert python(code) == "True set()"


def test_help_and_the_early_call_load_no_torch() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'PIL', 'yaml'} & set(sys.modules)"
    code = f"""
import os, sys
sys.argv = ["unified", "--help"]
from unified.cli.main import main
try:
    main()
except SystemExit:
    pass
print(os.environ["OMP_WAIT_POLICY"], {heavy})"""
    assert python(code).splitlines()[-1] == "PASSIVE set()"


@pytest.mark.parametrize(
    ("argv", "variables", "policy"),
    [
        ([], {}, "PASSIVE"),
        ([], {"OMP_WAIT_POLICY": "active"}, "active"),  # the user's word for all programs stands
        ([], {"OMP_WAIT_POLICY": "active", "UNIFIED_WAIT_POLICY": "passive"}, "PASSIVE"),
        ([], {"UNIFIED_WAIT_POLICY": "ACTIVE"}, "ACTIVE"),
        ([], {"UNIFIED_WAIT_POLICY": "system"}, None),
        (["--wait_policy", "active"], {"UNIFIED_WAIT_POLICY": "passive"}, "ACTIVE"),
        (["--wait-policy=active"], {}, "ACTIVE"),
        (["x", "--wait_policy"], {}, "PASSIVE"),
    ],
)
def test_threads_sleep_unless_somebody_says_otherwise(
    argv: list[str], variables: dict[str, str], policy: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {**variables})
    set_wait_policy(argv)
    assert os.environ.get("OMP_WAIT_POLICY") == policy
    assert ("GOMP_SPINCOUNT" in os.environ) <= (current_policy() == "brief")
    assert wished_policy(["--wait_policy", "x"]) == "x"


@pytest.mark.parametrize(("others", "policy"), [(0.0, "brief"), (1.0, "passive"), (7.0, "passive")])
def test_threads_spin_briefly_where_nothing_else_runs(
    others: float, policy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(waiting, "other_tasks", lambda: others)
    set_wait_policy([])
    assert current_policy() == policy
    for asked in ("brief", "passive", "active"):
        set_wait_policy(["--wait_policy", asked])
        assert current_policy() == asked  # the last word stands


def test_flags_win_over_variables_and_name_themselves() -> None:
    (arguments,) = parse((HardwareArguments,), ["--precision", "bf16", "--threads", "3"])
    wishes = arguments.wishes({"UNIFIED_PRECISION": "float32", "UNIFIED_DEVICE": "cpu", "UNIFIED_THREADS": ""})
    assert (wishes.device, wishes.precision, wishes.threads) == ("cpu", "bf16", 3)
    assert dict(wishes.why) == {"device": "UNIFIED_DEVICE", "precision": "--precision", "threads": "--threads"}
    assert HardwareArguments().wishes({}) == Wishes()


@pytest.mark.parametrize(
    ("arguments", "environment", "said"),
    [
        ({"threads": 0}, {}, "--threads 0: give a number of threads, 1 or more"),
        ({}, {"UNIFIED_THREADS": "many"}, "UNIFIED_THREADS many: give a number"),
        ({}, {"UNIFIED_PRECISION": "bfloat16"}, "UNIFIED_PRECISION bfloat16: give one of float32, bf16, fp16"),
        ({}, {"UNIFIED_DEVICE": "gpu"}, "UNIFIED_DEVICE gpu: give one of cpu, cuda, mps"),
        (
            {},
            {"UNIFIED_WAIT_POLICY": "sleep"},
            "UNIFIED_WAIT_POLICY=sleep: give one of passive, brief, active, system",
        ),
    ],
)
def test_unknown_words_are_refused(arguments: dict, environment: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        HardwareArguments(**arguments).wishes(environment)


def test_a_command_says_sets_and_records_its_choice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", threads.append)
    monkeypatch.setattr(setup, "ask", lambda processes: Machine("toy", cores=6, processes=processes))
    monkeypatch.setattr(setup, "_CHOSEN", [])
    assert record() == {
        "device": None, "precision": None, "threads": torch.get_num_threads(), "wait_policy": None
    }  # fmt: skip
    choice = set_up(HardwareArguments(threads=5))
    assert threads == [5] and choice.machine == "toy"
    assert capsys.readouterr().err == f"{choice.line()}\n"
    assert record() == choice.record()


def test_products_are_measured_only_where_the_answer_depends_on_them(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(probe, "speed", lambda precision, device="cpu": asked.append(precision) or 1.0)
    none, units = Machine("avx2"), Machine("amx", bf16_products=True)
    assert probe.measured(none, training=True) == none and probe.measured(units, training=False) == units
    assert asked == []  # a large bf16 product of the first would hang for minutes
    assert probe.measured(units, training=True).bf16_gflops == 1.0
    assert asked == ["float32", "bf16"]


def test_this_machine_can_be_asked_and_measured() -> None:
    machine = probe.ask()
    assert machine.cpu and machine.cores >= 1 and machine.memory_gib > 0
    assert probe.speed("float32", seconds=0.01) > 0
    assert decide(machine).device in ("cpu", "cuda", "mps")


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("float32", torch.float32)])
def test_products_run_in_the_chosen_precision_on_the_chosen_device(
    precision: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "_CHOSEN", [])
    monkeypatch.setattr(device, "_DEFAULT", [])
    set_up(HardwareArguments(device="cpu", precision=precision, threads=1))
    assert best_device() == "cpu"
    with products():
        assert torch.nn.functional.linear(torch.zeros(1, 2), torch.zeros(3, 2)).dtype == dtype


def test_without_a_choice_nothing_is_cast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup, "_CHOSEN", [])
    with products():
        assert not torch.is_autocast_enabled("cpu")


def test_a_torch_without_onednn_is_not_asked_for_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.delattr(torch.ops, "mkldnn", raising=False)  # as in builds for Macs
    assert probe.bf16_products() is False
    assert not probe.ask().bf16_products


@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_other_systems_can_be_asked(
    system: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    for name in ("sched_getaffinity", *(["getloadavg"] if system == "win32" else [])):
        monkeypatch.delattr(os, name)
    monkeypatch.setattr(limits, "ROOT", tmp_path)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(setup, "_CHOSEN", [])
    assert limits.usable_cores() == os.cpu_count()
    assert limits.cpu_quota(tmp_path) is None and limits.other_tasks(tmp_path) >= 0
    assert not keep_freed_memory()
    set_up(HardwareArguments(device="cpu", threads=1))
    assert capsys.readouterr().err.startswith("hardware: ")


@pytest.mark.parametrize(
    ("text", "flags", "policy"),
    [
        ("wait_policy: active", [], "active"),
        ("wait_policy: active", ["--wait-policy", "brief"], "brief"),
        ("env: {OMP_WAIT_POLICY: ACTIVE}", [], "active"),
        ("env: {UNIFIED_WAIT_POLICY: passive}", [], "passive"),
        ("wait_policy: brief\nenv: {UNIFIED_WAIT_POLICY: passive}", [], "brief"),
        ("wait_policy: {", [], "passive"),  # the parser refuses the file
        ("- wait_policy", [], "passive"),
    ],
)
@pytest.mark.parametrize("joined", [False, True])
def test_a_file_says_how_threads_wait(
    text: str, flags: list[str], policy: str, joined: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {"UNIFIED_WAIT_POLICY": "passive"} if "env" not in text else {})
    path = tmp_path / "run.yaml"
    path.write_text(text)
    set_wait_policy([f"--config={path}"] + flags if joined else ["--config", str(path), *flags])
    assert current_policy() == policy


SMALL, SLOW, FAST = (Gpu(name, memory_gib=gib, capability=(8, 0), bf16=True) for name, gib in
                     (("small", 1), ("slow", 8), ("fast", 80)))  # fmt: skip
CPU_ALONE = [("float32", "cpu"), ("bf16", "cpu")]


@pytest.mark.parametrize(
    ("gpu", "wishes", "line", "measured"),
    [
        (FAST, Wishes(device="cpu"), "cpu (asked for), bf16 (bf16 385 against 140 GFLOP/s)", CPU_ALONE),
        (FAST, Wishes(device="cpu", precision="float32"), "cpu (asked for), float32 (asked for)", []),
        (FAST, Wishes(device="cuda"), "cuda (asked for), bf16 (it has bf16 units)", []),
        (FAST, Wishes(), "cuda (80 GiB), bf16 (it has", [("float32", "cuda"), ("float32", "cpu")]),
        (SLOW, Wishes(), ", it 140), bf16 (bf16 385 ag", [("float32", "cuda"), ("float32", "cpu"), ("bf16", "cpu")]),
        (SMALL, Wishes(), "too little), bf16 (bf16 385 against", CPU_ALONE),
    ],
)
def test_what_is_measured_is_what_the_device_decides_on(
    gpu: Gpu, wishes: Wishes, line: str, measured: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    speeds = {("float32", "cpu"): 140.0, ("bf16", "cpu"): 385.0, ("float32", "cuda"): 10.0 if gpu is SLOW else 5e4}
    asked: dict[tuple[str, str], float] = {}

    def speed(precision: str, device: str = "cpu") -> float:
        return asked.setdefault((precision, device), speeds[precision, device])

    monkeypatch.setattr(probe, "speed", speed)
    monkeypatch.setattr(setup, "ask", lambda processes: Machine("amx", cores=2, bf16_products=True, gpus=(gpu,)))
    assert line in setup.choose(wishes, training=True, minutes=0).line()
    assert list(asked) == measured
