"""The search of `tune`: which trainings come next, and when it is over. A function of what is measured, and of no more.

For each defence and noise level the weights of CEM form a ladder: no CEM at its foot, then stronger and stronger
penalties. Utility falls and the attacker's error rises along it, so the best rung is the highest that meets the floor.

1. Bracket: on one fold, bisect each ladder for its highest rung that meets the floor there. Three trainings of eight.
2. Settle: train that rung in the other folds too. While it does not pass, go down; where it passes at once, go
   up as long as the next one passes too. The two most promising ladders go first, and one that cannot overtake another
   one's passing rung any more is left.
3. Confirm: the passing rung with the largest error is asked for the floor on the half of the images that selected
   nothing. Where that fails, its ladder goes further down, and the next best is asked.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from sfumato.errors import ConfigError
from sfumato.studies.engine import Report
from sfumato.studies.judge import Book
from sfumato.studies.space import BASELINE, Floor, Setting, Space, Training
from sfumato.studies.tune_trials import Measured

Record = dict[str, Any]
"""What a training leaves in the store."""

Measure = Callable[[Sequence[Training], Report], Mapping[Training, Record]]
"""`(trainings, report) -> records`: reads or trains them; fewer than asked for where the time is up."""

Progress = Callable[[float, int, Record | None], None]
"""`(trainings done, about how many there will be, the last one's record)`."""

_AT_ONCE = 2  # ladders that are followed side by side: the first to pass may spare the others


@dataclass(frozen=True)
class Decision:
    """How the search ended.

    Attributes:
        chosen: the setting with the largest error that passed and was confirmed; None where there is none.
        asked: settings that passed and were asked for confirmation, in this order; the last one is `chosen`, if any.
    """

    chosen: Setting | None
    asked: tuple[Setting, ...]


@dataclass(frozen=True)
class Searched:
    """Where a search stands; without a decision where the budget ended first: `stopped` by `trainings` or `minutes`."""

    book: Book
    records: Mapping[Training, Record]
    decision: Decision | None
    stopped: str | None

    @property
    def chosen(self) -> Setting | None:
        """The setting found; of a search that was stopped the best one so far that passes and is confirmed."""
        if self.decision is not None:
            return self.decision.chosen
        if any(training not in self.book.measured for training in self.book.space.baseline_trainings):
            return None
        good = [one for one in self.book.settings() if self.book.passes(one) and self.book.confirmed(one)]
        return max(good, key=lambda one: self.book.error(one, "selecting"), default=None)


def search(
    floor: Floor,
    space: Space,
    measure: Measure,
    *,
    chance: float,
    trainings: int | None = None,
    progress: Progress | None = None,
) -> Searched:
    """Advance until the end, or until `measure` gives less than it was asked for, or `trainings` are done.

    Only what the search asks for is read from the store: the same way is taken, whatever else lies there. `chance` is
    the share of the most frequent class, `trainings` the most in all, those of earlier calls included.
    """
    records: dict[Training, Record] = {}
    stopped = None
    while True:
        book = Book({one: Measured.from_dict(record) for one, record in records.items()}, floor, space, chance=chance)
        if stopped is not None:
            return Searched(book, records, None, stopped)
        step = advance(book)
        if isinstance(step, Decision):
            return Searched(book, records, step, None)
        if trainings is not None:
            step = step[: max(0, trainings - len(records))]
        if not step:
            stopped = "trainings"
            continue
        before, total = len(records), max(expected_trainings(space), len(records) + len(step))

        def tell(done: float, _: int, record: Record | None, before: int = before, total: int = total) -> None:
            if progress is not None:
                progress(before + done, total, None if record is None or "error" in record else record)

        records |= measure(step, tell)
        if any(training not in records for training in step):
            stopped = "minutes"


def advance(book: Book) -> list[Training] | Decision:
    """The trainings that are wanted next, independent of each other, or the end."""
    space = book.space
    if missing := [one for one in space.baseline_trainings if one not in book.measured]:
        first = [Training(foot.at(_middle(space)), 0) for foot in space.feet]
        return missing + [one for one in first if one not in book.measured]
    _check_baseline(book)
    if book.slack(BASELINE, "both").mean < 0:  # only an absolute floor can be above the baseline
        return Decision(None, ())
    tops = {}
    wanted = []
    for foot in space.feet:
        found = _bracket(book, foot)
        if isinstance(found, Training):
            wanted.append(found)
        else:
            tops[foot] = found
    return wanted or _settle(book, tops)


def expected_trainings(space: Space) -> int:
    """About how many trainings a search takes, for progress; it may take fewer or more."""
    steps = max(1, len(space.ladder).bit_length() - 1)
    return len(space.baseline_trainings) + len(space.feet) * (steps + space.folds - 1)


def _middle(space: Space) -> float:
    return space.ladder[len(space.ladder) // 2]


def _bracket(book: Book, foot: Setting) -> Training | int:
    """The next rung to try on the first fold, or the highest one that meets the floor there; 0 is noise alone."""
    ladder = book.space.ladder
    low, high = 0, len(ladder)
    while high - low > 1:
        middle = (low + high) // 2
        setting = foot.at(ladder[middle])
        if not book.folds(setting):
            return Training(setting, 0)
        if _meets_first(book, setting):
            low = middle
        else:
            high = middle
    return low


def _meets_first(book: Book, setting: Setting) -> bool:
    """The verdict of the first fold alone, so that later folds do not change the path that led to them."""
    first = {training: one for training, one in book.measured.items() if training.fold == 0}
    return Book(first, book.floor, book.space).slack(setting, "selecting").mean >= 0


def _settle(book: Book, tops: dict[Setting, int]) -> list[Training] | Decision:
    asked: list[Setting] = []
    refused: dict[Setting, int] = {}  # rungs that the confirming half refused, by ladder: no way leads up again
    while True:
        places = {foot: _place(book, foot, top, refused.get(foot)) for foot, top in tops.items()}
        passing = {foot: place.passing for foot, place in places.items() if place.passing is not None}
        best = max((book.error(setting, "selecting") for setting in passing.values()), default=0.0)
        open_ones = [place for place in places.values() if place.wanted and place.ceiling > best]
        open_ones.sort(key=lambda place: place.ceiling, reverse=True)
        if open_ones:
            return [one for place in open_ones[:_AT_ONCE] for one in place.wanted]
        if not passing:
            return Decision(None, tuple(asked))
        foot, setting = max(passing.items(), key=lambda item: book.error(item[1], "selecting"))
        asked.append(setting)
        if book.confirmed(setting):
            return Decision(setting, tuple(asked))
        refused[foot] = book.space.ladder.index(setting.lam)


class _Standing(NamedTuple):
    """Where a ladder stands: its highest rung that is known to pass, and what has to be trained to get on."""

    passing: Setting | None
    wanted: list[Training]
    ceiling: float = 0.0


def _place(book: Book, foot: Setting, top: int, refused: int | None) -> _Standing:
    rung = top if refused is None else refused - 1
    first = rung
    while rung >= 0:
        verdict = _verdict(book, foot, rung)
        if isinstance(verdict, list):
            return _Standing(None, verdict, _ceiling(book, foot, rung))
        if verdict:
            break
        rung -= 1
    else:
        return _Standing(None, [])
    if refused is None and rung == first:
        while rung + 1 < len(book.space.ladder):
            verdict = _verdict(book, foot, rung + 1)
            if isinstance(verdict, list):
                return _Standing(foot.at(book.space.ladder[rung]), verdict, _ceiling(book, foot, rung + 1))
            if not verdict:
                break
            rung += 1
    return _Standing(foot.at(book.space.ladder[rung]), [])


def _verdict(book: Book, foot: Setting, rung: int) -> bool | list[Training]:
    """Whether this rung passes, or what has to be trained before that is known."""
    setting = foot.at(book.space.ladder[rung])
    done = book.folds(setting)
    if done and book.fails(setting):
        return False
    if len(done) < book.space.folds:
        return [Training(setting, f) for f in range(book.space.folds) if f not in done]
    return book.passes(setting)


def _ceiling(book: Book, foot: Setting, rung: int) -> float:
    """The largest error that this rung can have: its own, or that of the next measured rung above it."""
    for lam in book.space.ladder[rung:]:
        setting = foot.at(lam)
        if book.folds(setting) and (error := book.error(setting, "selecting")) > 0:  # one that diverged has none
            return error
    return float("inf")


def _check_baseline(book: Book) -> None:
    images = sum(len(one.right) for one in book.measurements(BASELINE)) / book.space.baselines
    accuracy = book.accuracy(BASELINE)
    chance = book.chance
    if accuracy <= chance + 2 * (chance * (1 - chance) / images) ** 0.5:
        raise ConfigError(
            f"the undefended baseline recognises {accuracy:.1%} of the held-out images and always giving the most "
            f"frequent class {chance:.1%}, so there is no accuracy to keep; train longer (--epochs), or check the "
            "labels and --lr"
        )
