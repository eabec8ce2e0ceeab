"""The search: which trainings come next, and when it is over. A function of what is measured, and of nothing else.

For each noise level the weights of CEM form a ladder: noise alone at its foot, then stronger and stronger penalties.
Utility falls and the attacker's error rises along it, so the best rung is the highest one that meets the floor.

1. Bracket: on one fold, bisect each ladder for its highest rung that does not clearly fail. Three trainings of eight.
2. Descend: from there, train the rung in the other folds too and go down a rung while it does not pass. A ladder that
   cannot overtake another one's passing rung any more is left.
3. Confirm: the passing rung with the largest error is asked for the floor on the half of the images that selected
   nothing. Where that fails, its ladder descends further, and the next best is asked.
"""

from dataclasses import dataclass

from sfumato.errors import ConfigError
from sfumato.tuning.judge import Book
from sfumato.tuning.space import BASELINE, Setting, Space, Trial

__all__ = ["Decision", "advance", "expected_trials"]


@dataclass(frozen=True)
class Decision:
    """How the search ended.

    Attributes:
        chosen: the setting with the largest error that passed and was confirmed; None where there is none.
        asked: settings that passed and were asked for confirmation, in this order; the last one is `chosen`, if any.
    """

    chosen: Setting | None
    asked: tuple[Setting, ...]


def advance(book: Book) -> list[Trial] | Decision:
    """The trainings that are wanted next, independent of each other, or the end.

    Raises:
        ConfigError: the undefended baseline recognises no more than chance.
    """
    space = book.space
    if missing := [trial for f in range(space.folds) if (trial := Trial(BASELINE, f)) not in book.measured]:
        first = [Trial(Setting(noise, _middle(space)), 0) for noise in space.noise_stds]
        return missing + [trial for trial in first if trial not in book.measured]
    _check_baseline(book)
    if book.slack(BASELINE, "both").mean < 0:  # only an absolute floor can be above the baseline
        return Decision(None, ())
    tops = {}
    wanted = []
    for noise in space.noise_stds:
        found = _bracket(book, noise)
        if isinstance(found, Trial):
            wanted.append(found)
        else:
            tops[noise] = found
    return wanted or _descend(book, tops)


def expected_trials(space: Space) -> int:
    """About how many trainings a search takes, for progress; it may take fewer or more."""
    steps = max(1, len(space.ladder).bit_length() - 1)
    return space.folds + len(space.noise_stds) * (steps + 2 * (space.folds - 1))


def _middle(space: Space) -> float:
    return space.ladder[len(space.ladder) // 2]


def _bracket(book: Book, noise: float) -> Trial | int:
    """The next rung to try on the first fold, or the highest one that does not clearly fail; 0 is noise alone."""
    ladder = book.space.ladder
    low, high = 0, len(ladder)
    while high - low > 1:
        middle = (low + high) // 2
        setting = Setting(noise, ladder[middle])
        if not book.folds(setting):
            return Trial(setting, 0)
        if _fails_first(book, setting):
            high = middle
        else:
            low = middle
    return low


def _fails_first(book: Book, setting: Setting) -> bool:
    """The verdict of the first fold alone, so that later folds do not change the path that led to them."""
    first = {trial: one for trial, one in book.measured.items() if trial.fold == 0}
    return Book(first, book.floor, book.space).fails(setting)


def _descend(book: Book, tops: dict[float, int]) -> list[Trial] | Decision:
    asked: list[Setting] = []
    rungs = dict(tops)
    while True:
        passing, open_trials = {}, {}
        for noise, rung in rungs.items():
            found = _down(book, noise, rung)
            if isinstance(found, int):
                rungs[noise] = found
                if found >= 0:
                    passing[noise] = Setting(noise, book.space.ladder[found])
            else:
                rungs[noise], open_trials[noise] = found
        best = max((book.error(setting, "selecting") for setting in passing.values()), default=0.0)
        wanted = [
            trial
            for noise, trials in open_trials.items()
            if _ceiling(book, noise, rungs[noise]) > best
            for trial in trials
        ]
        if wanted:
            return wanted
        if not passing:
            return Decision(None, tuple(asked))
        noise, setting = max(passing.items(), key=lambda item: book.error(item[1], "selecting"))
        if setting not in asked:
            asked.append(setting)
        if book.confirmed(setting):
            return Decision(setting, tuple(asked))
        rungs[noise] -= 1


def _down(book: Book, noise: float, rung: int) -> int | tuple[int, list[Trial]]:
    """The next rung from here that passes (-1: none does), or the rung that has to be trained before that is known."""
    while rung >= 0:
        setting = Setting(noise, book.space.ladder[rung])
        done = book.folds(setting)
        if not (done and book.fails(setting)):
            if len(done) < book.space.folds:
                return rung, [Trial(setting, f) for f in range(book.space.folds) if f not in done]
            if book.passes(setting):
                return rung
        rung -= 1
    return -1


def _ceiling(book: Book, noise: float, rung: int) -> float:
    """The largest error that this rung can have: that of the next measured rung above it, or of itself."""
    for lam in book.space.ladder[rung:]:
        if book.folds(setting := Setting(noise, lam)):
            return book.error(setting, "selecting")
    return float("inf")


def _check_baseline(book: Book) -> None:
    found = [book.measured[Trial(BASELINE, f)] for f in range(book.space.folds)]
    images = sum(len(one.right) for one in found)
    accuracy = book.accuracy(BASELINE)
    chance = book.chance
    if accuracy <= chance + 2 * (chance * (1 - chance) / images) ** 0.5:
        raise ConfigError(
            f"the undefended baseline recognises {accuracy:.1%} of the held-out images and always giving the most "
            f"frequent class {chance:.1%}, so there is no accuracy to keep; train longer (--epochs), or check the "
            "labels and --lr"
        )
