"""What privacy costs, what entropy says of an error, how the information falls, and lines over anything else."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sfumato.errors import ConfigError
from sfumato.report.averages import error_text, percent_text
from sfumato.report.chart import Axis, Curve, Point, draw
from sfumato.report.drawn import Drawn
from sfumato.report.style import Style

_DEPTH = 0.4


def trade_off(
    curves: Sequence[Curve],
    *,
    looks: Mapping[str, Style] | None = None,
    reference: float | None = None,
    floor: float | None = None,
    key: str = "trade-off",
    errors: str = "errors",
) -> Drawn:
    """Accuracy in per cent against the attacker's error on test images, as inline SVG.

    Up and to the right is better. A point more than 40 points of accuracy below the best one would flatten all
    others; it is named in the caption instead of drawn.

    Args:
        curves: what to compare.
        looks: style per defence, for pages that show more defences elsewhere; chosen from the curves where None.
        reference: the error of an attacker without any feature, drawn as a line unless it lies far to the right.
        floor: an accuracy that has to be kept, in [0, 1], drawn as a line.
        key: begins the ids inside the SVG, for several figures on one page.
        errors: what the error bars show.

    Raises:
        ConfigError: there is no point to draw.
    """
    every = [point for curve in curves for point in curve.points]
    if not every:
        raise ConfigError("the trade-off figure has no points; give at least one measured setting")
    deep = max(point.y for point in every) - _DEPTH
    shown, hidden = (
        [replace(one, points=points) for one in curves
         if (points := tuple(point for point in one.points if (point.y < deep) == low))]
        for low in (False, True)
    )  # fmt: skip
    drawn = [point for curve in shown for point in curve.points]
    right = max(point.x + (point.x_error or 0.0) for point in drawn)
    near = reference if reference is not None and reference <= 2 * right else None

    def arrange(axes: Any) -> None:
        axes.locator_params(axis="x", nbins=6)
        axes.set_xlim(0, 1.08 * max(right, near or 0.0, 1e-9))
        low = 100 * min(point.y - (point.y_error or 0.0) for point in drawn)
        high = 100 * max(point.y + (point.y_error or 0.0) for point in drawn)
        margin = max(0.1 * (high - low), (2.0 - (high - low)) / 2, 0.3)  # a difference of a tenth is no cliff
        axes.set_ylim(low - margin, high + margin)

    return draw(
        shown,
        Axis("attacker's error on unseen images (MSE)", "MSE", error_text),
        Axis("accuracy on unseen images, %", "accuracy", lambda value, _: f"{value:.1f}", " %", 100.0),
        arrange,
        key=key,
        title="Accuracy against the attacker's error",
        looks=looks,
        errors=errors,
        upright={} if near is None else {"answering with the mean image": near},
        across={} if floor is None else {f"floor {percent_text(floor)} %": floor},
        hidden=hidden,
        height=4.1,
    )


def entropy_scatter(curves: Sequence[Curve], *, key: str = "entropy", errors: str = "errors") -> Drawn:
    """Figure 3 of the paper: the attacker's error (upwards) against the conditional entropy, with exponential fits."""
    shown = [one for one in curves if one.points]
    if not shown:
        raise ConfigError("the entropy figure has no points; give at least one measured model")
    highest = max(point.y + (point.y_error or 0.0) for one in shown for point in one.points)

    def arrange(axes: Any) -> None:
        axes.set_ylim(0, 1.08 * highest or 1.0)
        axes.margins(x=0.08)

    return draw(
        shown,
        Axis("relative conditional entropy H(x|z), nats", "H", lambda value, _: f"{value:.4g}"),
        Axis("attacker's error (MSE)", "MSE", error_text),
        arrange,
        key=key,
        title="The attacker's error against the conditional entropy",
        looks=None,
        errors=errors,
        joined=False,
        alone=not shown[0].name,
    )


def information_curve(
    histories: Mapping[str, Sequence[float]], *, looks: Mapping[str, Style] | None = None, key: str = "information"
) -> Drawn:
    """The bound on the information in a feature after each epoch, in nats, one line per run, as inline SVG.

    The vertical axis is logarithmic where the values are positive and span more than a factor of 20.

    Args:
        histories: defence -> nats per epoch.
        looks: as for `trade_off`.
        key: begins the ids inside the SVG.

    Raises:
        ConfigError: there is nothing to draw.
    """
    every = [value for values in histories.values() for value in values]
    if not every:
        raise ConfigError("no run has a history of its information; give at least one with an epoch")
    curves = []
    for name, values in histories.items():
        last = [Point(len(values), values[-1], note=f"{values[-1]:.3g}", emphasis=True)] if len(values) else []
        curves.append(Curve(name, (*(Point(i + 1, values[i]) for i in range(len(values) - 1)), *last), bare=True))
    return line_figure(
        [one for one in curves if one.points],
        ("epoch of training", "information bound, nats"),
        key=key,
        title="Information bound over the epochs",
        log_y=min(every) > 0 and max(every) > 20 * min(every),
        looks=looks,
    )


def line_figure(
    curves: Sequence[Curve],
    labels: tuple[str, str],
    *,
    key: str,
    title: str,
    log_x: bool = False,
    log_y: bool = False,
    references: Mapping[str, float] | None = None,
    looks: Mapping[str, Style] | None = None,
) -> Drawn:
    """Lines over queries, over epochs, over information; error bars are standard errors.

    A label names its axis up to a comma. Horizontal axes are logarithmic to base 2, with ticks at the points.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator

    points = [point for curve in curves for point in curve.points]
    values = [point.y for point in points] + list((references or {}).values())
    plain = FuncFormatter(lambda value, _: f"{value:g}")

    def arrange(axes: Any) -> None:
        if log_x:
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator(sorted({point.x for point in points})))
            axes.xaxis.set_major_formatter(plain)
            axes.xaxis.set_minor_locator(NullLocator())
        elif all(isinstance(point.x, int) for point in points):
            axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        if log_y:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(plain)
            axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            axes.yaxis.set_minor_formatter(plain)
        else:
            low, high = min(values), max(*values, 1e-9)
            # From 0, unless that would squeeze all curves into a strip at the top.
            margin = 0.12 * (high - low)
            near = low > 0.6 * high and margin > 0
            axes.set_ylim(*((low - margin, high + margin) if near else (min(0.0, low), 1.08 * high)))

    across, up = (Axis(name, name.split(",")[0], lambda value, _: f"{value:.4g}") for name in labels)
    return draw(
        curves, across, up, arrange, key=key, title=title, looks=looks, errors="standard error", across=references,
        alone=True, height=3.4,
    )  # fmt: skip
