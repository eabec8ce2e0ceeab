"""The engine of all studies: trials in, results in a store; what is missing is measured, by any number of callers."""

import json
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from filelock import FileLock, Timeout

from sfumato.errors import Interrupted, SfumatoError, SfumatoWarning
from sfumato.files import write_json
from sfumato.studies.executor import Executor, Here


class Store:
    """A folder of results by key, where the key holds a digest of everything that decides the result.

    Files are written aside and renamed, so a reader sees a whole result or none. Whoever works on a key holds a lock
    that the operating system takes back when the process dies, however it dies.

    Args:
        folder: of the results.
        locks: folder of the lock files; `folder/.locks` where None.
    """

    def __init__(self, folder: Path, *, locks: Path | None = None) -> None:
        self.folder = folder
        self.locks = locks or folder / ".locks"

    def path(self, key: str) -> Path:
        """Where the result of `key` lies, or will lie."""
        return self.folder / f"{key}.json"

    def read(self, key: str) -> dict[str, Any] | None:
        """The result of `key`, or None where there is none.

        A damaged file, or one that another key's result was copied to, is set aside as `<key>.json.damaged` and
        counts as missing: it is measured again, never trusted.
        """
        path = self.path(key)
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError):
            value = None
        if isinstance(value, dict) and value.get("key") == key:
            return value
        with suppress(FileNotFoundError):  # two readers may both find the damage, and one be the first to move it
            path.replace(path.with_name(path.name + ".damaged"))
        return None

    def write(self, key: str, result: dict[str, Any]) -> None:
        """Store a result.

        Raises:
            StorageError: the folder cannot be written.
        """
        write_json(self.path(key), {"key": key, **result})

    @contextmanager
    def claim(self, key: str) -> Iterator[bool]:
        """Hold the lock of `key`; gives False, without waiting, where another process holds it."""
        self.locks.mkdir(parents=True, exist_ok=True)
        with ExitStack() as held:
            try:
                held.enter_context(FileLock(self.locks / f"{key}.lock", timeout=0))
            except Timeout:
                yield False
            else:
                yield True


Report = Callable[[float, int, dict[str, Any] | None], None]
"""`(trials done, trials in all, the result that has just come or None)`; the first is a fraction while some are run.

The result of a trial that cannot be done as it is has `key` and `error`, the sentence that says why.
"""

_TELL_SECONDS = 1.0


@dataclass(frozen=True)
class Workspace:
    """What a trial may use while it is measured.

    Attributes:
        folder: of its checkpoints, in which an interrupted measurement is resumed.
        picture: PNG file beside the result.
        should_stop: asked as often as it can stop; True: save and raise `Interrupted`.
        tell: called with what is being done and the share of all that is done.
    """

    folder: Path
    picture: Path
    should_stop: Callable[[], bool] = lambda: False
    tell: Callable[[str, float], None] = lambda what, share: None


class Trial(ABC):
    """One thing to measure, described by a value that can be sent to another machine.

    Attributes:
        alone: whether it is measured in this process, before the others and beside none of them.
    """

    alone: ClassVar[bool] = False

    @property
    @abstractmethod
    def key(self) -> str:
        """Name of the result: readable in front, and with a digest of everything that decides the result behind."""

    @property
    def complete(self) -> bool:
        """Whether all is there that it should leave beside its result."""
        return True

    @abstractmethod
    def measure(self, workspace: Workspace) -> dict[str, Any]:
        """Do it, from where an earlier call was interrupted; plain values only.

        Raises:
            Interrupted: `workspace.should_stop` said so; the same call resumes.
        """


@dataclass(frozen=True)
class Summary:
    """How a call ended.

    Attributes:
        done, total: results there are now, and should be.
        failed: (key, sentence) of trials that cannot be done as they are.
        elsewhere: trials that other processes are working on.
        seconds: of this call.
    """

    done: int
    total: int
    failed: tuple[tuple[str, str], ...]
    elsewhere: int
    seconds: float


def missing(trials: Iterable[Trial], store: Store) -> list[Trial]:
    """Those without a result, or without what they should leave beside it; each key once."""
    return list({one.key: one for one in trials if not _found(one, store)}.values())


def is_late(deadline: float | None) -> bool:
    """Whether this `time.time()` has passed."""
    return deadline is not None and time.time() >= deadline


def run_trials(
    trials: Sequence[Trial],
    executor: Executor | Here,
    store: Store,
    work: Path,
    *,
    deadline: float | None = None,
    plugins: Sequence[str | Path] = (),
    keep_going: bool = False,
    report: Report | None = None,
) -> Summary:
    """Measure what has no result yet.

    No trial is measured by two processes at a time, whoever calls: its worker holds a lock, which the operating system
    takes back when the process dies.

    Args:
        trials: what should have a result in the end, the most urgent first.
        executor: where to measure.
        store: of the results.
        work: folder of the checkpoints, a subfolder per trial; for other machines it has to be on a shared disk.
        deadline: `time.time()` after which everything saves and stops.
        plugins: files that register defences.
        keep_going: True collects failures in the summary and leaves to others what they are working on; False waits
            for it, and raises the first failure once nothing runs any more.
        report: called as the work goes on.

    Raises:
        SfumatoError: a trial cannot be done as it is, unless `keep_going`.
    """
    tell = report or (lambda done, total, result: None)
    began, total = time.monotonic(), len({one.key for one in trials})
    paths = tuple(str(Path(plugin).resolve()) for plugin in plugins)
    folder, locks, work = store.folder.resolve(), store.locks.resolve(), work.resolve()
    todo = [_Assignment(one, folder, locks, work, deadline, paths) for one in missing(trials, store)]
    finished, failed, busy = total - len(todo), {}, todo
    running = {one.trial.key: one.progress for one in todo}

    def late() -> bool:
        """What an executor asks about twice a second, which is the moment to say how far the running trials are."""
        tell(finished + sum(map(_share, running.values())), total, None)
        return is_late(deadline)

    while busy:
        todo, busy = busy, []
        split = {alone: [one for one in todo if one.trial.alone is alone] for alone in (True, False)}
        outcomes = (where.run(split[alone], _do, stop=late) for alone, where in ((True, Here()), (False, executor)))
        for outcome in chain.from_iterable(outcomes):
            key, error = outcome.item.trial.key, outcome.error
            running.pop(key, None)
            if outcome.value == "busy":
                busy.append(outcome.item)
            elif error is None:
                finished += 1
                tell(finished, total, store.read(key))
            elif not isinstance(error, SfumatoError):
                raise error
            elif not isinstance(error, Interrupted):
                failed[key] = error
                tell(finished, total, {"key": key, "error": str(error)})
        if keep_going or is_late(deadline):
            break
        if busy:
            time.sleep(_TELL_SECONDS)
    if failed and not keep_going:
        raise next(iter(failed.values()))
    sentences = tuple((key, str(error)) for key, error in failed.items())
    return Summary(finished, total, sentences, len(busy), time.monotonic() - began)


@dataclass(frozen=True)
class _Assignment:
    """A trial and where it is to be done; see `run_trials`."""

    trial: Trial
    results: Path
    locks: Path
    work: Path
    deadline: float | None
    plugins: tuple[str, ...]

    @property
    def progress(self) -> Path:
        """File in which the worker says how far it is."""
        return self.work / f"{self.trial.key}.progress"


def _do(given: _Assignment) -> str:
    """Measure one trial and store its result; says `done`, `found` (somebody else had done it) or `busy`."""
    if given.plugins:
        from sfumato import defenses

        for plugin in given.plugins:
            defenses.load_plugin(plugin)
    key, store = given.trial.key, Store(given.results, locks=given.locks)
    last = 0.0

    def tell(what: str, share: float) -> None:
        nonlocal last
        if time.monotonic() - last >= _TELL_SECONDS:
            last = time.monotonic()
            write_json(given.progress, {"what": what, "share": share})

    with store.claim(key) as mine:
        if not mine:
            return "busy"
        if _found(given.trial, store):
            return "found"
        if is_late(given.deadline):
            raise Interrupted("no time is left")
        space = Workspace(given.work / key, store.folder / f"{key}.png", lambda: is_late(given.deadline), tell)
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", SfumatoWarning)
                result = given.trial.measure(space)
        finally:
            given.progress.unlink(missing_ok=True)
        said = {str(one.message): None for one in caught if issubclass(one.category, SfumatoWarning)}
        store.write(key, result | {"warnings": list(said)})
        return "done"


def _found(trial: Trial, store: Store) -> bool:
    return trial.complete and store.read(trial.key) is not None


def _share(path: Path) -> float:
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["share"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0.0  # not begun, or being written at this moment
