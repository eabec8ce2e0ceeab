"""Variants against noise alone at equal accuracy: the ablations, the leaderboard and the study on the digits."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sfumato.report.averages import Mean
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
_LEADERBOARD = (
    *("accuracy", "strongest MSE, test", *_METRICS),
    *("MSE over noise alone", "95 %", "identified less noise alone, points", "95 %, points"),
)
_ABLATION = ("accuracy", "MSE, test", "over noise alone", "95 %", "over the default", "95 %, paired")


@dataclass(frozen=True)
class Variant:
    """A curve: noise alone or an added row along the noise, a variant of CEM along lambda.

    Attributes:
        group: what it is one of: the method, or in an ablation the setting that it changes.
    """

    group: str
    label: str
    results: list[SeedResults]


class Variants:
    """What was measured of a spec's variants, compared by the attacks that all results have.

    Attributes:
        noise: noise alone, the curve to compare with.
        others: the variants and, in the leaderboard, the added rows.
        attacks: names.
        unit: what the intervals are over, seeds or folds.
    """

    def __init__(self, spec: dict[str, Any], budget: Budget, rows: dict[str, RowSpec], store: Store) -> None:
        def variant(group: str, label: str, of_seed: Callable[[int], list[Experiment]]) -> Variant:
            every = [one for seed in seeds_of(spec, budget) for one in of_seed(seed)]
            return Variant(group, label, collect(every, store))

        self.unit = "fold" if spec.get("folds") else "seed"
        self.noise = variant("noise alone", "noise alone", partial(level_experiments, spec, budget))
        self.others = [
            variant(
                one.get("method") or one["axis"],
                one.get("label") or f"{one['method']}, σ {one['settings']['noise_std']:g}",
                partial(variant_experiments, spec, budget, one),
            )
            for one in spec["variants"]
        ]
        for row in (rows[name] for name in spec.get("added", ()) if spec["kind"] == "leaderboard"):
            self.others.append(variant(row.label, row.label, partial(level_experiments, spec, budget, row=row)))
        self.attacks = shared_attacks(self.every)

    @property
    def every(self) -> list[SeedResults]:
        """All settings, measured or not."""
        return [one for variant in (self.noise, *self.others) for one in variant.results]

    @property
    def work(self) -> str:
        """How much one training and its attack are, in words."""
        one = self.every[0].experiment
        images = "all" if one.train.limit is None else f"{one.train.limit:,}"
        return f"{images} training images, {one.train.epochs} epochs, decoding attack of {one.attacks[0].epochs}"

    def over_noise(self, settings: Sequence[SeedResults], against: Sequence[SeedResults] = ()) -> Comparison | None:
        """The strongest attack's error over that of noise alone, or that ratio over the one of other settings."""
        curve, ours, theirs = (
            [one.by_seed(self.attacks) for one in many if one.results]
            for many in (self.noise.results, settings, against)
        )
        return compare(curve, *ours, against=theirs)

    def identified(self, settings: Sequence[SeedResults]) -> Comparison | None:
        """The share of images identified less that of noise alone."""
        levels = [one.by_seed() for one in self.noise.results if one.results]
        return compare(levels, *(one.by_seed() for one in settings), higher_protects=False)

    def comparable(self, settings: Iterable[SeedResults]) -> list[SeedResults]:
        """Those that are measured, at an accuracy that noise alone reaches."""
        measured = [one for one in settings if one.results]
        return [one for one in measured if (found := self.over_noise([one])) is not None and found.within]


def ablation_table(spec: dict[str, Any], found: Variants, remarks: Sequence[str]) -> Table:
    """One line per variant of CEM: what it gains over noise alone, and over the default, the first of them."""
    lines, default = [], found.others[0]
    for one in found.others:
        points, others = (found.comparable(variant.results) for variant in (one, default))
        over_default = found.over_noise(points, others) if points and others and one is not default else None
        cells = (
            _span([point.figure("accuracy") for point in one.results], percent=True),
            _span([point.error(found.attacks) for point in one.results]),
            *_ratio(found.over_noise(points)),
            *_ratio(over_default),
        )
        note = f"{len(points)} of {len(one.results)} points comparable, {seeds_note(one.results[0]) or '-'}"
        lines.append(Row(f"{one.group}: {one.label}", cells, note=note))
    notes = (
        "Accuracy and error: from the smallest to the largest lambda, averaged over seeds. Over noise alone: the error "
        "at equal accuracy, geometric mean over the comparable points; intervals by the delete-one-seed jackknife.",
        *_attackers(found),
        *remarks,
    )
    return Table(spec["title"], _ABLATION, tuple(lines), notes, corner="variant")


def ablation_figures(found: Variants) -> list[tuple[str, Drawn]]:
    """One (caption, SVG) per axis: noise alone, the default, and the variants of this setting."""
    default, figures = found.others[0], []
    for axis in dict.fromkeys(one.group for one in found.others[1:]):
        drawn = [_curve(found, found.noise, "noise alone", 0), _curve(found, default, "default", 1)]
        drawn += [_curve(found, one, one.label, 1) for one in found.others if one.group == axis]
        drawn = [one for one in drawn if one.points]
        if len(drawn) > 2:
            svg = trade_off(drawn, key=f"ablation-{axis.replace(' ', '-')}", errors="standard deviation over seeds")
            figures.append((f"{axis}\nEach curve runs along lambda; up and to the right is better.", svg))
    return figures


def _curve(found: Variants, variant: Variant, name: str, kind: int) -> Curve:
    return Curve(name, trade_off_points(variant.results, found.attacks, _strength), name=name, variant=kind)


def leaderboard_table(spec: dict[str, Any], found: Variants, remarks: Sequence[str]) -> Table:
    """One line per setting and one per method, and in the first notes what that says."""
    lines, sentences = [], []
    for variant in (found.noise, *found.others):
        for one in variant.results:
            compared = variant is not found.noise and one.results
            gains = _gains(found, [one]) if compared and found.comparable([one]) else (Cell(),) * 4
            cells = (
                cell("accuracy", one.figure("accuracy")),
                cell("strongest_mse_test", one.error(found.attacks)),
                *(cell(name, one.figure(name)) for name in _METRICS.values()),
            )
            lines.append(Row(f"{variant.label}, {_strength(one)}", (*cells, *gains), note=seeds_note(one)))
    for method in dict.fromkeys(variant.group for variant in found.others):
        same = [variant for variant in found.others if variant.group == method]
        measured = [one for variant in same for one in variant.results if one.results]
        settings = found.comparable(measured)
        count = f"{len(settings)} of {len(measured)} settings comparable"
        gains = (*(Cell(),) * (2 + len(_METRICS)), *_gains(found, settings))
        lines.append(Row(f"{method}, all settings", gains, note=count, emphasis=True))
        sentences.append(_verdict(method, found, settings, count))
    notes = (
        *sentences,
        "Compared with noise alone at the same accuracy, interpolated between its levels: a ratio above 1, or a "
        "difference below 0, is better than noise. Geometric mean of the ratios and mean of the differences over the "
        f"comparable settings; 95 % intervals by the delete-one-{found.unit} jackknife.",
        *_attackers(found),
        *remarks,
    )
    return Table(spec["title"], _LEADERBOARD, tuple(lines), notes, corner="setting")


def _verdict(method: str, found: Variants, settings: Sequence[SeedResults], count: str) -> str:
    """One sentence that claims no more than the intervals allow."""
    error, share = found.over_noise(settings), found.identified(settings)
    if error is None or share is None:
        return f"{method} is not comparable with noise alone yet: {count}."
    (ratio, ends), (points, limits) = _ratio(error), _difference(share)
    known = error.interval is not None and share.interval is not None
    first, second = (f" (95 % interval {ends.shown})", f" ({limits.shown})") if known else ("", "")
    text = (
        f"At equal accuracy the strongest attack's error with {method} is {ratio.shown} times that with noise "
        f"alone{first}, and the share of images identified differs by {points.shown} points{second}; {error.seeds} "
        f"{found.unit}{'s' * (error.seeds != 1)}, {count}"
    )
    if error.interval is None or share.interval is None:
        return f"{text}: without an interval nothing follows."
    (low, high), (least, most) = error.interval, share.interval
    said = {1: f"{method} protects better", 0: "noise alone does as well", -1: "noise alone protects better"}
    errors, shares = said[(low > 1) - (high < 1)], said[(most < 0) - (least > 0)]
    return f"{text}: against reconstruction {errors}, against identification {shares}."


def leaderboard_figures(spec: dict[str, Any], found: Variants) -> list[tuple[str, Drawn]]:
    """(caption, SVG): accuracy against the strongest attack's error, and against the share of images identified."""
    errors, shares, kinds = [], [], Counter[str]()
    for variant in (found.noise, *found.others):
        if not (points := trade_off_points(variant.results, found.attacks, _strength)):
            continue
        kind = kinds[variant.group]
        kinds[variant.group] += 1
        errors.append(Curve(variant.group, points, variant.label, kind))
        measured = [(one.figure("identified"), one.figure("accuracy"), _strength(one)) for one in variant.results]
        places = [Point(100 * x.mean, 100 * y.mean, note=note) for x, y, note in measured if x is not None and y]
        if places:
            shares.append(Curve(variant.group, tuple(places), variant.label, kind))
    along = "CEM runs along lambda, everything else along the noise; up and to the"
    figures = []
    if errors:
        spread = "standard deviation over seeds"
        title = "Accuracy against the strongest attack's error"
        svg = trade_off(errors, key=f"{spec['name']}-error", errors=spread)
        figures.append((f"{title}\n{along} right is better. {' '.join(_attackers(found))}", svg))
    if shares:
        title = "Accuracy against identification"
        svg = line_figure(shares, ("identified, %", "accuracy, %"), key=f"{spec['name']}-identified", title=title)
        figures.append((f"{title}\n{along} left is better.", svg))
    return figures


def _strength(one: SeedResults) -> str:
    train = one.experiment.train
    return f"λ {train.lam:g}" if train.cem else f"σ {train.noise_std:g}"


def _attackers(found: Variants) -> list[str]:
    return [f"The error is that of the strongest of: {', '.join(found.attacks)}."] if found.attacks else []


def _span(figures: Sequence[Mean | None], *, percent: bool = False) -> Cell:
    means = [figure.mean for figure in figures if figure is not None]
    if not means:
        return Cell()
    first, last = (Cell(value, percent=percent).shown for value in (means[0], means[-1]))
    return Cell(text=f"{first} to {last}")


def _gains(found: Variants, settings: Sequence[SeedResults]) -> tuple[Cell, ...]:
    return *_ratio(found.over_noise(settings)), *_difference(found.identified(settings))


def _ratio(found: Comparison | None) -> tuple[Cell, Cell]:
    return Cell(None if found is None else found.effect, digits=2), _ends(found, 1.0, 2)


def _difference(found: Comparison | None) -> tuple[Cell, Cell]:
    return Cell(None if found is None else 100 * found.effect, digits=1), _ends(found, 100.0, 1)


def _ends(found: Comparison | None, scale: float, digits: int) -> Cell:
    if found is None or found.interval is None:
        return Cell(text=MISSING)
    return Cell(text=" to ".join(f"{scale * end:.{digits}f}" for end in found.interval).replace("-", "−"))
