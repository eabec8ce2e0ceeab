"""The small jobs of the demo and the study, on the cores of this machine; only missing ones run."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sfumato.execution import LocalExecutor, usable_cores
from sfumato.experiments.job import Job, run_job
from sfumato.experiments.store import Store

__all__ = ["elapsed", "run_jobs"]

Done = Callable[[int, int, dict[str, Any]], None]


def run_jobs(jobs: Sequence[Job], folder: Path, *, workers: int | None = None, done: Done | None = None) -> list[Any]:
    """Run the jobs that have no result in `folder` yet, or left no run; give all results in the order of `jobs`.

    Each worker computes on one thread: small networks gain nothing from two, and jobs side by side do.

    Args:
        jobs: what to run.
        folder: of the results, one JSON file per job.
        workers: processes; all cores that this process may use where None.
        done: called as `(finished, total, result)` after each job.

    Raises:
        SfumatoError: a worker was killed again and again (out of memory, usually); finished jobs are kept.
    """
    store = Store(folder)
    results = {job.key: found for job in jobs if job.left and (found := store.read(job.key)) is not None}
    missing = [job for job in jobs if job.key not in results]
    for outcome in LocalExecutor(workers, threads=1).run(missing, run_job):
        if outcome.error is not None:
            raise outcome.error
        assert outcome.value is not None
        store.write(outcome.item.key, outcome.value)
        results[outcome.item.key] = {"key": outcome.item.key, **outcome.value}
        if done is not None:
            done(len(results), len(jobs), outcome.value)
    return [results[job.key] for job in jobs]


def elapsed(began: float, results: Sequence[dict[str, Any]]) -> float:
    """Seconds since `began` (monotonic); for a resumed call at least what all jobs take on this many cores."""
    whole = sum(line["job_seconds"] for line in results) / min(len(results), usable_cores())
    return round(max(time.monotonic() - began, whole), 1)
