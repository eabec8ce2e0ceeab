"""Figures 3 and 4: points along the noise, as curves of accuracy and error or of error and entropy."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

from sfumato.errors import ConfigError
from sfumato.experiments.budget import Budget, RowSpec
from sfumato.experiments.findings import Finding, collect, seeds_note, shared_attacks
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
    lines = [
        Row(
            f"{curve['label']}, σ² {finding.experiment.train.noise_std**2:.3g}",
            (
                _cell(finding, "accuracy"),
                _cell(finding, "decoder_mse_train"),
                _cell(finding, "decoder_mse_test"),
                _cell(finding, "strongest_mse_test"),
                _cell(finding, "identified"),
                _cell(finding, "information"),
            ),
            note=seeds_note(finding),
        )
        for curve, findings in found
        for finding in findings
    ]
    columns = (
        "accuracy",
        "decoder MSE, train",
        "decoder MSE, test",
        "strongest MSE, test",
        "identified",
        "information held out, nats",
    )
    return Table(spec["title"], columns, tuple(lines), tuple(notes), corner="point")


def draw(spec: dict[str, Any], found: Sequence[tuple[dict[str, Any], list[Finding]]]) -> tuple[str, str] | None:
    """(caption, SVG) of a figure; None where nothing was measured yet."""
    every = [finding for _, findings in found for finding in findings]
    names = shared_attacks(every)
    if spec["kind"] == "entropy":
        known = any(finding.figure("information") for finding in every)
        return _draw_entropy(spec, found, names) if known else None
    return _draw_curves(spec, found, names) if names else None


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


def _draw_curves(
    spec: dict[str, Any], found: Sequence[tuple[dict[str, Any], list[Finding]]], names: Sequence[str]
) -> tuple[str, str]:
    curves = []
    for curve, findings in found:
        points = []
        for finding in findings:
            accuracy, error = finding.figure("accuracy"), finding.error(names)
            if accuracy is None or error is None:
                continue
            note = f"σ² {finding.experiment.train.noise_std**2:.3g}"
            points.append(
                Point(error.mean, accuracy.mean, error.spread, accuracy.spread, note, converged=not finding.unconverged)
            )
        if points:
            curves.append(Curve(curve["label"], tuple(points), name=curve["label"], variant=int(curve["cem"])))
    svg = trade_off(curves, key=spec["name"], errors="standard deviation over seeds")
    caption = f"{spec['title']}\nEach curve runs along the noise; up and to the right is better. {_attackers(names)}"
    return caption, svg


def _draw_entropy(
    spec: dict[str, Any], found: Sequence[tuple[dict[str, Any], list[Finding]]], names: Sequence[str]
) -> tuple[str, str]:
    bounds = [finding.figure("information") for _, findings in found for finding in findings]
    most = max(figure.mean for figure in bounds if figure is not None)
    series = []
    for curve, findings in found:
        dots = []
        for finding in findings:
            information, error = finding.figure("information"), finding.error(names)
            if information is None or error is None:
                continue
            note = f"σ² {finding.experiment.train.noise_std**2:.3g}"
            dots.append(
                Dot(most - information.mean, error.mean, None, error.spread, note, converged=not finding.unconverged)
            )
        if dots:
            several = len({dot.entropy for dot in dots}) > 1
            fit = exponential_fit([dot.entropy for dot in dots], [dot.mse for dot in dots]) if several else None
            series.append(Series(curve["row"] + "+cem", tuple(dots), name=curve["label"], fit=fit))
    svg = entropy_scatter(series, key=spec["name"], errors="standard deviation over seeds")
    caption = (
        f"{spec['title']}\nThe entropy is relative: H(x) is unknown and replaced by the constant that puts the first "
        "point at 0. Information is the upper bound on held-out features. The fit is by least squares on the "
        f"logarithm, R² on that scale. {_attackers(names)}"
    )
    return caption, svg


def _attackers(names: Sequence[str]) -> str:
    return f"The error is that of the strongest of: {', '.join(names)}."


def _cell(finding: Finding, name: str) -> Cell:
    figure, percent = finding.figure(name), name in ("accuracy", "identified")
    digits = 1 if name in ("identified", "information") else None
    if figure is None:
        return Cell(digits=digits, percent=percent)
    return Cell(figure.mean, figure.spread, digits=digits, percent=percent)
