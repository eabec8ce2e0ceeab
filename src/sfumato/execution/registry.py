"""Executors by name."""

import inspect
from collections.abc import Callable
from typing import Any

from sfumato.errors import ConfigError
from sfumato.execution.base import Executor
from sfumato.execution.local import LocalExecutor
from sfumato.execution.ray_cluster import RayExecutor
from sfumato.execution.slurm import SlurmExecutor

__all__ = ["build", "names"]

_EXECUTORS: dict[str, Callable[..., Executor]] = {
    "local": LocalExecutor,
    "ray": RayExecutor,
    "slurm": SlurmExecutor,
}


def names() -> tuple[str, ...]:
    """The executors that `build` knows."""
    return tuple(sorted(_EXECUTORS))


def build(name: str, **options: Any) -> Executor:
    """An executor.

    Args:
        name: one of `names()`.
        options: its arguments.

    Raises:
        ConfigError: the executor or an option is unknown, or its package is not installed.
    """
    if name not in _EXECUTORS:
        raise ConfigError(f"unknown executor {name!r}; known are {', '.join(names())}")
    known = inspect.signature(_EXECUTORS[name]).parameters
    for option in options:
        if option not in known:
            raise ConfigError(f"executor {name!r} has no option {option!r}; it takes {', '.join(known)}")
    if name == "slurm" and "folder" not in options:
        raise ConfigError("executor 'slurm' needs the option folder: where its logs go, on a disk that all nodes see")
    return _EXECUTORS[name](**options)
