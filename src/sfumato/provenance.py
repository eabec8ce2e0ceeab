"""What a measured number has to carry: where, with what and on which code it was measured."""

import platform
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import torch

import sfumato

__all__ = ["evidence"]


def evidence(device: torch.device | str, *, bf16: bool = False) -> dict[str, Any]:
    """Device, threads, precision, versions and the commit of the code, as plain values."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "precision": "bf16" if bf16 else "fp32",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "sfumato": sfumato.__version__,
        "commit": _commit(),
    }


@cache
def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


@cache
def _commit() -> str | None:
    """The commit of the source tree, or None for an installed package."""
    root = Path(__file__).resolve().parents[2]
    if not (root / "pyproject.toml").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
