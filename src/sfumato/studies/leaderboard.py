"""The leaderboard: every defence against noise alone at equal accuracy, in reconstruction and in identification."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sfumato.report.chart import Curve, Point
from sfumato.report.drawn import Drawn
from sfumato.report.figures import line_figure, trade_off
from sfumato.report.tables import MISSING, Cell, Row, Table
from sfumato.studies.engine import Store
from sfumato.studies.equal_accuracy import Comparison, compare
from sfumato.studies.experiment import Experiment
from sfumato.studies.plan import Budget, RowSpec, level_experiments, seeds_of, variant_experiments
from sfumato.studies.results import SeedResults, cell, collect, seeds_note, shared_attacks, trade_off_points

_METRICS = {
    "identified": "identified",
    "information held out, nats": "information",
    "its standard error": "information_error",
    "identified at most": "identified_at_most",
}
_COLUMNS = (
    *("accuracy", "strongest MSE, test", *_METRICS),
    *("MSE over noise alone", "95 %", "identified less noise alone, points", "95 %, points"),
)


@dataclass(frozen=True)
class Entry:
    """A curve of the leaderboard: noise alone along its levels, CEM along lambda, or an added row along the noise."""

    method: str
    label: str
    results: list[SeedResults]


class Board:
    """What was measured, compared with noise alone at equal accuracy by the attacks that all results have.

    Attributes:
        noise: the curve to compare with.
        entries: the other curves.
        attacks: names.
    """

    def __init__(self, spec: dict[str, Any], budget: Budget, rows: dict[str, RowSpec], store: Store) -> None:
        def entry(method: str, label: str, of_seed: Callable[[int], list[Experiment]]) -> Entry:
            every = [one for seed in seeds_of(spec, budget) for one in of_seed(seed)]
            return Entry(method, label, collect(every, store))

        self.noise = entry("noise alone", "noise alone", lambda seed: level_experiments(spec, budget, seed))
        self.entries = []
        for one in spec["variants"]:
            label = f"{one['method']}, σ {one['settings']['noise_std']:g}"
            cem = entry(one["method"], label, lambda seed, one=one: variant_experiments(spec, budget, one, seed))
            self.entries.append(cem)
        for row in (rows[name] for name in spec.get("added", ())):
            own = entry(row.label, row.label, lambda seed, row=row: level_experiments(spec, budget, seed, row))
            self.entries.append(own)
        self.attacks = shared_attacks(self.every)

    @property
    def every(self) -> list[SeedResults]:
        """All settings, measured or not."""
        return [one for entry in (self.noise, *self.entries) for one in entry.results]

    def compared(self, settings: Sequence[SeedResults]) -> tuple[Comparison | None, Comparison | None]:
        """The strongest attack's error over that of noise alone; the share identified less that of noise alone."""
        levels = [one for one in self.noise.results if one.results]
        error = compare([one.by_seed(self.attacks) for one in levels], *(one.by_seed(self.attacks) for one in settings))
        identified = compare(
            [one.identified_by_seed() for one in levels],
            *(one.identified_by_seed() for one in settings),
            higher_protects=False,
        )
        return error, identified

    def methods(self) -> dict[str, tuple[list[SeedResults], int]]:
        """By method the measured settings whose accuracy noise alone reaches, and how many are measured."""
        found: dict[str, tuple[list[SeedResults], int]] = {}
        for entry in self.entries:
            measured = [one for one in entry.results if one.results]
            kept = [one for one in measured if (error := self.compared([one])[0]) is not None and error.within]
            before, count = found.get(entry.method, ([], 0))
            found[entry.method] = [*before, *kept], count + len(measured)
        return found


def leaderboard_table(spec: dict[str, Any], board: Board, remarks: Sequence[str]) -> Table:
    """One line per setting and one per method, and in the first notes what that says."""
    lines = [
        Row(_setting(entry, one), _cells(board, one, compared=entry is not board.noise), note=seeds_note(one))
        for entry in (board.noise, *board.entries)
        for one in entry.results
    ]
    sentences = []
    for method, (settings, count) in board.methods().items():
        error, identified = board.compared(settings)
        blank = (Cell(),) * (2 + len(_METRICS))
        note = f"{len(settings)} of {count} settings comparable"
        lines.append(Row(f"{method}, all settings", (*blank, *_gains(error, identified)), note=note, emphasis=True))
        sentences.append(verdict(method, error, identified, len(settings), count))
    notes = (
        *sentences,
        "Compared with noise alone at the same accuracy, interpolated between its levels: a ratio above 1, or a "
        "difference below 0, is better than noise. Geometric mean of the ratios and mean of the differences over the "
        "comparable settings; 95 % intervals by the delete-one-seed jackknife. Information and certificates are in "
        "nats and shares of the test images.",
        *([f"The error is that of the strongest of: {', '.join(board.attacks)}."] if board.attacks else []),
        *remarks,
    )
    return Table(spec["title"], _COLUMNS, tuple(lines), notes, corner="setting")


def verdict(method: str, error: Comparison | None, identified: Comparison | None, settings: int, count: int) -> str:
    """One sentence that claims no more than the intervals allow."""
    if error is None or identified is None:
        return f"{method} is not comparable with noise alone yet: {settings} of {count} measured settings are."
    found = (
        f"At equal accuracy the strongest attack's error with {method} is {error.effect:.2f} times that with noise "
        f"alone{_range(error, '{:.2f}')}, and the share of images identified differs by "
        f"{100 * identified.effect:+.1f} points{_range(identified, '{:+.1f}', 100)}; {error.seeds} "
        f"seed{'s' if error.seeds != 1 else ''}, {settings} of {count} settings comparable"
    ).replace("-", "−")
    if error.interval is None or identified.interval is None:
        return f"{found}: without an interval nothing follows."
    return (
        f"{found}: against reconstruction {_judged(error.interval[0] > 1, error.interval[1] < 1, method)}, against "
        f"identification {_judged(identified.interval[1] < 0, identified.interval[0] > 0, method)}."
    )


def _judged(better: bool, worse: bool, method: str) -> str:
    if better:
        return f"{method} protects better"
    return "noise alone protects better" if worse else "noise alone does as well"


def leaderboard_figures(board: Board) -> list[tuple[str, Drawn]]:
    """(caption, SVG): accuracy against the strongest attack's error, and against the share of images identified."""
    errors, shares, variants = [], [], Counter[str]()
    for entry in (board.noise, *board.entries):
        points = trade_off_points(entry.results, board.attacks, partial(_working_point, entry))
        if not points:
            continue
        variant = variants[entry.method]
        variants[entry.method] += 1
        measured = [(one, one.figure("identified"), one.figure("accuracy")) for one in entry.results if one.results]
        places = tuple(
            Point(100 * share.mean, 100 * accuracy.mean, note=_working_point(entry, one))
            for one, share, accuracy in measured
            if share is not None and accuracy is not None
        )
        errors.append(Curve(entry.method, points, name=entry.label, variant=variant))
        shares.append(Curve(entry.method, places, name=entry.label, variant=variant))
    if not errors:
        return []
    along = "CEM runs along lambda, everything else along the noise"
    return [
        (
            f"Accuracy against the strongest attack's error\n{along}; up and to the right is better.",
            trade_off(errors, key="leaderboard-error", errors="standard deviation over seeds"),
        ),
        (
            f"Accuracy against identification\n{along}; up and to the left is better.",
            line_figure(
                shares,
                ("identified, %", "accuracy, %"),
                key="leaderboard-identified",
                title="Accuracy against identification",
            ),
        ),
    ]


def _working_point(entry: Entry, one: SeedResults) -> str:
    train = one.experiment.train
    return f"λ {train.lam:g}" if entry.method == "CEM" else f"σ {train.noise_std:g}"


def _setting(entry: Entry, one: SeedResults) -> str:
    point = _working_point(entry, one)
    return f"{entry.label}, {point}"


def _cells(board: Board, one: SeedResults, *, compared: bool) -> tuple[Cell, ...]:
    error = one.error(board.attacks)
    gains = board.compared([one]) if compared and one.results else (None, None)
    return (
        cell("accuracy", one.figure("accuracy")),
        Cell(None if error is None else error.mean, None if error is None else error.sd),
        *(cell(name, one.figure(name)) for name in _METRICS.values()),
        *_gains(*gains),
    )


def _gains(error: Comparison | None, identified: Comparison | None) -> tuple[Cell, ...]:
    if error is None or identified is None or not error.within:
        return (Cell(),) * 4
    return (
        Cell(error.effect, digits=2),
        Cell(text=_ends(error, "{:.2f}") or MISSING),
        Cell(100 * identified.effect, digits=1),
        Cell(text=_ends(identified, "{:.1f}", 100) or MISSING),
    )


def _ends(found: Comparison, form: str, scale: float = 1.0) -> str:
    ends = [] if found.interval is None else [form.format(scale * end).replace("-", "−") for end in found.interval]
    return " to ".join(ends)


def _range(found: Comparison, form: str, scale: float = 1.0) -> str:
    ends = _ends(found, form, scale)
    return f" (95 % interval {ends})" if ends else ""
