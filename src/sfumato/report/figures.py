"""The two figures of every report: what privacy costs, and how the information falls during training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sfumato.errors import ConfigError
from sfumato.report.averages import error_text, percent_text
from sfumato.report.labels import Box, place
from sfumato.report.palette import INK, MUTED, PAPER, Style, styles
from sfumato.report.svg import SETTINGS, to_svg

__all__ = ["Curve", "Point", "information_curve", "trade_off"]

_SIZE = (6.5, 4.5)  # inches; at 72 points each
_DPI = 72
_NOTE = 10.0
_LINES = ("-", "--", ":", "-.")
_DEPTH = 0.4


@dataclass(frozen=True)
class Point:
    """One setting of a defence.

    Attributes:
        mse: the attacker's error on test images.
        accuracy: of the classifier on test images, in [0, 1].
        mse_error, accuracy_error: half the length of an error bar; None where there is none.
        note: its setting, such as `λ 1`; written beside the point where there is room.
        emphasis: True draws it larger and places its note first.
    """

    mse: float
    accuracy: float
    mse_error: float | None = None
    accuracy_error: float | None = None
    note: str = ""
    emphasis: bool = False


@dataclass(frozen=True)
class Curve:
    """Settings of one defence, in the order in which a line joins them.

    Attributes:
        defense: decides the colour.
        points: at least one; a single point gets no line.
        name: what the legend says; the defence's own label where empty.
        variant: tells curves of one defence apart by the kind of line.
    """

    defense: str
    points: tuple[Point, ...]
    name: str = ""
    variant: int = 0


def trade_off(
    curves: Sequence[Curve], *, reference: float | None = None, key: str = "trade-off", errors: str = "errors"
) -> str:
    """Accuracy in per cent against the attacker's error on test images, as inline SVG.

    Up and to the right is better. A point more than 40 points of accuracy below the best one would flatten all
    others; it is named in the figure instead of drawn.

    Args:
        curves: what to compare.
        reference: the error of an attacker without any feature, drawn as a line unless it lies far to the right.
        key: begins the ids inside the SVG, for several figures on one page.
        errors: what the error bars show, for the description.

    Raises:
        ConfigError: there is no point to draw.
    """
    import matplotlib
    from matplotlib.figure import Figure

    shown, hidden = _split(curves)
    looks = styles(curve.defense for curve in curves)
    drawn = [point for curve in shown for point in curve.points]
    right = max(point.mse + (point.mse_error or 0.0) for point in drawn)
    near = reference if reference is not None and reference <= 2 * right else None
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=_SIZE, dpi=_DPI, layout="constrained")
        axes = figure.add_subplot()
        for curve in shown:
            _draw(axes, curve, looks[curve.defense])
        axes.set_xlabel("attacker's error on unseen images (MSE)  → harder to redraw")
        axes.set_ylabel("accuracy on unseen images, %")
        axes.set_xlim(0, 1.08 * max(right, near or 0.0))
        _give_room(axes, drawn)
        if near is not None:
            axes.axvline(near, color=MUTED, linewidth=1.0, linestyle=(0, (2, 3)))
        _legend(figure, [(curve.name or looks[curve.defense].label, _handle(curve, looks)) for curve in shown])
        figure.draw_without_rendering()
        notes = [(point, curve) for curve in shown for point in _by_weight(curve.points)]
        notes.sort(key=lambda pair: not pair[0].emphasis)
        _write_notes(axes, shown, notes, looks, near, hidden)
        return to_svg(figure, key=key, title="Accuracy against the attacker's error", description=_words(curves, errors))


def information_curve(histories: Mapping[str, Sequence[float]], *, key: str = "information") -> str:
    """The bound on the information in a feature after each epoch, in nats, one line per run, as inline SVG.

    The vertical axis is logarithmic where the values are positive and span more than a factor of 20.

    Args:
        histories: defence -> nats per epoch.
        key: begins the ids inside the SVG.

    Raises:
        ConfigError: there is nothing to draw.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogFormatter, MaxNLocator, NullFormatter

    histories = {name: list(values) for name, values in histories.items() if len(values)}
    if not histories:
        raise ConfigError("no run has a history of its information; give at least one with an epoch")
    looks = styles(histories)
    every = [value for values in histories.values() for value in values]
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(_SIZE[0], 3.4), dpi=_DPI, layout="constrained")
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
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.set_xlabel("epoch of training")
        axes.set_ylabel("information bound, nats")
        if len(histories) > 1:
            _legend(figure, [(looks[name].label, _line(looks[name])) for name in histories])
        words = "; ".join(
            f"{looks[name].label}: from {values[0]:.3g} to {values[-1]:.3g} nats in {len(values)} epochs"
            for name, values in histories.items()
        )
        return to_svg(figure, key=key, title="Information bound over the epochs", description=words)


def _split(curves: Sequence[Curve]) -> tuple[list[Curve], list[tuple[Curve, Point]]]:
    """The curves without the points that lie too deep to be drawn, and those points."""
    points = [point for curve in curves for point in curve.points]
    if not points:
        raise ConfigError("the trade-off figure has no points; give at least one measured setting")
    floor = max(point.accuracy for point in points) - _DEPTH
    shown = []
    hidden = []
    for curve in curves:
        kept = tuple(point for point in curve.points if point.accuracy >= floor)
        hidden += [(curve, point) for point in curve.points if point.accuracy < floor]
        if kept:
            shown.append(Curve(curve.defense, kept, curve.name, curve.variant))
    return shown, hidden


def _draw(axes: Any, curve: Curve, look: Style) -> None:
    x = [point.mse for point in curve.points]
    y = [100 * point.accuracy for point in curve.points]
    if len(x) > 1:
        axes.plot(x, y, color=look.colour, linestyle=_LINES[curve.variant % len(_LINES)], zorder=2)
    for point, x_value, y_value in zip(curve.points, x, y, strict=True):
        axes.errorbar(
            x_value,
            y_value,
            xerr=point.mse_error,
            yerr=None if point.accuracy_error is None else 100 * point.accuracy_error,
            color=look.colour,
            elinewidth=1.0,
            capsize=2.0,
            marker=look.marker,
            markersize=_marker_size(look) * (1.45 if point.emphasis else 1.0),
            markeredgecolor=PAPER,
            markeredgewidth=0.8,
            zorder=4 if point.emphasis else 3,
        )


def _marker_size(look: Style) -> float:
    return 11.0 if look.marker == "*" else 6.5


def _give_room(axes: Any, points: Sequence[Point]) -> None:
    """At least two points of accuracy high, so that a difference of a tenth does not look like a cliff."""
    low = 100 * min(point.accuracy - (point.accuracy_error or 0.0) for point in points)
    high = 100 * max(point.accuracy + (point.accuracy_error or 0.0) for point in points)
    margin = max(0.1 * (high - low), (2.0 - (high - low)) / 2, 0.3)
    axes.set_ylim(low - margin, high + margin)


def _by_weight(points: Sequence[Point]) -> list[Point]:
    """The ends first, then the middle, then the rest: what a reader needs most gets its note first."""
    order = [0, len(points) - 1, len(points) // 2, *range(len(points))]
    return [points[index] for index in dict.fromkeys(order)]


def _write_notes(
    axes: Any,
    shown: Sequence[Curve],
    notes: Sequence[tuple[Point, Curve]],
    looks: Mapping[str, Style],
    near: float | None,
    hidden: Sequence[tuple[Curve, Point]],
) -> None:
    def at(point: Point) -> tuple[float, float]:
        x, y = axes.transData.transform((point.mse, 100 * point.accuracy))
        return float(x), float(y)

    bounds = axes.get_window_extent()
    frame = Box(bounds.x0 + 2, bounds.y0 + 2, bounds.x1, bounds.y1)
    obstacles = []
    if hidden:
        obstacles.append(_name_hidden(axes, frame, hidden, looks))
    if near is not None:
        obstacles.append(_name_reference(axes, frame, near))
    for curve in shown:
        spots = [at(point) for point in curve.points]
        obstacles += [Box(x - 4, y - 4, x + 4, y + 4) for x, y in spots]
        for (x0, y0), (x1, y1) in zip(spots, spots[1:], strict=False):
            for step in range(1, 24):
                x, y = x0 + (x1 - x0) * step / 24, y0 + (y1 - y0) * step / 24
                obstacles.append(Box(x - 1, y - 1, x + 1, y + 1))
    texts = [(*at(point), point.note) for point, _ in notes]
    for spot in place(texts, obstacles, frame, size=_NOTE, gap=4.0):
        point, curve = notes[spot.index]
        _text(axes, spot.x, spot.y, point.note, looks[curve.defense].colour, "bold" if point.emphasis else "normal")


def _name_hidden(axes: Any, frame: Box, hidden: Sequence[tuple[Curve, Point]], looks: Mapping[str, Style]) -> Box:
    """Say in the lower left corner which points lie below the figure; gives the place that takes."""
    lines = [
        f"below this figure: {curve.name or looks[curve.defense].label} {point.note}, "
        f"{percent_text(point.accuracy)} %, MSE {error_text(point.mse)}"
        for curve, point in hidden[:3]
    ]
    if len(hidden) > 3:
        lines.append(f"and {len(hidden) - 3} more below it")
    for index, line in enumerate(reversed(lines)):
        _text(axes, frame.left + 4, frame.bottom + 4 + 13 * index, line, MUTED)
    width = 0.58 * _NOTE * max(len(line) for line in lines)
    return Box(frame.left, frame.bottom, frame.left + 4 + width, frame.bottom + 4 + 13 * len(lines))


def _name_reference(axes: Any, frame: Box, reference: float) -> Box:
    """Write along the line of the attacker who sees no feature."""
    x = float(axes.transData.transform((reference, 0.0))[0])
    label = "answering with the mean image"
    _text(axes, x - 5, frame.bottom + 6, label, MUTED, rotation=90)
    return Box(x - 16, frame.bottom, x + 2, frame.bottom + 6 + 0.58 * _NOTE * len(label))


def _text(axes: Any, x: float, y: float, text: str, colour: str, weight: str = "normal", rotation: float = 0) -> None:
    """Write at a place given in points from the lower left corner of the figure."""
    axes.text(
        x,
        y,
        text,
        transform=None,
        color=colour,
        fontsize=_NOTE,
        fontweight=weight,
        rotation=rotation,
        ha="right" if rotation else "left",
        va="bottom",
        parse_math=False,
    )


def _handle(curve: Curve, looks: Mapping[str, Style]) -> Any:
    return _line(looks[curve.defense], _LINES[curve.variant % len(_LINES)] if len(curve.points) > 1 else "")


def _line(look: Style, kind: str = "-") -> Any:
    from matplotlib.lines import Line2D

    return Line2D(
        [], [], color=look.colour, linestyle=kind, marker=look.marker, markersize=_marker_size(look), markeredgecolor=PAPER
    )


def _legend(figure: Any, entries: Sequence[tuple[str, Any]]) -> None:
    """A legend above the figure. Names are set afterwards: as labels they could be taken for formulas or hidden ones."""
    legend = figure.legend(
        [handle for _, handle in entries],
        ["x" * len(name) for name, _ in entries],
        loc="outside upper left",
        ncols=min(3, len(entries)),
        frameon=False,
        handlelength=2.2,
        columnspacing=1.4,
        labelcolor=INK,
    )
    for text, (name, _) in zip(legend.get_texts(), entries, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _words(curves: Sequence[Curve], errors: str) -> str:
    looks = styles(curve.defense for curve in curves)
    parts = []
    for curve in curves:
        points = ", ".join(
            f"{point.note + ': ' if point.note else ''}accuracy {percent_text(point.accuracy)} %, "
            f"MSE {error_text(point.mse)}"
            for point in curve.points
        )
        parts.append(f"{curve.name or looks[curve.defense].label}: {points}")
    bars = f" Error bars: {errors}." if any(p.mse_error or p.accuracy_error for c in curves for p in c.points) else ""
    return "; ".join(parts) + "." + bars
