"""Variants against noise alone at equal accuracy: the ablations, the leaderboard and the study on the digits."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from sfumato.report.averages import Mean
from sfumato.report.chart import Curve, Point
from sfumato.report.drawn import Drawn
from sfumato.report.figures import line_figure, trade_off
from sfumato.report.tables import MISSING, Cell, Row, Table
from sfumato.studies.curves import trade_off_points
from sfumato.studies.equal_accuracy import Comparison, compare
from sfumato.studies.results import LEAKAGE, SPREAD, Collected, SeedResults, attackers, cell, shared_attacks

_METRICS = {**LEAKAGE, "its standard error": "information_error", "identified at most": "identified_at_most"}
_LEADERBOARD = (
    *("accuracy", "strongest MSE, test", *_METRICS),
    *("MSE over noise alone", "95 %", "identified less noise alone, points", "95 %, points"),
)
_ABLATION = ("accuracy", "MSE, test", "over noise alone", "95 %", "over the default", "95 %, paired")


class Variants:
    """What was measured of a spec's variants, compared by the attacks that all results have.

    Attributes:
        noise: noise alone, the curve to compare with.
        others: the variants and, in the leaderboard, the added rows.
        attacks: names.
        unit: what the intervals are over, seeds or folds.
    """

    def __init__(self, spec: dict[str, Any], found: Sequence[Collected]) -> None:
        self.unit = "fold" if spec.get("folds") else "seed"
        self.noise, *self.others = found
        self.attacks = shared_attacks(one for _, results in found for one in results)

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

    def curve(self, variant: Collected, family: str, name: str, kind: int) -> Curve:
        """The variant's measured points as a curve of a figure."""
        return Curve(family, trade_off_points(variant.results, self.attacks, _strength), name=name, variant=kind)


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
        note = f"{len(points)} of {len(one.results)} points comparable, {one.results[0].note or '-'}"
        lines.append(Row(f"{one.group.family}: {one.group.label}", cells, note=note))
    notes = (
        "Accuracy and error: from the smallest to the largest lambda, averaged over seeds. Over noise alone: the error "
        "at equal accuracy, geometric mean over the comparable points; intervals by the delete-one-seed jackknife.",
        *([attackers(found.attacks)] if found.attacks else []),
        *remarks,
    )
    return Table(spec["title"], _ABLATION, tuple(lines), notes, corner="variant")


def ablation_figures(spec: dict[str, Any], found: Variants) -> list[tuple[str, Drawn]]:
    """One (caption, SVG) per axis: noise alone, the default, and the variants of this setting."""
    default, *others = found.others
    figures = []
    for axis in dict.fromkeys(one.group.family for one in others):
        shown = [(found.noise, "noise alone", 0), (default, "default", 1)]
        shown += [(one, one.group.label, 1) for one in others if one.group.family == axis]
        drawn = [found.curve(one, name, name, kind) for one, name, kind in shown]
        drawn = [one for one in drawn if one.points]
        if len(drawn) > 2:
            svg = trade_off(drawn, key=f"ablation-{axis.replace(' ', '-')}", errors=SPREAD)
            figures.append((f"{axis}\nEach curve runs along lambda; up and to the right is better.", svg))
    return figures


def leaderboard_table(spec: dict[str, Any], found: Variants, remarks: Sequence[str]) -> Table:
    """One line per setting and one per method, and in the first notes what that says."""
    lines, sentences = [], []
    for variant in (found.noise, *found.others):
        for one in variant.results:
            compared = variant is not found.noise and one.results and found.comparable([one])
            cells = (
                cell("accuracy", one.figure("accuracy")),
                cell("strongest_mse_test", one.error(found.attacks)),
                *one.cells(_METRICS.values()),
                *(_gains(found, [one]) if compared else (Cell(),) * 4),
            )
            lines.append(Row(f"{variant.group.label}, {_strength(one)}", cells, note=one.note))
    for method in dict.fromkeys(variant.group.family for variant in found.others):
        same = [variant for variant in found.others if variant.group.family == method]
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
        *([attackers(found.attacks)] if found.attacks else []),
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
    if errors == shares:
        return f"{text}: against reconstruction and identification alike {errors}."
    return f"{text}: against reconstruction {errors}, against identification {shares}."


def leaderboard_figures(spec: dict[str, Any], found: Variants) -> list[tuple[str, Drawn]]:
    """(caption, SVG): accuracy against the strongest attack's error, and against the share of images identified."""
    errors, shares, kinds = [], [], Counter[str]()
    for variant in (found.noise, *found.others):
        _, label, family, _ = variant.group
        curve = found.curve(variant, family, label, kinds[family])
        if not curve.points:
            continue
        kinds[family] += 1
        errors.append(curve)
        measured = [(one.figure("identified"), one.figure("accuracy"), _strength(one)) for one in variant.results]
        places = [Point(100 * x.mean, 100 * y.mean, note=note) for x, y, note in measured if x is not None and y]
        if places:
            shares.append(Curve(family, tuple(places), label, curve.variant))
    along = "CEM runs along lambda, everything else along the noise; up and to the"
    figures = []
    if errors:
        title = "Accuracy against the strongest attack's error"
        svg = trade_off(errors, key=f"{spec['name']}-error", errors=SPREAD)
        figures.append((f"{title}\n{along} right is better. {attackers(found.attacks)}", svg))
    if shares:
        title = "Accuracy against identification"
        svg = line_figure(shares, ("identified, %", "accuracy, %"), key=f"{spec['name']}-identified", title=title)
        figures.append((f"{title}\n{along} left is better.", svg))
    return figures


def _strength(one: SeedResults) -> str:
    train = one.experiment.train
    return f"λ {train.lam:g}" if train.cem else f"σ {train.noise_std:g}"


def _span(figures: Sequence[Mean | None], *, percent: bool = False) -> Cell:
    means = [figure.mean for figure in figures if figure is not None]
    if not means:
        return Cell()
    first, last = (Cell(value, percent=percent).shown for value in (means[0], means[-1]))
    return Cell(text=f"{first} to {last}")


def _gains(found: Variants, settings: Sequence[SeedResults]) -> tuple[Cell, ...]:
    return *_ratio(found.over_noise(settings)), *_difference(found.identified(settings))


def _ratio(found: Comparison | None) -> tuple[Cell, Cell]:
    return _effect(found, 1.0, 2)


def _difference(found: Comparison | None) -> tuple[Cell, Cell]:
    return _effect(found, 100.0, 1)


def _effect(found: Comparison | None, scale: float, digits: int) -> tuple[Cell, Cell]:
    """An effect and its interval."""
    if found is None:
        return Cell(), Cell(text=MISSING)
    ends = [f"{scale * end:.{digits}f}".replace("-", "−") for end in found.interval or ()]
    return Cell(scale * found.effect, digits=digits), Cell(text=" to ".join(ends) or MISSING)
