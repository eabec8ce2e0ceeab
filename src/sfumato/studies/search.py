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
from typing import Any, NamedTuple

from sfumato.errors import ConfigError
from sfumato.studies.engine import Report
from sfumato.studies.judge import Book, Measured
from sfumato.studies.space import BASELINE, Floor, Setting, Space, Training

Record = dict[str, Any]
"""What a training leaves in the store."""

Measure = Callable[[Sequence[Training], Report], Mapping[Training, Record]]
"""`(trainings, report) -> records`: reads or trains them; fewer than asked for where the time is up."""

Progress = Callable[[float, int, Record | None], None]
"""`(trainings done, about how many there will be, the last one's record)`."""

_AT_ONCE = 2  # ladders that are followed side by side: the first to pass may spare the others


class Decision(NamedTuple):
    """How the search ended.

    Attributes:
        chosen: the setting with the largest error that passed and was confirmed; None where there is none.
        asked: settings that passed and were asked for confirmation, in this order; the last one is `chosen`, if any.
    """

    chosen: Setting | None
    asked: tuple[Setting, ...]


class Searched(NamedTuple):
    """Where a search stands; where `trainings` or `minutes` have `stopped` it, `chosen` is the best so far."""

    book: Book
    records: Mapping[Training, Record]
    chosen: Setting | None
    asked: tuple[Setting, ...]
    stopped: str | None


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
        book = Book({one: Measured.of(record) for one, record in records.items()}, floor, space, chance=chance)
        step: list[Training] | Decision = [] if stopped else advance(book)
        if isinstance(step, Decision):
            return Searched(book, records, *step, None)
        if trainings is not None:
            step = step[: max(0, trainings - len(records))]
        if not step:
            return Searched(book, records, _best_so_far(book), (), stopped or "trainings")
        before, total = len(records), max(_expected(space), len(records) + len(step))

        def tell(done: float, _: int, record: Record | None, before: int = before, total: int = total) -> None:
            if progress is not None:
                progress(before + done, total, None if record is None or "error" in record else record)

        records |= measure(step, tell)
        if any(training not in records for training in step):
            stopped = "minutes"


def _best_so_far(book: Book) -> Setting | None:
    if any(training not in book.measured for training in book.space.baseline_trainings):
        return None
    good = [one for one in book.settings() if book.passes(one) and book.confirmed(one)]
    return max(good, key=lambda one: book.error(one, "selecting"), default=None)


def _expected(space: Space) -> int:
    """About how many trainings a search takes, for progress; it may take fewer or more."""
    steps = max(1, len(space.ladder).bit_length() - 1)
    return len(space.baseline_trainings) + len(space.feet) * (steps + space.folds - 1)


def advance(book: Book) -> list[Training] | Decision:
    """The trainings that are wanted next, independent of each other, or the end."""
    space = book.space
    if missing := [one for one in space.baseline_trainings if one not in book.measured]:
        first = [Training(foot.at(space.ladder[len(space.ladder) // 2]), 0) for foot in space.feet]
        return missing + [one for one in first if one not in book.measured]
    _check_baseline(book)
    if book.slack(BASELINE, "both").mean < 0:  # only an absolute floor can be above the baseline
        return Decision(None, ())
    tops = {foot: _bracket(book, foot) for foot in space.feet}
    wanted = [top for top in tops.values() if isinstance(top, Training)]
    return wanted or _settle(book, {foot: top for foot, top in tops.items() if isinstance(top, int)})


def _bracket(book: Book, foot: Setting) -> Training | int:
    """The next rung to try on the first fold, or the highest one that meets the floor there; 0 is noise alone.

    The verdict is that of the first fold alone, so that later folds do not change the path that led to them.
    """
    first = {training: one for training, one in book.measured.items() if training.fold == 0}
    alone, ladder = Book(first, book.floor, book.space), book.space.ladder
    low, high = 0, len(ladder)
    while high - low > 1:
        middle = (low + high) // 2
        setting = foot.at(ladder[middle])
        if not alone.folds(setting):
            return Training(setting, 0)
        low, high = (middle, high) if alone.slack(setting, "selecting").mean >= 0 else (low, middle)
    return low


def _settle(book: Book, tops: dict[Setting, int]) -> list[Training] | Decision:
    asked: list[Setting] = []
    refused: dict[Setting, int] = {}  # rungs that the confirming half refused, by ladder: no way leads up again
    while True:
        places = {foot: _place(book, foot, top, refused.get(foot)) for foot, top in tops.items()}
        passing = {foot: place.passing for foot, place in places.items() if place.passing is not None}
        errors = {foot: book.error(setting, "selecting") for foot, setting in passing.items()}
        best = max(errors.values(), default=0.0)
        unsettled = [place for place in places.values() if place.wanted and place.ceiling > best]
        if unsettled:
            unsettled.sort(key=lambda place: place.ceiling, reverse=True)
            return [one for place in unsettled[:_AT_ONCE] for one in place.wanted]
        if not passing:
            return Decision(None, tuple(asked))
        foot = max(errors, key=errors.__getitem__)
        asked.append(passing[foot])
        if book.confirmed(passing[foot]):
            return Decision(passing[foot], tuple(asked))
        refused[foot] = book.space.ladder.index(passing[foot].lam)


class _Standing(NamedTuple):
    """Where a ladder stands: its highest rung that is known to pass, what has to be trained to get on, and the largest
    error that can then be reached.
    """

    passing: Setting | None
    wanted: list[Training]
    ceiling: float = 0.0


def _place(book: Book, foot: Setting, top: int, refused: int | None) -> _Standing:
    """Down from the bracket's rung, or from the refused one, to what passes; up only where that one passes at once."""
    rungs = [foot.at(lam) for lam in book.space.ladder]
    first = rung = top if refused is None else refused - 1
    verdict: bool | list[Training] = False
    while rung >= 0 and (verdict := _verdict(book, rungs[rung])) is False:
        rung -= 1
    if rung < 0:
        return _Standing(None, [])
    if isinstance(verdict, list):
        return _Standing(None, verdict, _ceiling(book, rungs[rung:]))
    while refused is None and first <= rung < len(rungs) - 1 and (verdict := _verdict(book, rungs[rung + 1])):
        if isinstance(verdict, list):
            return _Standing(rungs[rung], verdict, _ceiling(book, rungs[rung + 1 :]))
        rung += 1
    return _Standing(rungs[rung], [])


def _verdict(book: Book, setting: Setting) -> bool | list[Training]:
    """Whether a setting passes, or what has to be trained before that is known."""
    done = book.folds(setting)
    if done and book.fails(setting):
        return False
    missing = [Training(setting, fold) for fold in range(book.space.folds) if fold not in done]
    return missing or book.passes(setting)


def _ceiling(book: Book, rungs: Sequence[Setting]) -> float:
    """The largest error that the first of these rungs can have: its own, or that of the next measured one above it."""
    errors = (book.error(one, "selecting") for one in rungs if book.folds(one))
    return next((error for error in errors if error > 0), float("inf"))  # one that diverged has none


def _check_baseline(book: Book) -> None:
    images = sum(len(one.right) for one in book.measurements(BASELINE)) / book.space.baselines
    accuracy, chance = book.accuracy(BASELINE), book.chance
    if accuracy <= chance + 2 * (chance * (1 - chance) / images) ** 0.5:
        raise ConfigError(
            f"the undefended baseline recognises {accuracy:.1%} of the held-out images and always giving the most "
            f"frequent class {chance:.1%}, so there is no accuracy to keep; train longer (--epochs), or check the "
            "labels and --lr"
        )
