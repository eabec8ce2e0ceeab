"""How many processor cores this process may use, on a shared machine and in a container, and how threads wait."""

import math
import os
from pathlib import Path

__all__ = ["sleep_while_waiting", "thread_environment", "usable_cores"]

_CGROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores of this process: those it is bound to, and no more than its container's CPU quota pays for, rounded up."""
    # macOS and Windows have no affinity.
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *map(math.ceil, _quotas())]))


def sleep_while_waiting() -> None:
    """Let OpenMP's threads sleep while they wait for each other; to be called before torch is loaded.

    By default they spin, which gains a few per cent on an idle machine. Where others compute too, the thread that all
    wait for does not get the core on which another one spins: two threads beside three busy processes trained a small
    network more than ten times slower.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def thread_environment(threads: int) -> dict[str, str]:
    """Variables that numerical libraries read when they are loaded: how many threads, and how these wait."""
    counts = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    return counts | {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}


def _quotas() -> list[float]:
    """Cores that the control groups around this process allow: version 2 (`cpu.max`), version 1 (`cfs_quota_us`)."""
    folders = [_CGROUPS]
    try:  # without a namespace of its own, a process sees its group's path from the root
        for line in Path("/proc/self/cgroup").read_text(encoding="utf-8").splitlines():
            number, kinds, path = line.split(":", 2)
            if number == "0" or "cpu" in kinds.split(","):
                own = (_CGROUPS if number == "0" else _CGROUPS / "cpu") / path.lstrip("/")
                folders += [own, *(folder for folder in own.parents if folder.is_relative_to(_CGROUPS))]
    except (OSError, ValueError):
        pass
    found = []
    for folder in {*folders, _CGROUPS / "cpu"}:
        for names in (("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
            try:
                words = " ".join((folder / name).read_text(encoding="ascii") for name in names).split()
                found.append(float(words[0]) / float(words[1]))  # "max" and -1 stand for no quota
            except (OSError, ValueError, IndexError, ZeroDivisionError):
                continue
    return [quota for quota in found if quota > 0]
