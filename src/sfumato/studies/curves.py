"""Figures 3 and 4: points along the noise, as curves of accuracy and error or of error and entropy."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from sfumato.errors import ConfigError
from sfumato.report.chart import Curve, Fit, Point
from sfumato.report.figures import entropy_scatter, trade_off
from sfumato.report.tables import Row, Table
from sfumato.studies.engine import Store
from sfumato.studies.plan import Budget, RowSpec, curve_experiments
from sfumato.studies.results import SeedResults, cell, collect, seeds_note, shared_attacks

_COLUMNS = {
    "accuracy": "accuracy",
    "decoder MSE, train": "decoder_mse_train",
    "decoder MSE, test": "decoder_mse_test",
    "strongest MSE, test": "strongest_mse_test",
    "identified": "identified",
    "information held out, nats": "information",
}
_SPREAD = "standard deviation over seeds"

Curves = Sequence[tuple[dict[str, Any], list[SeedResults]]]
"""Each curve of a figure with its points' results, in the order of its variances."""


def collect_curves(spec: dict[str, Any], budget: Budget, rows: dict[str, RowSpec], store: Store) -> Curves:
    """What there is of a figure's curves."""
    seeds = budget.seeds
    return [
        (curve, collect([one for seed in seeds for one in curve_experiments(spec, budget, rows, curve, seed)], store))
        for curve in spec["curves"]
    ]


def points_table(spec: dict[str, Any], found: Curves, notes: Sequence[str]) -> Table:
    """The figure's points as a table."""
    lines = [
        Row(
            f"{curve['label']}, {_variance(one)}",
            tuple(cell(metric, one.figure(metric)) for metric in _COLUMNS.values()),
            note=seeds_note(one),
        )
        for curve, results in found
        for one in results
    ]
    return Table(spec["title"], tuple(_COLUMNS), tuple(lines), tuple(notes), corner="point")


def draw(spec: dict[str, Any], found: Curves) -> tuple[str, str] | None:
    """(caption, SVG) of a figure; None where nothing was measured yet."""
    every = [one for _, results in found for one in results]
    names = shared_attacks(every)
    if spec["kind"] == "entropy":
        known = [figure.mean for one in every if (figure := one.figure("information")) is not None]
        return _draw_entropy(spec, found, names, max(known)) if known else None
    if not names:
        return None
    curves = [
        Curve(curve["label"], points, name=curve["label"], variant=int(curve["cem"]))
        for curve, results in found
        if (points := trade_off_points(results, names, _variance))
    ]
    svg = trade_off(curves, key=spec["name"], errors=_SPREAD)
    return f"{spec['title']}\nEach curve runs along the noise; up and to the right is better. {_attackers(names)}", svg


def trade_off_points(
    results: Sequence[SeedResults], names: Sequence[str], note: Callable[[SeedResults], str]
) -> tuple[Point, ...]:
    """Accuracy against the error of the strongest of these attacks, for what is measured."""
    points = []
    for one in results:
        accuracy, error = one.figure("accuracy"), one.error(names)
        if accuracy is not None and error is not None:
            spreads, converged = (error.sd, accuracy.sd), not one.unconverged
            points.append(Point(error.mean, accuracy.mean, *spreads, note(one), converged=converged))
    return tuple(points)


def exponential_fit(x: Sequence[float], y: Sequence[float]) -> Fit:
    """Least squares of log y on x: `y = a exp(b x)`, with R^2 on the logarithmic scale."""
    if len(set(x)) < 2:
        raise ConfigError("an exponential fit needs at least two different points; measure another one")
    logs = [math.log(value) for value in y]
    b, intercept = statistics.linear_regression(x, logs)
    mean = statistics.fmean(logs)
    residual = sum((log - intercept - b * value) ** 2 for value, log in zip(x, logs, strict=True))
    total = sum((log - mean) ** 2 for log in logs)
    return Fit(math.exp(intercept), b, 1.0 - residual / total if total > 0 else 1.0)


def _draw_entropy(spec: dict[str, Any], found: Curves, names: Sequence[str], most: float) -> tuple[str, str]:
    series = []
    for curve, results in found:
        dots = []
        for one in results:
            information, error = one.figure("information"), one.error(names)
            if information is not None and error is not None:
                entropy, converged = most - information.mean, not one.unconverged
                dots.append(Point(entropy, error.mean, None, error.sd, _variance(one), converged=converged))
        if dots:
            several = len({dot.x for dot in dots}) > 1
            fit = exponential_fit([dot.x for dot in dots], [dot.y for dot in dots]) if several else None
            series.append(Curve(curve["row"] + "+cem", tuple(dots), name=curve["label"], fit=fit))
    svg = entropy_scatter(series, key=spec["name"], errors=_SPREAD)
    caption = (
        f"{spec['title']}\nThe entropy is relative: H(x) is unknown and replaced by the constant that puts the first "
        "point at 0. Information is the upper bound on held-out features. The fit is by least squares on the "
        f"logarithm, R² on that scale. {_attackers(names)}"
    )
    return caption, svg


def _variance(one: SeedResults) -> str:
    return f"σ² {one.experiment.train.noise_std**2:.3g}"


def _attackers(names: Sequence[str]) -> str:
    return f"The error is that of the strongest of: {', '.join(names)}."
