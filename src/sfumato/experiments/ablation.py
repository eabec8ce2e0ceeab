"""The ablation: each setting of CEM moved away from its default, every variant a curve over lambda."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sfumato.attacks import DecoderConfig
from sfumato.experiments.budget import Budget
from sfumato.experiments.equal_accuracy import equal_accuracy_error, jackknife_interval, within_curve
from sfumato.experiments.experiment import Experiment
from sfumato.experiments.findings import Figure, Finding, collect, seeds_note, shared_attacks, smallest_error
from sfumato.experiments.store import Store
from sfumato.report.cells import Cell, Row, Table
from sfumato.report.figures import Curve, Point, trade_off
from sfumato.training import TrainConfig

__all__ = ["Variant", "ablation_experiments", "ablation_figures", "ablation_table", "measure_variants"]

_NOISE = "noise"


@dataclass(frozen=True)
class Variant:
    """One variant against noise alone, at equal accuracy.

    Attributes:
        axis: which setting it changes.
        label: to what.
        findings: its points, by lambda.
        ratio: its error over that of noise alone at the same accuracy, the geometric mean over its comparable points;
            None where it has none.
        interval: 95 % of the ratio, delete-one-seed jackknife; None with one seed.
        against_default: the ratio over the default's.
        against_interval: 95 % of it, the seeds paired.
        comparable: points within the accuracies of the noise curve.
    """

    axis: str
    label: str
    findings: tuple[Finding, ...]
    ratio: float | None = None
    interval: tuple[float, float] | None = None
    against_default: float | None = None
    against_interval: tuple[float, float] | None = None
    comparable: int = 0


def ablation_experiments(
    spec: dict[str, Any], budget: Budget, *, wanted: Sequence[str] | None = None, seeds: Sequence[int] | None = None
) -> list[Experiment]:
    """Every point of every variant, the noise curve and the default first; all of one seed before the next."""
    found = []
    for seed in budget.seeds if seeds is None else seeds:
        if wanted is None or _NOISE in wanted:
            found += _noise_curve(spec, budget, seed)
        for variant in spec["variants"]:
            if wanted is None or variant["name"] in wanted:
                found += _points(spec, budget, variant, seed)
    return found


def measure_variants(spec: dict[str, Any], budget: Budget, store: Store) -> tuple[list[Finding], list[Variant]]:
    """The noise curve and all variants, as far as they are measured."""
    seeds = budget.seeds
    curve = collect([one for seed in seeds for one in _noise_curve(spec, budget, seed)], store)
    variants = [
        Variant(
            variant["axis"],
            variant["label"],
            tuple(collect([one for seed in seeds for one in _points(spec, budget, variant, seed)], store)),
        )
        for variant in spec["variants"]
    ]
    default = variants[0]
    return curve, [_judged(variant, default, curve) for variant in variants]


def ablation_table(spec: dict[str, Any], variants: Sequence[Variant], remarks: Sequence[str]) -> Table:
    """One line per variant: what it gains over noise alone, and over the default."""
    lines = []
    names = shared_attacks(finding for one in variants for finding in one.findings)
    for one in variants:
        low, high = one.interval or (None, None)
        against_low, against_high = one.against_interval or (None, None)
        lines.append(
            Row(
                f"{one.axis}: {one.label}",
                (
                    _range([finding.figure("accuracy") for finding in one.findings], percent=True),
                    _range([finding.error(names) for finding in one.findings]),
                    Cell(one.ratio, digits=2),
                    Cell(text=_between(low, high)),
                    Cell(one.against_default, digits=2),
                    Cell(text=_between(against_low, against_high)),
                ),
                note=f"{one.comparable} of {len(one.findings)} points comparable, {seeds_note(one.findings[0]) or '-'}",
            )
        )
    columns = ("accuracy", "MSE, test", "over noise alone", "95 %", "over the default", "95 %, paired")
    notes = (
        "Accuracy and error: from the smallest to the largest lambda, averaged over seeds. Over noise alone: the error "
        "at equal accuracy, geometric mean over the comparable points; intervals by the delete-one-seed jackknife.",
        *([f"The error is that of the strongest of: {', '.join(names)}."] if names else []),
        *remarks,
    )
    return Table(spec["title"], columns, tuple(lines), notes, corner="variant")


def ablation_figures(
    spec: dict[str, Any], curve: Sequence[Finding], variants: Sequence[Variant]
) -> list[tuple[str, str]]:
    """One (caption, SVG) per axis: noise alone, the default, and the variants of this setting."""
    figures = []
    default = variants[0]
    names = shared_attacks([*curve, *(finding for one in variants for finding in one.findings)])
    noise = Curve("noise alone", _dots(curve, names, noise=True), name="noise alone", variant=0)
    for axis in dict.fromkeys(one.axis for one in variants[1:]):
        own = [one for one in variants if one.axis == axis]
        drawn = [noise, Curve("default", _dots(default.findings, names), name="default", variant=1)]
        drawn += [Curve(one.label, _dots(one.findings, names), name=one.label, variant=1) for one in own]
        drawn = [one for one in drawn if one.points]
        if len(drawn) > 2:
            svg = trade_off(drawn, key=f"ablation-{axis.replace(' ', '-')}", errors="standard deviation over seeds")
            figures.append((f"{axis}\nEach curve runs along lambda; up and to the right is better.", svg))
    return figures


def _settings(spec: dict[str, Any], budget: Budget) -> dict[str, Any]:
    own: dict[str, Any] = spec["budgets"][budget.name.split("+")[0]]
    return own


def _noise_curve(spec: dict[str, Any], budget: Budget, seed: int) -> list[Experiment]:
    own = _settings(spec, budget)
    return [_experiment(own, budget, _NOISE, {"noise_std": noise}, seed) for noise in own["noise_stds"]]


def _points(spec: dict[str, Any], budget: Budget, variant: dict[str, Any], seed: int) -> list[Experiment]:
    own = _settings(spec, budget)
    unit = variant.get("unit")
    lams = own[unit] if unit == "published" else [lam * (own[unit] if unit else 1.0) for lam in own["lams"]]
    settings = {"cem": True, "noise_std": own["noise_std"], **variant.get("settings", {})}
    return [_experiment(own, budget, variant["name"], settings | {"lam": round(lam, 6)}, seed) for lam in lams]


def _experiment(own: dict[str, Any], budget: Budget, row: str, settings: dict[str, Any], seed: int) -> Experiment:
    base = budget.train_settings(own["dataset"]) if own["dataset"] != "digits" else {}
    train = TrainConfig(**(base | own["settings"] | settings), seed=seed)
    decoder = DecoderConfig(**(({} if own["dataset"] == "digits" else budget.decoder) | own["decoder"]), seed=seed)
    return Experiment(budget.name, own["dataset"], f"ablation_{row}", train, (decoder,))


def _judged(variant: Variant, default: Variant, curve: Sequence[Finding]) -> Variant:
    measured = [finding for finding in variant.findings if finding.results]
    seeds = sorted(set.intersection(*(set(one.results) for one in [*curve, *measured]))) if measured else []
    if not seeds:
        return variant

    names = shared_attacks([*curve, *measured, *default.findings])

    def curve_of(kept: Sequence[int]) -> list[tuple[float, float]]:
        return [(_accuracy(point, kept), _error(point, kept, names)) for point in curve]

    def comparable(findings: Sequence[Finding]) -> list[Finding]:
        return [one for one in findings if one.results and within_curve(curve_of(seeds), _accuracy(one, seeds))]

    def log_ratio(findings: Sequence[Finding], kept: Sequence[int]) -> float:
        return statistics.fmean(
            math.log(_error(one, kept, names) / equal_accuracy_error(curve_of(kept), _accuracy(one, kept)))
            for one in findings
        )

    mine = comparable(measured)
    if not mine:
        return variant
    ratio, interval = _with_interval(lambda kept: log_ratio(mine, kept), seeds)
    theirs = comparable(default.findings) if all(set(seeds) <= set(one.results) for one in default.findings) else []
    against: tuple[float | None, tuple[float, float] | None] = (None, None)
    if theirs and variant.axis != default.axis:
        against = _with_interval(lambda kept: log_ratio(mine, kept) - log_ratio(theirs, kept), seeds)
    return Variant(variant.axis, variant.label, variant.findings, ratio, interval, *against, len(mine))


def _with_interval(log: Any, seeds: Sequence[int]) -> tuple[float, tuple[float, float] | None]:
    ends = jackknife_interval(lambda kept: [log(kept)], seeds)
    return math.exp(log(seeds)), None if ends is None else (math.exp(ends[0]), math.exp(ends[1]))


def _accuracy(of: Finding, kept: Sequence[int]) -> float:
    return statistics.fmean(of.results[seed]["accuracy"] for seed in kept)


def _error(of: Finding, kept: Sequence[int], names: Sequence[str]) -> float:
    return statistics.fmean(smallest_error(of.results[seed], names) for seed in kept)


def _range(figures: Sequence[Figure | None], *, percent: bool = False) -> Cell:
    means = [figure.mean for figure in figures if figure is not None]
    if not means:
        return Cell()
    first, last = (Cell(value, percent=percent).shown for value in (means[0], means[-1]))
    return Cell(text=f"{first} to {last}")


def _between(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def _dots(findings: Sequence[Finding], names: Sequence[str], *, noise: bool = False) -> tuple[Point, ...]:
    points = []
    for one in findings:
        accuracy, error = one.figure("accuracy"), one.error(names)
        if accuracy is not None and error is not None:
            train = one.experiment.train
            note = f"σ {train.noise_std:g}" if noise else f"λ {train.lam:g}"
            points.append(
                Point(error.mean, accuracy.mean, error.spread, accuracy.spread, note, converged=not one.unconverged)
            )
    return tuple(points)
