"""Running a search: what is wanted next is read from the folder or trained, until the walk ends or the budget does."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sfumato.errors import ConfigError
from sfumato.tuning.floor import Floor
from sfumato.tuning.folder import SearchFolder
from sfumato.tuning.judge import Book
from sfumato.tuning.measure import Measured
from sfumato.tuning.space import Setting, Space, Trial
from sfumato.tuning.walk import Decision, advance, expected_trials

__all__ = ["Limits", "Progress", "Searched", "search"]

Run = Callable[[Sequence[Trial]], Iterable[tuple[Trial, dict[str, Any]]]]
"""Does trials and gives each one's record as it comes; fewer than asked for where the time is up."""

Progress = Callable[[int, int, dict[str, Any] | None], None]
"""`(trainings done, about how many there will be, the last one's record)`."""


@dataclass(frozen=True)
class Limits:
    """How much a search may take.

    Attributes:
        trainings: over all calls; None: as many as it needs.
        minutes: of this call; None: no limit.

    Raises:
        ConfigError: a limit has no meaning.
    """

    trainings: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if self.trainings is not None and self.trainings < 1:
            raise ConfigError(f"trainings is {self.trainings}; give at least 1")
        if self.minutes is not None and not self.minutes > 0:
            raise ConfigError(f"minutes is {self.minutes:g}; give a positive number")

    def deadline(self) -> float | None:
        """`time.time()` when this call has to end."""
        return None if self.minutes is None else time.time() + 60 * self.minutes


@dataclass(frozen=True)
class Searched:
    """Where a search stands.

    Attributes:
        book: all that was measured.
        records: of the trainings that the walk asked for.
        decision: how it ended; None where the budget ended first.
        stopped: why it was stopped: `trainings`, `minutes`, or None.
    """

    book: Book
    records: dict[Trial, dict[str, Any]]
    decision: Decision | None
    stopped: str | None

    @property
    def chosen(self) -> Setting | None:
        """The setting found; of a search that was stopped the best one so far that passes and is confirmed."""
        if self.decision is not None:
            return self.decision.chosen
        if any(trial not in self.book.measured for trial in self.book.space.baseline_trials):
            return None
        good = [one for one in self.book.settings() if self.book.passes(one) and self.book.confirmed(one)]
        return max(good, key=lambda one: self.book.error(one, "selecting"), default=None)


def search(
    floor: Floor,
    space: Space,
    folder: SearchFolder,
    key: Callable[[Trial], str],
    run: Run,
    *,
    chance: float,
    trainings: int | None = None,
    progress: Progress | None = None,
) -> Searched:
    """Walk until the end, or until `run` gives less than it was asked for, or `trainings` are done.

    Only what the walk asks for is read from the folder: the same walk is taken, whatever else lies there.

    Args:
        floor: to be met.
        space: of the search.
        folder: of the results.
        key: name of a trial's result.
        run: does trials that have no result yet.
        chance: share of the most frequent class.
        trainings: the most in all, those of earlier calls included.
        progress: called after each training.

    Raises:
        ConfigError: the undefended baseline is at chance.
    """
    tell = progress or (lambda done, total, record: None)
    records: dict[Trial, dict[str, Any]] = {}
    while True:
        book = Book({trial: Measured.from_dict(one) for trial, one in records.items()}, floor, space, chance=chance)
        step = advance(book)
        if isinstance(step, Decision):
            return Searched(book, records, step, None)
        if trainings is not None:
            step = step[: max(0, trainings - len(records))]
            if not step:
                return Searched(book, records, None, "trainings")
        known = {trial: found for trial in step if (found := folder.store.read(key(trial))) is not None}
        records |= known
        total = max(expected_trials(space), len(records))
        tell(len(records), total, None)
        missing = [trial for trial in step if trial not in known]
        for trial, record in run(missing) if missing else ():
            folder.store.write(key(trial), record)
            records[trial] = record
            tell(len(records), max(total, len(records)), record)
        if any(trial not in records for trial in step):
            book = Book({trial: Measured.from_dict(one) for trial, one in records.items()}, floor, space, chance=chance)
            return Searched(book, records, None, "minutes")
