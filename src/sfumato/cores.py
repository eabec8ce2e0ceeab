"""How many processor cores this process may use, on a shared machine and in a container."""

import math
import os
from pathlib import Path

__all__ = ["usable_cores"]

_CGROUPS = Path("/sys/fs/cgroup")


def usable_cores() -> int:
    """Cores of this process: those it is bound to, and no more than its container's CPU quota pays for, rounded up."""
    # macOS and Windows have no affinity.
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([bound, *map(math.ceil, _quotas())]))


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
