"""Figures 3 and 4: their curves, the points as a table, and CEM's gain over the same defence at equal accuracy."""

import math
import statistics
from collections.abc import Callable, Sequence
from typing import Any

from sfumato.errors import ConfigError
from sfumato.report.chart import Curve, Fit, Point
from sfumato.report.drawn import Drawn
from sfumato.report.figures import entropy_scatter, trade_off
from sfumato.report.tables import Cell, Row, Table
from sfumato.studies.equal_accuracy import compare
from sfumato.studies.plan import RowSpec
from sfumato.studies.results import LEAKAGE, SPREAD, Collected, SeedResults, attackers, shared_attacks

_COLUMNS = {
    "accuracy": "accuracy",
    "decoder MSE, train": "decoder_mse_train",
    "decoder MSE, test": "decoder_mse_test",
    "strongest MSE, test": "strongest_mse_test",
    **LEAKAGE,
}


def points_table(spec: dict[str, Any], found: Sequence[Collected], notes: Sequence[str]) -> Table:
    """The figure's points as a table."""
    lines = [
        Row(f"{group.label}, {_variance(one)}", one.cells(_COLUMNS.values()), note=one.note)
        for group, results in found
        for one in results
    ]
    return Table(spec["title"], tuple(_COLUMNS), tuple(lines), tuple(notes), corner="point")


def draw(spec: dict[str, Any], found: Sequence[Collected]) -> tuple[str, Drawn] | None:
    """(caption, SVG) of a figure; None where nothing was measured yet."""
    every = [one for _, results in found for one in results]
    names = shared_attacks(every)
    if spec["kind"] == "entropy":
        known = [figure.mean for one in every if (figure := one.figure("information")) is not None]
        return _draw_entropy(spec, found, names, max(known)) if known else None
    if not names:
        return None
    curves = [
        Curve(group.label, points, name=group.label, variant=int(results[0].experiment.train.cem))
        for group, results in found
        if (points := trade_off_points(results, names, _variance))
    ]
    drawn = trade_off(curves, key=spec["name"], errors=SPREAD)
    along = "Each curve runs along the noise; up and to the right is better."
    return f"{spec['title']}\n{along} {attackers(names)}", drawn


def trade_off_points(
    results: Sequence[SeedResults], names: Sequence[str], note: Callable[[SeedResults], str]
) -> tuple[Point, ...]:
    """Accuracy against the error of the strongest of these attacks, for what is measured."""
    points = []
    for one in results:
        accuracy, error = one.figure("accuracy"), one.error(names)
        if accuracy is not None and error is not None:
            spreads, converged = (error.sd, accuracy.sd), not one.count(False)
            points.append(Point(error.mean, accuracy.mean, *spreads, note(one), converged=converged))
    return tuple(points)


def exponential_fit(x: Sequence[float], y: Sequence[float]) -> Fit:
    """Least squares of log y on x: `y = a exp(b x)`, with R^2 on the logarithmic scale."""
    if len(set(x)) < 2:
        raise ConfigError("an exponential fit needs at least two different points; measure another one")
    logs = [math.log(value) for value in y]
    b, intercept = statistics.linear_regression(x, logs)
    return Fit(math.exp(intercept), b, statistics.correlation(x, logs) ** 2 if len(set(logs)) > 1 else 1.0)


def _draw_entropy(
    spec: dict[str, Any], found: Sequence[Collected], names: Sequence[str], most: float
) -> tuple[str, Drawn]:
    curves = []
    for group, results in found:
        dots = []
        for one in results:
            information, error = one.figure("information"), one.error(names)
            if information is not None and error is not None:
                entropy, converged = most - information.mean, not one.count(False)
                dots.append(Point(entropy, error.mean, None, error.sd, _variance(one), converged=converged))
        if dots:
            several = len({dot.x for dot in dots}) > 1
            fit = exponential_fit([dot.x for dot in dots], [dot.y for dot in dots]) if several else None
            curves.append(Curve(group.name + "+cem", tuple(dots), name=group.label, fit=fit))
    caption = (
        f"{spec['title']}\nThe entropy is relative: H(x) is unknown and replaced by the constant that puts the first "
        "point at 0. Information is the upper bound on held-out features. The fit is by least squares on the "
        f"logarithm, R² on that scale. {attackers(names)}"
    )
    return caption, entropy_scatter(curves, key=spec["name"], errors=SPREAD)


def gains_table(curves: Sequence[Collected], rows: dict[str, RowSpec]) -> Table | None:
    """Every measured point with CEM of a figure against the same defence without it, at the same cut.

    The error is that of the strongest attack on unseen images, among those that the point and its whole curve have.
    None where no curve without CEM has two points.
    """
    every = [one for _, results in curves for one in results if one.results]
    lines = []
    for one in (one for one in every if one.experiment.train.cem):
        train, row = one.experiment.train, one.experiment.row
        curve = [
            other
            for other in every
            if (other.experiment.row, other.experiment.train.cut_at, other.experiment.train.cem)
            == (row, train.cut_at, False)
        ]
        names = shared_attacks([one, *curve])
        if (found := compare([level.by_seed(names) for level in curve], one.by_seed(names))) is None:
            continue
        low, high = found.interval or (None, None)
        where = "" if found.within else "below the curve's accuracies: not comparable; "
        label = f"{rows[row].label}+CEM, cut {train.cut_at}, σ {train.noise_std:g}, λ {train.lam:g}"
        ratios = (Cell(value, digits=2) for value in (found.effect, low, high))
        cells = (Cell(found.accuracy, percent=True), Cell(found.value), Cell(found.curve_value), *ratios)
        note = f"{where}{found.seeds} seed{'s' * (found.seeds != 1)}; {', '.join(names)}"
        lines.append(Row(label, cells, note=note))
    notes = (
        "CEM's error over that of the same defence with more or less noise, interpolated at CEM's accuracy; above 1 "
        "CEM gains. Unseen images, the strongest of the attacks named; 95 % interval by the delete-one-seed jackknife.",
    )
    columns = ("accuracy", "MSE, test", "MSE of the curve", "ratio", "from", "to")
    return Table("CEM's gain at equal accuracy", columns, tuple(lines), notes, corner="setting") if lines else None


def _variance(one: SeedResults) -> str:
    return f"σ² {one.experiment.train.noise_std**2:.3g}"
