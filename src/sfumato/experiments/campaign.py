"""Running experiments: only what is missing, in a given time, on whatever executor, by any number of callers."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

from sfumato import data
from sfumato.data import DataSets
from sfumato.errors import DataError, Interrupted, SfumatoError
from sfumato.execution import Executor
from sfumato.experiments.experiment import Experiment
from sfumato.experiments.store import Store
from sfumato.experiments.work import Assignment, do
from sfumato.training import TrainConfig

__all__ = ["Report", "Summary", "data_folder", "missing", "run_campaign"]

Report = Callable[[str, float, float], None]
"""`(line or "", experiments done, experiments in all)`; the second is a fraction while some are running."""

_POLL_SECONDS = 2.0
_FOLDERS = {
    "cifar10": ("cifar10", "cifar-10"),
    "cifar100": ("cifar100", "cifar-100"),
    "tinyimagenet": ("tinyimagenet", "tiny-imagenet-200"),
    "facescrub": ("facescrub", "FaceScrub"),
}


@dataclass(frozen=True)
class Summary:
    """How a campaign ended.

    Attributes:
        done: results there are now.
        total: results there should be.
        failed: (key, sentence) of experiments that cannot be done as they are.
        elsewhere: experiments that other processes are working on.
        seconds: of this call.
    """

    done: int
    total: int
    failed: tuple[tuple[str, str], ...]
    elsewhere: int
    seconds: float


def data_folder(base: str | None, dataset: str) -> str | None:
    """Where a data set lies: the folder of its name in `base`, or `base` itself."""
    if base is None:
        return None
    root = Path(base).expanduser().resolve()
    return str(next((root / name for name in _FOLDERS.get(dataset, ()) if (root / name).is_dir()), root))


def missing(experiments: Sequence[Experiment], store: Store) -> list[Experiment]:
    """Those without a result."""
    return [experiment for experiment in experiments if store.read(experiment.key) is None]


def run_campaign(
    experiments: Sequence[Experiment],
    executor: Executor,
    *,
    results: Path,
    work: Path,
    data_dir: str | None,
    device: str = "auto",
    minutes: float | None = None,
    plugins: Sequence[str] = (),
    keep: bool = False,
    report: Report | None = None,
) -> Summary:
    """Do what is missing.

    Args:
        experiments: what should have a result in the end, the most urgent first.
        executor: where to run.
        results: folder of the store.
        work: folder of checkpoints; with another executor than the local one it has to be shared by all machines.
        data_dir: of the data sets.
        device: `auto`, `cpu` or `cuda`.
        minutes: time after which everything saves and stops.
        plugins: files that register defences.
        keep: whether trained models stay in `work`.
        report: called as the work goes on.

    Raises:
        DataError: a data set is missing, or a stored result was measured on other images than those in `data_dir`.
    """
    tell = report or (lambda line, done, total: None)
    began = time.monotonic()
    deadline = None if minutes is None else time.time() + 60 * minutes
    store = Store(results, locks=work / "locks")
    todo = missing(experiments, store)
    _check_data(experiments, todo, store, data_dir)
    assignments = [
        Assignment(
            experiment.located(data_folder(data_dir, experiment.train.data), device),
            results.resolve(),
            work.resolve(),
            deadline,
            tuple(str(Path(plugin).resolve()) for plugin in plugins),
            keep=keep,
        )
        for experiment in todo
    ]
    finished = total = len(experiments)
    finished -= len(todo)
    failed: list[tuple[str, str]] = []
    elsewhere = 0
    running = {assignment.experiment.key: assignment.progress for assignment in assignments}

    def late() -> bool:
        return deadline is not None and time.time() >= deadline

    with _watching(running, lambda: finished, total, tell):
        for outcome in executor.run(assignments, do, stop=late):
            key = outcome.item.experiment.key
            running.pop(key)
            if isinstance(outcome.error, Interrupted):
                continue
            if isinstance(outcome.error, SfumatoError):
                failed.append((key, str(outcome.error)))
                tell(f"{key}: {outcome.error}", finished, total)
            elif outcome.error is not None:
                raise outcome.error
            elif outcome.value == "busy":
                elsewhere += 1
            else:
                finished += 1
                tell(_line(key, store), finished, total)
    return Summary(finished, total, tuple(failed), elsewhere, time.monotonic() - began)


def _line(key: str, store: Store) -> str:
    result = store.read(key)
    if result is None:
        return f"{key}: done"
    errors = ", ".join(f"{name} {attack['test']['mse']:.4f}" for name, attack in result["attacks"].items())
    return f"{key}: accuracy {result['accuracy']:.2%}, test MSE {errors}"


@contextmanager
def _watching(
    running: dict[str, Path], finished: Callable[[], int], total: int, tell: Callable[[str, float, float], None]
) -> Iterator[None]:
    """Say how far the running experiments are, from the files in which they say it themselves."""
    over = Event()

    def watch() -> None:
        while not over.wait(_POLL_SECONDS):
            tell("", finished() + sum(map(_share, list(running.values()))), total)

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _share(path: Path) -> float:
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["share"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0  # not begun, or being written at this moment


def _check_data(
    experiments: Sequence[Experiment], todo: Sequence[Experiment], store: Store, data_dir: str | None
) -> None:
    """Load what is needed once: a missing data set is one sentence, not one per worker, and results of other images
    never stand beside new ones.
    """
    loaded: dict[tuple[Any, ...], DataSets] = {}
    wanted = {_source(experiment.train) for experiment in todo}
    for experiment in experiments:
        train = experiment.train
        if (source := _source(train)) not in wanted:
            continue
        if source not in loaded:
            loaded[source] = data.load(train.data, data_folder(data_dir, train.data), seed=0, size=train.size)
        if (result := store.read(experiment.key)) is not None:
            sets = loaded[source]
            mine = sets.train if train.limit is None else data.limit(sets.train, train.limit, train.seed)
            if result["data"] != mine.fingerprint():
                raise DataError(
                    f"{store.path(experiment.key)} was measured on other images than those in {data_dir}; choose "
                    "another --results folder for these"
                )


def _source(train: TrainConfig) -> tuple[Any, ...]:
    return train.data, train.size
