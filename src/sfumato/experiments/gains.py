"""What CEM gains at equal accuracy: its points against the same defence's curve over the noise."""

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sfumato.experiments.budget import Budget, RowSpec, load_spec, spec_names
from sfumato.experiments.equal_accuracy import T_QUANTILES, equal_accuracy_error, jackknife, within_curve
from sfumato.experiments.findings import Finding, collect, metric
from sfumato.experiments.plan import experiments_of
from sfumato.experiments.store import Store
from sfumato.report.cells import Cell, Row, Table

__all__ = ["Gain", "equal_accuracy_gains", "gains_table"]

_ERROR = "decoder_mse_test"


@dataclass(frozen=True)
class Gain:
    """One setting of CEM against the curve of the same defence without it.

    Attributes:
        row, cut, noise_std, lam: the setting.
        accuracy, error: of CEM, averaged over seeds.
        curve_error: of the defence without CEM at that accuracy.
        ratio: error / curve_error, averaged as a logarithm.
        interval: 95 % of the ratio, delete-one-seed jackknife; None with one seed.
        seeds: that all points of the curve and this one have.
        within: whether the curve reaches down to this accuracy.
    """

    row: str
    cut: int | str
    noise_std: float
    lam: float
    accuracy: float
    error: float
    curve_error: float
    ratio: float
    interval: tuple[float, float] | None
    seeds: int
    within: bool


def equal_accuracy_gains(dataset: str, budget: Budget, rows: dict[str, RowSpec], store: Store) -> list[Gain]:
    """Every measured setting of CEM whose defence was also measured without CEM at two or more noise levels.

    All tables and figures of this data set count. The error is the decoding attack's on unseen images, since the curves
    have no other attack.
    """
    findings = _findings(dataset, budget, rows, store)
    gains = []
    for finding in findings:
        train = finding.experiment.train
        if not train.cem or not finding.results:
            continue
        curve = sorted(
            (
                other
                for other in findings
                if not other.experiment.train.cem
                and other.results
                and (other.experiment.row, other.experiment.train.cut_at) == (finding.experiment.row, train.cut_at)
            ),
            key=lambda other: other.experiment.train.noise_std,
        )
        if (found := _gain(finding, curve)) is not None:
            gains.append(found)
    return gains


def gains_table(gains: Sequence[Gain], rows: dict[str, RowSpec], title: str) -> Table | None:
    """The gains as a table; None where there are none."""
    if not gains:
        return None
    columns = ("accuracy", "MSE, test", "MSE of the curve", "ratio", "from", "to")
    lines = []
    for one in sorted(gains, key=lambda gain: (gain.row, str(gain.cut), gain.lam, gain.noise_std)):
        low, high = one.interval or (None, None)
        where = "" if one.within else "below the curve's accuracies: not comparable; "
        lines.append(
            Row(
                f"{rows[one.row].label}+CEM, cut {one.cut}, σ {one.noise_std:g}, λ {one.lam:g}",
                (
                    Cell(one.accuracy, percent=True),
                    Cell(one.error),
                    Cell(one.curve_error),
                    Cell(one.ratio, digits=2),
                    Cell(low, digits=2),
                    Cell(high, digits=2),
                ),
                note=f"{where}{one.seeds} seed{'s' if one.seeds != 1 else ''}",
            )
        )
    notes = (
        "CEM's error over that of the same defence with more or less noise, interpolated at CEM's accuracy; above 1 "
        "CEM gains. Decoding attack, unseen images; 95 % interval by the delete-one-seed jackknife.",
    )
    return Table(title, columns, tuple(lines), notes, corner="setting")


def _findings(dataset: str, budget: Budget, rows: dict[str, RowSpec], store: Store) -> list[Finding]:
    experiments: dict[str, Any] = {}
    for name in spec_names():
        spec = load_spec(name)
        if spec["dataset"] == dataset and spec["kind"] not in ("efficiency", "ablation"):
            for experiment in experiments_of(spec, budget, rows):
                experiments[experiment.key] = experiment
    return _merged(collect(experiments.values(), store))


def _merged(findings: Iterable[Finding]) -> list[Finding]:
    """A point that a table and a figure both have (with other attacks) counts once, with the more seeds."""
    best: dict[tuple[Any, ...], Finding] = {}
    for finding in findings:
        train = finding.experiment.train
        key = (finding.experiment.row, train.cem, train.cut_at, train.noise_std, train.lam if train.cem else 0.0)
        if key not in best or len(finding.results) > len(best[key].results):
            best[key] = finding
    return list(best.values())


def _gain(finding: Finding, curve: Sequence[Finding]) -> Gain | None:
    levels = len(curve)
    seeds = sorted(set(finding.results).intersection(*(point.results for point in curve))) if curve else []
    if levels < 2 or not seeds:
        return None

    def mean(of: Finding, name: str, kept: Sequence[int]) -> float:
        return statistics.fmean(value for seed in kept if (value := metric(of.results[seed], name)) is not None)

    def curve_of(kept: Sequence[int]) -> list[tuple[float, float]]:
        return [(mean(point, "accuracy", kept), mean(point, _ERROR, kept)) for point in curve]

    def log_ratio(kept: Sequence[int]) -> list[float]:
        expected = equal_accuracy_error(curve_of(kept), mean(finding, "accuracy", kept))
        return [math.log(mean(finding, _ERROR, kept) / expected)]

    accuracy = mean(finding, "accuracy", seeds)
    interval = None
    log = log_ratio(seeds)[0]
    if 2 <= len(seeds) <= len(T_QUANTILES) + 1:
        ((_, error),) = jackknife(log_ratio, seeds)
        half = T_QUANTILES[len(seeds) - 1] * error
        interval = (math.exp(log - half), math.exp(log + half))
    train = finding.experiment.train
    return Gain(
        row=finding.experiment.row,
        cut=train.cut_at,
        noise_std=train.noise_std,
        lam=train.lam,
        accuracy=accuracy,
        error=mean(finding, _ERROR, seeds),
        curve_error=equal_accuracy_error(curve_of(seeds), accuracy),
        ratio=math.exp(log),
        interval=interval,
        seeds=len(seeds),
        within=within_curve(curve_of(seeds), accuracy),
    )
