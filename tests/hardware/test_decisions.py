"""What is chosen on made-up machines: no clock, no probe."""

import json

import pytest

from unified.hardware.decisions import Wishes, decide, with_reason
from unified.hardware.machine import Gpu, Machine

AMX = Machine("amx", cores=2, bf16_products=True, float32_gflops=140, bf16_gflops=385, compiles=("cpu",))
AVX512 = Machine("avx512", cores=2, bf16_products=True, float32_gflops=352, bf16_gflops=63, compiles=("cpu",))
AVX2 = Machine("avx2", cores=2, wait_policy="passive", compiles=("cpu",))
H200 = Gpu("H200", memory_gib=139, capability=(9, 0), bf16=True, float32_gflops=40_000)
V100 = Gpu("V100", memory_gib=16, capability=(7, 0), float32_gflops=14_000)
OLD = Gpu("old", memory_gib=4, capability=(5, 0), float32_gflops=60)


def machine(**changes: object) -> Machine:
    return Machine(**({"cpu": "toy", "cores": 2, "float32_gflops": 88.0, "wait_policy": "passive"} | changes))


@pytest.mark.parametrize(("kind", "precision"), [(AMX, "bf16"), (AVX512, "float32"), (AVX2, "float32")])
def test_training_uses_bf16_where_its_products_are_faster(kind: Machine, precision: str) -> None:
    choice = decide(kind, training=True)
    assert (choice.device, choice.precision, choice.attention) == ("cpu", precision, "grouped")
    assert "GFLOP/s" in choice.line() or "no bf16 units" in choice.line()


@pytest.mark.parametrize("kind", [AMX, AVX512, AVX2, machine(gpus=(H200,))])
def test_inference_keeps_the_stored_dtype_and_the_backbones_attention(kind: Machine) -> None:
    choice = decide(kind)
    assert (choice.precision, choice.attention, choice.compile_layers) == ("float32", None, False)
    assert "as the weights are stored" in choice.line()


def test_units_that_were_not_measured_are_not_used() -> None:
    assert decide(machine(bf16_products=True), training=True).precision == "float32"


def test_a_small_gain_does_not_pay_for_the_casts() -> None:
    assert decide(machine(bf16_products=True, bf16_gflops=100), training=True).precision == "float32"


@pytest.mark.parametrize(
    ("gpu", "device", "precision"),
    [(H200, "cuda", "bf16"), (V100, "cuda", "float32"), (OLD, "cpu", "float32")],
)
def test_a_gpu_is_used_where_it_is_faster_than_the_cpu(gpu: Gpu, device: str, precision: str) -> None:
    choice = decide(machine(gpus=(gpu,)), training=True)
    assert (choice.device, choice.precision) == (device, precision)
    assert choice.machine == (gpu.name if device == "cuda" else "toy")


def test_a_gpu_without_memory_is_left_alone() -> None:
    choice = decide(machine(gpus=(Gpu("tiny", memory_gib=1, bf16=True, capability=(8, 0), float32_gflops=900),)))
    assert choice.device == "cpu" and "tiny has 1.0 GiB, too little" in choice.line()


def test_a_gpu_that_was_not_measured_is_taken_at_its_word() -> None:
    assert decide(machine(gpus=(Gpu("new", memory_gib=8),), float32_gflops=None)).device == "cuda"


def test_apples_gpu_runs_in_float32() -> None:
    choice = decide(machine(system="Darwin", gpus=(Gpu("M3", "mps", 12, float32_gflops=3000),)), training=True)
    assert (choice.device, choice.precision, choice.attention) == ("mps", "float32", None)


@pytest.mark.parametrize(
    ("changes", "threads", "why"),
    [
        ({}, 2, "2 cores"),
        ({"cores": 1}, 1, "1 core"),
        ({"cores": 16, "quota": 3.5}, 3, "a quota of 3.5"),
        ({"cores": 16, "quota": 0.5}, 1, "a quota of 0.5"),
        ({"cores": 2, "quota": 8.0}, 2, "2 cores"),
        ({"cores": 8, "processes": 2}, 4, "8 cores for 2 processes"),
        ({"cores": 2, "processes": 4}, 1, "2 cores for 4 processes"),
        ({"cores": 8, "omp_threads": 2}, 2, "OMP_NUM_THREADS"),
        ({"cores": 2, "omp_threads": 16}, 2, "2 cores"),
        ({"others": 2.0}, 2, "2 cores"),  # sleeping threads lose their fair share only
        ({"others": 2.0, "wait_policy": "brief"}, 2, "2 cores"),
        ({"others": 1.0, "wait_policy": None}, 1, "1 of 2 cores are busy, and waiting threads spin"),
        ({"others": 2.0, "wait_policy": "active"}, 1, "2 of 2 cores are busy"),
        ({"cores": 16, "others": 3.0, "wait_policy": "active"}, 13, "3 of 16 cores are busy"),
        ({"cores": 16, "others": 3.0, "wait_policy": "active", "quota": 4}, 4, "a quota of 4"),
    ],
)
def test_threads_follow_cores_quota_processes_and_others(changes: dict, threads: int, why: str) -> None:
    choice = decide(machine(**changes))
    assert choice.threads == threads and why in choice.line()


def test_long_trainings_compile_where_torch_can() -> None:
    assert decide(AVX2, training=True, minutes=60).compile_layers
    assert not decide(AVX2, training=True, minutes=10).compile_layers
    assert not decide(machine(), training=True, minutes=60).compile_layers
    assert not decide(AVX2, minutes=60).compile_layers


def test_wishes_win_and_say_who_wished() -> None:
    wishes = with_reason(Wishes(), "--precision", precision="float32")
    wishes = with_reason(wishes, "the checkpoint", compile_layers=True, threads=None, device="cpu")
    choice = decide(Machine("amx", bf16_products=True, float32_gflops=1, bf16_gflops=9, gpus=(H200,)), wishes, True)
    assert (choice.precision, choice.device, choice.compile_layers, choice.threads) == ("float32", "cpu", True, 1)
    why = dict(choice.reasons)
    assert (why["precision"], why["device"], why["threads"]) == ("--precision", "the checkpoint", "1 core")


def test_what_the_machine_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="device cuda is not on this machine; give one of cpu, or leave it out"):
        decide(AVX2, Wishes(device="cuda"))
    with pytest.raises(ValueError, match="precision fp16 needs a CUDA GPU; give float32 or bf16"):
        decide(AVX2, Wishes(precision="fp16"))
    assert decide(machine(gpus=(V100,)), Wishes(precision="fp16"), training=True).precision == "fp16"


def test_the_record_is_json_with_every_reason() -> None:
    choice = decide(AMX, training=True)
    record = json.loads(json.dumps(choice.record()))
    assert record["precision"] == "bf16" and record["reasons"]["precision"] == "bf16 385 against 140 GFLOP/s"
    assert choice.line().startswith("hardware: amx: cpu (no GPU here), bf16 (") and "\n" not in choice.line()


@pytest.mark.parametrize(
    ("told", "threads", "why"),
    [
        ({"omp_default": True}, 8, "8 cores, as OMP_NUM_THREADS=1 is the launcher's"),
        ({"omp_default": True, "processes": 4}, 2, "8 cores for 4 processes, as OMP_NUM_THREADS=1 is"),
        ({"omp_default": True, "quota": 3.0}, 3, "a quota of 3, as OMP_NUM_THREADS=1 is the launcher's"),
        ({}, 1, "OMP_NUM_THREADS"),
    ],
)
def test_a_launchers_default_of_one_thread_is_no_wish(told: dict[str, object], threads: int, why: str) -> None:
    choice = decide(machine(cores=8, omp_threads=1, **told))
    assert choice.threads == threads and why in choice.line()
    assert decide(machine(cores=8, omp_threads=1, **told), Wishes(threads=5)).threads == 5
