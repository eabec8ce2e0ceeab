"""Figures 3 and 4: points along the noise, as curves of accuracy and error or of error and entropy."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from sfumato.errors import ConfigError
from sfumato.experiments.budget import Budget, RowSpec
from sfumato.experiments.findings import Finding, collect, seeds_note
from sfumato.experiments.plan import curve_experiment
from sfumato.experiments.store import Store
from sfumato.report.cells import Cell, Row, Table
from sfumato.report.figures import Curve, Point, trade_off
from sfumato.report.scatter import Dot, Fit, Series, entropy_scatter

__all__ = ["curve_findings", "draw", "exponential_fit", "points_table"]


def curve_findings(
    spec: dict[str, Any], budget: Budget, rows: dict[str, RowSpec], store: Store
) -> list[tuple[dict[str, Any], list[Finding]]]:
    """Each curve of a figure with its findings in the order of its variances."""
    found = []
    for curve in spec["curves"]:
        experiments = [
            curve_experiment(spec, budget, rows, curve, variance, seed)
            for variance in spec["variances"]
            for seed in budget.seeds
        ]
        found.append((curve, collect(experiments, store)))
    return found


def points_table(
    spec: dict[str, Any], found: Sequence[tuple[dict[str, Any], list[Finding]]], notes: Sequence[str]
) -> Table:
    """The figure's points as a table."""
    kind = _kind(found)[0]
    lines = [
        Row(
            f"{curve['label']}, σ² {finding.experiment.train.noise_std**2:.3g}",
            (
                _cell(finding, "accuracy"),
                _cell(finding, "decoder_mse_train"),
                _cell(finding, "decoder_mse_test"),
                Cell(_information(finding, kind), digits=1),
            ),
            note=seeds_note(finding),
        )
        for curve, findings in found
        for finding in findings
    ]
    columns = ("accuracy", "decoder MSE, train", "decoder MSE, test", f"information ({_kind(found)[1]}), nats")
    return Table(spec["title"], columns, tuple(lines), tuple(notes), corner="point")


def draw(spec: dict[str, Any], found: Sequence[tuple[dict[str, Any], list[Finding]]]) -> tuple[str, str] | None:
    """(caption, SVG) of a figure; None where nothing was measured yet."""
    if not any(finding.results for _, findings in found for finding in findings):
        return None
    return _draw_entropy(spec, found) if spec["kind"] == "entropy" else _draw_curves(spec, found)


def exponential_fit(x: Sequence[float], y: Sequence[float]) -> Fit:
    """Least squares of log y on x: `y = a exp(b x)`, with R^2 on the logarithmic scale.

    Raises:
        ConfigError: fewer than two different x.
    """
    if len(set(x)) < 2:
        raise ConfigError("an exponential fit needs at least two different points; measure another one")
    logs = [math.log(value) for value in y]
    b, intercept = statistics.linear_regression(x, logs)
    mean = statistics.fmean(logs)
    residual = sum((log - intercept - b * value) ** 2 for value, log in zip(x, logs, strict=True))
    total = sum((log - mean) ** 2 for log in logs)
    return Fit(math.exp(intercept), b, 1.0 - residual / total if total > 0 else 1.0)


def _draw_curves(spec: dict[str, Any], found: Sequence[tuple[dict[str, Any], list[Finding]]]) -> tuple[str, str]:
    curves = []
    for curve, findings in found:
        points = []
        for finding in findings:
            accuracy, error = finding.figure("accuracy"), finding.figure("decoder_mse_test")
            if accuracy is None or error is None:
                continue
            note = f"σ² {finding.experiment.train.noise_std**2:.3g}"
            points.append(
                Point(error.mean, accuracy.mean, error.spread, accuracy.spread, note, converged=not finding.unconverged)
            )
        if points:
            curves.append(Curve(curve["label"], tuple(points), name=curve["label"], variant=int(curve["cem"])))
    svg = trade_off(curves, key=spec["name"], errors="standard deviation over seeds")
    return f"{spec['title']}\nEach curve runs along the noise; up and to the right is better.", svg


def _draw_entropy(spec: dict[str, Any], found: Sequence[tuple[dict[str, Any], list[Finding]]]) -> tuple[str, str]:
    kind, words = _kind(found)
    known = [_information(finding, kind) for _, findings in found for finding in findings]
    most = max(value for value in known if value is not None)
    series = []
    for curve, findings in found:
        dots = []
        for finding in findings:
            information, error = _information(finding, kind), finding.figure("decoder_mse_test")
            if information is None or error is None:
                continue
            note = f"σ² {finding.experiment.train.noise_std**2:.3g}"
            dots.append(
                Dot(most - information, error.mean, None, error.spread, note, converged=not finding.unconverged)
            )
        if dots:
            several = len({dot.entropy for dot in dots}) > 1
            fit = exponential_fit([dot.entropy for dot in dots], [dot.mse for dot in dots]) if several else None
            series.append(Series(curve["row"] + "+cem", tuple(dots), name=curve["label"], fit=fit))
    svg = entropy_scatter(series, key=spec["name"], errors="standard deviation over seeds")
    caption = (
        f"{spec['title']}\nThe entropy is relative: H(x) is unknown and replaced by the constant that puts the first "
        f"point at 0. Information: {words}. The fit is by least squares on the logarithm, R² on that scale."
    )
    return caption, svg


def _kind(found: Sequence[tuple[dict[str, Any], list[Finding]]]) -> tuple[str, str]:
    """Which information all points have, and what it is called; results of earlier versions only have the second."""
    bounds = [
        result["information_bounds"]
        for _, findings in found
        for finding in findings
        for result in finding.results.values()
        if result["information_bounds"]
    ]
    if all("held_out" in one for one in bounds):
        return "held_out", "upper bound on held-out features"
    return "diagonal", "diagonal mixture on training features, a signal and no bound"


def _information(finding: Finding, kind: str) -> float | None:
    values = [bounds[kind] for result in finding.results.values() if kind in (bounds := result["information_bounds"])]
    return statistics.fmean(values) if values else None


def _cell(finding: Finding, name: str) -> Cell:
    figure = finding.figure(name)
    if figure is None:
        return Cell(percent=name == "accuracy")
    return Cell(figure.mean, figure.spread, percent=name == "accuracy")
