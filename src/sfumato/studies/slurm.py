"""Slurm jobs through submitit, one per item."""

import time
from pathlib import Path
from typing import Any

from sfumato.cores import usable_cores
from sfumato.errors import ConfigError
from sfumato.studies.executor import Death, Executor, Reply, Work, at_least_one, perform

_LOOK_SECONDS = 0.1
_GRACE_SECONDS = 5.0


class SlurmExecutor(Executor):
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

    def _places(self) -> int:
        return self.jobs

    def _submit(self, work: Work, item: Any) -> Any:
        import submitit

        try:
            return self._submitter.submit(perform, work, item, self.cpus)
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise ConfigError(f"Slurm refuses the job ({reason}); check partition, gpus, cpus and minutes") from error
        except (TypeError, AttributeError) as error:
            raise self.unsendable(error) from error

    def _wait(self, handles: list[Any], seconds: float) -> list[Any]:
        deadline = time.monotonic() + seconds
        while not (done := [job for job in handles if job.done()]) and time.monotonic() <= deadline:
            time.sleep(_LOOK_SECONDS)
        return done

    def _report(self, handle: Any) -> Reply | Death:
        import submitit

        try:
            reply: Reply = handle.result()
        except submitit.core.utils.FailedJobError as error:  # the trace is framed by lines of dashes
            trace = str(error).split("-" * 22)
            return self.unloadable(trace[min(1, len(trace) - 1)].strip().splitlines()[-1])
        except submitit.core.utils.UncompletedJobError:
            return _death(handle, f"the job left no result (state {handle.state})")
        # Out of time, submitit raises inside the work, where it looks like an exception of the work.
        if isinstance(reply.error, submitit.core.utils.UncompletedJobError):
            return _death(handle, "the job was out of time")
        return reply

    def _withdraw(self, handle: Any) -> bool:
        queued: bool = handle.state == "PENDING"
        if queued:
            handle.cancel(check=False)
        return queued

    def _close(self, handles: list[Any]) -> None:
        for job in handles:
            job.cancel(check=False)
        deadline = time.monotonic() + _GRACE_SECONDS
        # Slurm ends its jobs by itself; processes of this machine must be gone, and their parents need time to do it.
        while self.local and time.monotonic() < deadline and not all(job.done() for job in handles):
            time.sleep(_LOOK_SECONDS)


def _death(job: Any, cause: str) -> Death:
    return Death(cause, f"read {job.paths.stderr}, and give each job more minutes or memory")


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
