"""Quotas as both versions of cgroup write them, in made-up /proc and /sys."""

from pathlib import Path

import pytest

from unified.hardware.limits import (
    cpu_quota,
    local_processes,
    omp_threads,
    other_tasks,
    running_tasks,
    usable_cores,
)


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, None),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/cpu.max": "50000 100000\n",  # a group above is tighter
                "sys/fs/cgroup/a/b/cpu.max": "200000 100000\n",
            },
            0.5,
        ),
        ({"proc/self/cgroup": "0::/../x\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2.0),
        (
            {
                "proc/self/cgroup": "7:memory:/d\n4:cpu,cpuacct:/docker/1\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            3.0,
        ),
        (  # in a container the group is mounted as the root
            {
                "proc/self/cgroup": "4:cpu:/docker/1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "25000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "50000\n",
            },
            0.5,
        ),
    ],
)
def test_the_tightest_quota_counts(tmp_path: Path, files: dict[str, str], quota: float | None) -> None:
    assert cpu_quota(tree(tmp_path, files)) == quota


def test_tasks_that_run_are_counted_without_this_one(tmp_path: Path) -> None:
    text = "cpu  1 2 3\nctxt 5\nprocs_running 4\nprocs_blocked 0\n"
    assert running_tasks(text) == 4 and running_tasks("ctxt 5\n") == 1
    assert other_tasks(tree(tmp_path, {"proc/stat": text})) == 3


def test_there_is_a_core_to_run_on() -> None:
    assert usable_cores() >= 1


ACCELERATE, TORCHRUN = {"ACCELERATE_MIXED_PRECISION": "no"}, {"TORCHELASTIC_RUN_ID": "none", "LOCAL_WORLD_SIZE": "4"}


@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({}, (None, False)),
        ({"OMP_NUM_THREADS": "1"}, (1, False)),  # its user's
        ({"OMP_NUM_THREADS": "4,2"}, (None, False)),
        ({"OMP_NUM_THREADS": "0"}, (None, False)),
        (ACCELERATE, (None, False)),
        (ACCELERATE | {"OMP_NUM_THREADS": "1"}, (1, True)),
        (ACCELERATE | {"OMP_NUM_THREADS": "3"}, (3, False)),  # of its user, or of a configuration
        (TORCHRUN | {"OMP_NUM_THREADS": "1"}, (1, True)),
    ],
)
def test_a_launchers_own_thread_count_is_told_from_a_users(environment: dict[str, str], threads: tuple) -> None:
    assert omp_threads(environment) == threads


def test_processes_of_every_launcher_are_counted() -> None:
    assert local_processes({}) == local_processes({"LOCAL_WORLD_SIZE": ""}) == 1
    assert local_processes(TORCHRUN) == 4 and local_processes({"OMPI_COMM_WORLD_LOCAL_SIZE": "2"}) == 2
