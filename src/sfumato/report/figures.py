"""The two figures of every report: what privacy costs, and how the information falls during training."""

from collections.abc import Mapping, Sequence
from typing import Any

from sfumato.errors import ConfigError
from sfumato.report.averages import error_text, percent_text
from sfumato.report.curves import Curve, Point, without_deep
from sfumato.report.marks import curve_handle, draw_curve, legend, legend_columns, line_handle, write_notes
from sfumato.report.palette import MUTED, Style, styles
from sfumato.report.svg import drawing, to_svg

__all__ = ["Curve", "Point", "information_curve", "trade_off"]

_SIZE = (6.0, 4.3)  # inches; at 72 points each
_DPI = 72


def trade_off(
    curves: Sequence[Curve],
    *,
    looks: Mapping[str, Style] | None = None,
    reference: float | None = None,
    floor: float | None = None,
    key: str = "trade-off",
    errors: str = "errors",
) -> str:
    """Accuracy in per cent against the attacker's error on test images, as inline SVG.

    Up and to the right is better. A point more than 40 points of accuracy below the best one would flatten all
    others; it is named in the figure instead of drawn.

    Args:
        curves: what to compare.
        looks: style per defence, for pages that show more defences elsewhere; chosen from the curves where None.
        reference: the error of an attacker without any feature, drawn as a line unless it lies far to the right.
        floor: an accuracy that has to be kept, in [0, 1], drawn as a line.
        key: begins the ids inside the SVG, for several figures on one page.
        errors: what the error bars show, for the description.

    Raises:
        ConfigError: there is no point to draw.
    """
    from matplotlib.figure import Figure

    shown, hidden = without_deep(curves)
    looks = looks or styles(curve.defense for curve in curves)
    drawn = [point for curve in shown for point in curve.points]
    right = max(point.mse + (point.mse_error or 0.0) for point in drawn)
    near = reference if reference is not None and reference <= 2 * right else None
    with drawing():
        names = [curve.name or looks[curve.defense].label for curve in shown]
        figure = Figure(figsize=(_SIZE[0], _height(names)), dpi=_DPI, layout="constrained")
        axes = figure.add_subplot()
        for curve in shown:
            draw_curve(axes, curve, looks[curve.defense])
        axes.set_xlabel("attacker's error on unseen images (MSE) → harder to reconstruct")
        axes.set_ylabel("accuracy on unseen images, %")
        axes.set_xlim(0, 1.08 * max(right, near or 0.0, 1e-9))
        _give_room(axes, drawn)
        if near is not None:
            axes.axvline(near, color=MUTED, linewidth=1.0, linestyle=(0, (2, 3)))
        if floor is not None:
            axes.axhline(100 * floor, color=MUTED, linewidth=1.2, linestyle="--")
        handles = [curve_handle(curve, looks[curve.defense]) for curve in shown]
        legend(figure, list(zip(names, handles, strict=True)))
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the notes are placed for the layout as it is now
        write_notes(axes, shown, looks, near, hidden)
        words = _words(curves, looks, errors) + ("" if floor is None else f" Floor: {percent_text(floor)} %.")
        return to_svg(figure, key=key, title="Accuracy against the attacker's error", description=words)


def information_curve(
    histories: Mapping[str, Sequence[float]], *, looks: Mapping[str, Style] | None = None, key: str = "information"
) -> str:
    """The bound on the information in a feature after each epoch, in nats, one line per run, as inline SVG.

    The vertical axis is logarithmic where the values are positive and span more than a factor of 20.

    Args:
        histories: defence -> nats per epoch.
        looks: as for `trade_off`.
        key: begins the ids inside the SVG.

    Raises:
        ConfigError: there is nothing to draw.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter, MaxNLocator, NullFormatter

    histories = {name: list(values) for name, values in histories.items() if len(values)}
    if not histories:
        raise ConfigError("no run has a history of its information; give at least one with an epoch")
    looks = looks or styles(histories)
    every = [value for values in histories.values() for value in values]
    with drawing():
        figure = Figure(figsize=(_SIZE[0], 3.2), dpi=_DPI, layout="constrained")
        axes = figure.add_subplot()
        for name, values in histories.items():
            look = looks[name]
            epochs = range(1, len(values) + 1)
            axes.plot(epochs, values, color=look.colour, marker=look.marker if len(values) == 1 else "")
            axes.plot(epochs[-1], values[-1], color=look.colour, marker=look.marker, clip_on=False)
            axes.annotate(
                f"{values[-1]:.3g}",
                (epochs[-1], values[-1]),
                xytext=(0, 8),
                textcoords="offset points",
                ha="right",
                color=look.colour,
                fontweight="bold",
            )
        if min(every) > 0 and max(every) > 20 * min(every):
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.5)))
            axes.yaxis.set_minor_formatter(NullFormatter())
        else:
            axes.set_ylim(bottom=min(0.0, *every))
        longest = max(len(values) for values in histories.values())
        axes.set_xlim(1 if longest > 1 else 0, max(longest, 2))
        axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        axes.set_xlabel("epoch of training")
        axes.set_ylabel("information bound, nats")
        if len(histories) > 1:
            legend(figure, [(looks[name].label, line_handle(looks[name])) for name in histories])
        words = "; ".join(
            f"{looks[name].label}: from {values[0]:.3g} to {values[-1]:.3g} nats in {len(values)} epochs"
            for name, values in histories.items()
        )
        return to_svg(figure, key=key, title="Information bound over the epochs", description=words)


def _height(names: Sequence[str]) -> float:
    """A long legend makes the figure higher instead of the axes lower."""
    return _SIZE[1] + 0.25 * max(0, -(-len(names) // legend_columns(names)) - 2)


def _give_room(axes: Any, points: Sequence[Point]) -> None:
    """At least two points of accuracy high, so that a difference of a tenth does not look like a cliff."""
    low = 100 * min(point.accuracy - (point.accuracy_error or 0.0) for point in points)
    high = 100 * max(point.accuracy + (point.accuracy_error or 0.0) for point in points)
    margin = max(0.1 * (high - low), (2.0 - (high - low)) / 2, 0.3)
    axes.set_ylim(low - margin, high + margin)


def _words(curves: Sequence[Curve], looks: Mapping[str, Style], errors: str) -> str:
    parts = []
    for curve in curves:
        points = ", ".join(_point_words(point) for point in curve.points)
        parts.append(f"{curve.name or looks[curve.defense].label}: {points}")
    bars = f" Error bars: {errors}." if any(p.mse_error or p.accuracy_error for c in curves for p in c.points) else ""
    return "; ".join(parts) + "." + bars


def _point_words(point: Point) -> str:
    share, error = percent_text(point.accuracy), error_text(point.mse)
    if point.accuracy_error:
        share += f" ± {percent_text(point.accuracy_error)}"
    if point.mse_error:
        error += f" ± {error_text(point.mse_error, point.mse)}"
    note = f"{point.note}: " if point.note else ""
    return f"{note}accuracy {share} %, MSE {error}{'' if point.converged else ' (attack not converged)'}"
