"""The ablation: each setting of CEM moved away from its default, every variant a curve over lambda."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sfumato.attacks import DecoderConfig
from sfumato.experiments.budget import Budget
from sfumato.experiments.equal_accuracy import T_QUANTILES, equal_accuracy_error, jackknife, within_curve
from sfumato.experiments.experiment import Experiment
from sfumato.experiments.findings import Finding, collect, metric, seeds_note
from sfumato.experiments.store import Store
from sfumato.report.cells import Cell, Row, Table
from sfumato.report.figures import Curve, Point, trade_off
from sfumato.training import TrainConfig

__all__ = ["Variant", "ablation_experiments", "ablation_figures", "ablation_table", "measure_variants"]

_ERROR = "decoder_mse_test"
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
    for one in variants:
        low, high = one.interval or (None, None)
        against_low, against_high = one.against_interval or (None, None)
        lines.append(
            Row(
                f"{one.axis}: {one.label}",
                (
                    _range(one, "accuracy", percent=True),
                    _range(one, _ERROR),
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
        *remarks,
    )
    return Table(spec["title"], columns, tuple(lines), notes, corner="variant")


def ablation_figures(
    spec: dict[str, Any], curve: Sequence[Finding], variants: Sequence[Variant]
) -> list[tuple[str, str]]:
    """One (caption, SVG) per axis: noise alone, the default, and the variants of this setting."""
    figures = []
    default = variants[0]
    noise = Curve("noise alone", _dots(curve, noise=True), name="noise alone", variant=0)
    for axis in dict.fromkeys(one.axis for one in variants[1:]):
        own = [one for one in variants if one.axis == axis]
        drawn = [noise, Curve("default", _dots(default.findings), name="default", variant=1)]
        drawn += [Curve(one.label, _dots(one.findings), name=one.label, variant=1) for one in own]
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

    def curve_of(kept: Sequence[int]) -> list[tuple[float, float]]:
        return [(_mean(point, "accuracy", kept), _mean(point, _ERROR, kept)) for point in curve]

    def comparable(findings: Sequence[Finding]) -> list[Finding]:
        return [one for one in findings if one.results and within_curve(curve_of(seeds), _mean(one, "accuracy", seeds))]

    def log_ratio(findings: Sequence[Finding], kept: Sequence[int]) -> float:
        return statistics.fmean(
            math.log(_mean(one, _ERROR, kept) / equal_accuracy_error(curve_of(kept), _mean(one, "accuracy", kept)))
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
    value = log(seeds)
    if not 2 <= len(seeds) <= len(T_QUANTILES) + 1:
        return math.exp(value), None
    ((_, error),) = jackknife(lambda kept: [log(kept)], seeds)
    half = T_QUANTILES[len(seeds) - 1] * error
    return math.exp(value), (math.exp(value - half), math.exp(value + half))


def _mean(of: Finding, name: str, kept: Sequence[int]) -> float:
    return statistics.fmean(value for seed in kept if (value := metric(of.results[seed], name)) is not None)


def _range(variant: Variant, name: str, *, percent: bool = False) -> Cell:
    figures = [figure.mean for one in variant.findings if (figure := one.figure(name)) is not None]
    if not figures:
        return Cell()
    first, last = (Cell(value, percent=percent).shown for value in (figures[0], figures[-1]))
    return Cell(text=f"{first} to {last}")


def _between(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None else f"{low:.2f} to {high:.2f}"


def _dots(findings: Sequence[Finding], *, noise: bool = False) -> tuple[Point, ...]:
    points = []
    for one in findings:
        accuracy, error = one.figure("accuracy"), one.figure(_ERROR)
        if accuracy is not None and error is not None:
            train = one.experiment.train
            note = f"σ {train.noise_std:g}" if noise else f"λ {train.lam:g}"
            points.append(
                Point(error.mean, accuracy.mean, error.spread, accuracy.spread, note, converged=not one.unconverged)
            )
    return tuple(points)
