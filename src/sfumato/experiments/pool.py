"""Many small jobs on the cores of one machine; every finished one is a file, and only missing ones run."""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch

from sfumato.errors import SfumatoError
from sfumato.experiments.job import Job, run_job
from sfumato.files import write_json

__all__ = ["elapsed", "run_jobs"]

Done = Callable[[int, int, dict[str, Any]], None]


def run_jobs(jobs: Sequence[Job], folder: Path, *, workers: int | None = None, done: Done | None = None) -> list[Any]:
    """Run the jobs that have no result in `folder` yet; give all results in the order of `jobs`.

    Each worker computes on one thread: small networks gain nothing from two, and jobs side by side do.

    Args:
        jobs: what to run.
        folder: of the results, one JSON file per job.
        workers: processes; all cores that this process may use where None.
        done: called as `(finished, total, result)` after each job.

    Raises:
        SfumatoError: a worker was killed (out of memory, usually); finished jobs are kept.
    """
    results: dict[str, dict[str, Any]] = {}
    missing = []
    for job in jobs:
        if (found := _read(folder / f"{job.key}.json")) is not None:
            results[job.key] = found
        else:
            missing.append(job)
    if missing:
        count = min(len(missing), workers or _cores())
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker)
        try:
            pending = {pool.submit(run_job, job): job for job in missing}
            while pending:
                finished, _ = wait(pending, return_when=FIRST_COMPLETED)
                for future in finished:
                    job = pending.pop(future)
                    results[job.key] = future.result()
                    write_json(folder / f"{job.key}.json", results[job.key])
                    if done is not None:
                        done(len(results), len(jobs), results[job.key])
        except BrokenProcessPool as error:
            raise SfumatoError(
                "a worker process was killed, probably for lack of memory; run the command again to go on, with less "
                "running beside it"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    return [results[job.key] for job in jobs]


def elapsed(began: float, results: Sequence[dict[str, Any]]) -> float:
    """Seconds since `began` (monotonic); for a resumed call at least what all jobs take on this many cores."""
    whole = sum(line["job_seconds"] for line in results) / min(len(results), _cores())
    return round(max(time.monotonic() - began, whole), 1)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start_worker() -> None:
    torch.set_num_threads(1)


def _read(path: Path) -> dict[str, Any] | None:
    """A finished result, or None where there is none or it is damaged (then the job runs again)."""
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value
