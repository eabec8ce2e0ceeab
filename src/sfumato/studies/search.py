"""The search of `tune`: which trainings come next, and when it is over. A function of what is measured, and of no more.

For each defence and noise level the weights of CEM form a ladder: no CEM at its foot, then stronger and stronger
penalties. Utility falls and the attacker's error rises along it, so the best rung is the highest that meets the floor.

1. Bracket: on one fold, bisect each ladder for its highest rung that meets the floor there. Three trainings of eight.
2. Settle: train in the other folds too what may leave the largest error, of all ladders together, from one rung above
   the brackets downwards; what fails is passed over. A ladder that cannot overtake another one's passing rung is left.
3. Confirm: the first rung that passes is asked for the floor on the half of the images that selected nothing. Where
   that fails, the next one is asked.
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
    """Ask the settings around and below the brackets, those first that may leave the largest error."""
    ladder = book.space.ladder
    rungs = [[foot.at(lam) for lam in ladder[: top + 2]] for foot, top in tops.items()]
    ceilings = {one: _ceiling(book, own[index:]) for own in rungs for index, one in enumerate(own)}
    wanted: list[list[Training]] = []
    asked: list[Setting] = []
    for setting in sorted(ceilings, key=lambda one: (ceilings[one], one.lam), reverse=True):
        done = book.folds(setting)
        if done and book.fails(setting):
            continue
        if missing := [Training(setting, fold) for fold in range(book.space.folds) if fold not in done]:
            wanted.append(missing)
        elif book.passes(setting) and not wanted:
            asked.append(setting)
            if book.confirmed(setting):
                return Decision(setting, tuple(asked))
        if len(wanted) == _AT_ONCE:
            break
    return [training for one in wanted for training in one] or Decision(None, tuple(asked))


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
