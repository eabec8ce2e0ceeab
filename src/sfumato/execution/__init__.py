"""Many independent pieces of work behind one interface: processes of this machine, Slurm jobs, a Ray cluster."""

from sfumato.execution.base import Executor, Outcome
from sfumato.execution.local import LocalExecutor
from sfumato.execution.ray_cluster import RayExecutor
from sfumato.execution.registry import build, names
from sfumato.execution.slurm import SlurmExecutor
from sfumato.execution.worker import usable_cores

__all__ = [
    "Executor",
    "LocalExecutor",
    "Outcome",
    "RayExecutor",
    "SlurmExecutor",
    "build",
    "names",
    "usable_cores",
]
