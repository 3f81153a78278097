"""What the operating system lets this process use: cores, a container's quota, and what others leave of them."""

import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path("/")
CONTROLLERS = ("cpu", "cpu,cpuacct", "cpuacct,cpu")  # names under which version 1 is mounted
LOCAL_SIZES = ("LOCAL_WORLD_SIZE", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_SIZE")
LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # variables that accelerate and torchrun always set
SAMPLES, PAUSE = 5, 0.01  # looks at the number of tasks that run, and seconds between them


def usable_cores() -> int:
    """Cores on which this process may run."""
    if sys.platform == "linux":
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def local_processes(environment: Mapping[str, str] = os.environ) -> int:
    """Processes of this run on this machine, as torch's launcher, accelerate or MPI says; 1 where none does."""
    return next((int(environment[name]) for name in LOCAL_SIZES if environment.get(name, "").isdecimal()), 1)


def omp_threads(environment: Mapping[str, str] = os.environ) -> tuple[int | None, bool]:
    """OMP_NUM_THREADS, None where it is no number, and whether it is a launcher's own default.

    `accelerate launch` and torchrun set it to 1 where their user says nothing, which cannot be told from a user's 1:
    under them, UNIFIED_THREADS or --threads says 1.
    """
    told = environment.get("OMP_NUM_THREADS", "")
    threads = int(told) if told.isdecimal() and int(told) > 0 else None
    return threads, threads == 1 and any(name in environment for name in LAUNCHERS)


def cpu_quota(root: Path = ROOT) -> float | None:
    """How many cores' time the control groups of this process may use together; None where nothing limits it.

    Both versions of cgroup are read, and every group above the process's own: the tightest one counts.
    """
    limits = [limit for group in _groups(root) if (limit := _limit(group)) is not None]
    return min(limits, default=None)


def other_tasks(root: Path = ROOT) -> float:
    """Tasks of others that want to run now: on Linux of a few looks the median, elsewhere the last minute's load.

    0 where the system does not say (Windows).
    """
    stat = root / "proc/stat"
    if not stat.is_file():
        return os.getloadavg()[0] if sys.platform == "darwin" else 0.0
    seen = []
    for look in range(SAMPLES):
        time.sleep(PAUSE if look else 0)
        seen.append(running_tasks(stat.read_text(encoding="utf-8")))
    return float(max(0, sorted(seen)[SAMPLES // 2] - 1))  # one is this process, which looks


def running_tasks(stat: str) -> int:
    """Tasks that run or want to, in the text of /proc/stat."""
    return next((int(line.split()[1]) for line in stat.splitlines() if line.startswith("procs_running ")), 1)


def _groups(root: Path) -> list[Path]:
    """Folders of the process's control groups and of those above them."""
    listed = root / "proc/self/cgroup"
    if not listed.is_file():
        return []
    found = []
    for line in listed.read_text(encoding="utf-8").splitlines():
        number, names, path = line.split(":", 2)
        mounts = [root / "sys/fs/cgroup"] if number == "0" else [root / "sys/fs/cgroup" / name for name in CONTROLLERS]
        if number == "0" or "cpu" in names.split(","):
            parts = [part for part in path.split("/") if part not in ("", "..")]
            found += [mount.joinpath(*parts[:depth]) for mount in mounts for depth in range(len(parts) + 1)]
    return found


def _limit(group: Path) -> float | None:
    if (group / "cpu.max").is_file():
        quota, period = (group / "cpu.max").read_text(encoding="utf-8").split()
        return None if quota == "max" else int(quota) / int(period)
    if (group / "cpu.cfs_quota_us").is_file():
        given = int((group / "cpu.cfs_quota_us").read_text(encoding="utf-8"))
        return None if given <= 0 else given / int((group / "cpu.cfs_period_us").read_text(encoding="utf-8"))
    return None
