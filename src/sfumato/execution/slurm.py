"""Slurm jobs through submitit, one per item."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from sfumato.errors import ConfigError
from sfumato.execution.base import Crew, CrewExecutor, Death, Task, at_least_one
from sfumato.execution.worker import Reply, perform, unloadable, unsendable, usable_cores

__all__ = ["SlurmExecutor"]

T = TypeVar("T")
R = TypeVar("R")

_LOOK_SECONDS = 0.1
_GRACE_SECONDS = 5.0


class SlurmExecutor(CrewExecutor):
    """Run each item as a Slurm job, submitted from here.

    A job that ends without a result (killed, out of memory, out of time, its node lost) is submitted again; one that
    Slurm preempts is requeued by submitit and counts once.

    Args:
        folder: of the jobs' logs and messages, on a disk that all nodes see. The messages are pickles: let nobody
            else write there.
        partition: where to queue; None leaves it to the cluster.
        gpus: per job.
        cpus: per job, which is also its number of threads.
        minutes: after which Slurm ends a job.
        cluster: `slurm`, or `local` for processes of this machine started in the same way; None is `slurm`.
        jobs: queued or running at a time, at most; None takes 100, on `local` as many as the cores allow.
        attempts: how often an item is started before it is given up, where its jobs die.

    Raises:
        ConfigError: submitit is not installed, there is no Slurm here, or a number is out of its range.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        partition: str | None = None,
        gpus: int = 0,
        cpus: int = 2,
        minutes: int = 60,
        cluster: str | None = None,
        jobs: int | None = None,
        attempts: int = 3,
    ) -> None:
        super().__init__(attempts=attempts)
        self.cpus = at_least_one("cpus", cpus)
        if gpus < 0:
            raise ConfigError(f"gpus must be 0 or more, not {gpus}")
        if cluster not in (None, "slurm", "local"):
            raise ConfigError(f"unknown cluster {cluster!r}; give slurm or local")
        self.local = cluster == "local"
        most = max(1, usable_cores() // cpus) if self.local else 100
        self.jobs = most if jobs is None else at_least_one("jobs", jobs)
        self._submitter = _submitter(Path(folder), cluster or "slurm")
        options: dict[str, Any] = {} if partition is None else {"slurm_partition": partition}
        self._submitter.update_parameters(
            name="sfumato",
            timeout_min=at_least_one("minutes", minutes),
            cpus_per_task=cpus,
            gpus_per_node=gpus,
            **options,
        )

    def _hire(self, work: Callable[[T], R], count: int) -> Crew[T, R]:
        return _Jobs(work, self)


class _Jobs(Crew[T, R]):
    def __init__(self, work: Callable[[T], R], executor: SlurmExecutor) -> None:
        self._work = work
        self._executor = executor
        self._running: list[tuple[Task[T], Any]] = []

    def room(self) -> int:
        return self._executor.jobs - len(self._running)

    def start(self, task: Task[T]) -> None:
        import submitit

        try:
            job = self._executor._submitter.submit(perform, self._work, task.item, self._executor.cpus)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ConfigError(f"Slurm refuses the job ({reason}); check partition, gpus, cpus and minutes") from error
        except (TypeError, AttributeError) as error:
            raise unsendable(error) from error
        self._running.append((task, job))

    def collect(self, seconds: float) -> list[tuple[Task[T], Reply[R] | Death]]:
        deadline = time.monotonic() + seconds
        while True:
            done = [(task, job) for task, job in self._running if job.done()]
            if done or time.monotonic() > deadline:
                break
            time.sleep(_LOOK_SECONDS)
        self._running = [pair for pair in self._running if pair not in done]
        return [(task, _report(job)) for task, job in done]

    def withdraw(self) -> int:
        queued = [(task, job) for task, job in self._running if job.state == "PENDING"]
        self._running = [pair for pair in self._running if pair not in queued]
        for _, job in queued:
            job.cancel(check=False)
        return len(queued)

    def close(self) -> None:
        for _, job in self._running:
            job.cancel(check=False)
        deadline = time.monotonic() + _GRACE_SECONDS
        # Slurm ends its jobs by itself; processes of this machine must be gone, and their parents need time to do it.
        while self._executor.local and time.monotonic() < deadline and not all(job.done() for _, job in self._running):
            time.sleep(_LOOK_SECONDS)
        self._running = []


def _report(job: Any) -> Reply[R] | Death:
    import submitit

    try:
        reply: Reply[R] = job.result()
    except submitit.core.utils.FailedJobError as error:
        return unloadable(_last_line_of_trace(str(error)))
    except submitit.core.utils.UncompletedJobError:
        return _death(job, f"the job left no result (state {job.state})")
    # Out of time, submitit raises inside the work, where it looks like an exception of the work.
    if isinstance(reply.error, submitit.core.utils.UncompletedJobError):
        return _death(job, "the job was out of time")
    return reply


def _death(job: Any, cause: str) -> Death:
    return Death(cause, f"read {job.paths.stderr}, and give each job more minutes or memory")


def _last_line_of_trace(text: str) -> str:
    """submitit frames the trace with lines of dashes."""
    trace = text.split("-" * 22)[1].strip().splitlines() if "-" * 22 in text else [text]
    return trace[-1]


def _submitter(folder: Path, cluster: str) -> Any:
    try:
        import submitit
    except ImportError:
        raise ConfigError("Slurm jobs are submitted by submitit; run `pip install 'sfumato[slurm]'`") from None
    try:
        return submitit.AutoExecutor(folder=folder, cluster=cluster)
    except RuntimeError as error:
        raise ConfigError(
            f"there is no Slurm on this machine ({error}); go to a login node, or use the local executor"
        ) from error
