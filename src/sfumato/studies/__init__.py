"""Everything that trains and measures many times: trials, a store of results, executors that do what is missing.

A spec (a table of the paper, the demo, a search) gives trials; a trial has a key; what has no result under its key yet
is done in processes of this machine, as Slurm jobs or on a Ray cluster.
"""

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sfumato.cores import usable_cores
from sfumato.errors import ConfigError
from sfumato.studies.engine import Store, Summary, Trial, Workspace, run_trials
from sfumato.studies.executor import Executor, Outcome
from sfumato.studies.local import LocalExecutor
from sfumato.studies.ray_cluster import RayExecutor
from sfumato.studies.slurm import SlurmExecutor
from sfumato.studies.space import BASELINE, Floor, Setting, Space, Training

if TYPE_CHECKING:
    from sfumato.studies.tuning import tune, tune_with

__all__ = [
    "BASELINE",
    "EXECUTORS",
    "Executor",
    "Floor",
    "LocalExecutor",
    "Outcome",
    "RayExecutor",
    "Setting",
    "SlurmExecutor",
    "Space",
    "Store",
    "Summary",
    "Training",
    "Trial",
    "Workspace",
    "build_executor",
    "run_trials",
    "tune",
    "tune_with",
    "usable_cores",
]


def __getattr__(name: str) -> Any:
    if name in ("tune", "tune_with"):  # a worker imports this room, and need not wait for torch where its work does not
        from sfumato.studies import tuning

        return getattr(tuning, name)
    raise AttributeError(f"module 'sfumato.studies' has no attribute {name!r}")


EXECUTORS: dict[str, Callable[..., Executor]] = {"local": LocalExecutor, "ray": RayExecutor, "slurm": SlurmExecutor}
"""Executors by name."""


def build_executor(name: str, **options: Any) -> Executor:
    """An executor by name, with its arguments.

    Raises:
        ConfigError: the executor or an option is unknown, or its package is not installed.

    >>> build_executor("local", workers=3).workers
    3
    """
    if name not in EXECUTORS:
        raise ConfigError(f"unknown executor {name!r}; known are {', '.join(EXECUTORS)}")
    known = inspect.signature(EXECUTORS[name]).parameters
    for option in options:
        if option not in known:
            raise ConfigError(f"executor {name!r} has no option {option!r}; it takes {', '.join(known)}")
    if name == "slurm" and "folder" not in options:
        raise ConfigError("executor 'slurm' needs the option folder: where its logs go, on a disk that all nodes see")
    return EXECUTORS[name](**options)
