"""The one way from points to a figure: error bars, hollow points, notes beside points, words for the blind."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from sfumato.report.averages import number_text
from sfumato.report.drawn import Drawn, to_svg
from sfumato.report.style import INK, LINES, MUTED, PAPER, Style, drawing, styles

WIDTH = 5.6  # inches of 72 points: on a page of 400 pixels the letters are as large as the page's small print
_NOTE = 11.0

Area = tuple[float, float, float, float]
"""Left, bottom, right and top of a rectangle in points, y upwards."""


@dataclass(frozen=True)
class Point:
    """One measured setting.

    Attributes:
        x: in `trade_off` the attacker's error on test images, in `entropy_scatter` the relative entropy H(x|z).
        y: in `trade_off` the accuracy on test images in [0, 1], in `entropy_scatter` the attacker's error.
        x_error, y_error: half the length of an error bar; None where there is none.
        note: its setting, such as `λ 1`; written beside the point where there is room.
        emphasis: True draws it larger and places its note first.
        converged: False draws it hollow: the attack had not converged, and a longer one may find more.
    """

    x: float
    y: float
    x_error: float | None = None
    y_error: float | None = None
    note: str = ""
    emphasis: bool = False
    converged: bool = True


@dataclass(frozen=True)
class Fit:
    """The curve `y = a exp(b x)` that somebody fitted to points, with its coefficient of determination R²."""

    a: float
    b: float
    r2: float

    def formula(self, x: str) -> str:
        """In words, with three significant digits.

        >>> Fit(0.01, -0.25, 0.987).formula("H")
        '0.01 exp(−0.25 H), R² 0.99'
        """
        return f"{number_text(self.a)} exp({number_text(self.b)} {x}), R² {self.r2:.2f}".replace("-", "−")

    def along(self, points: Sequence[Point]) -> list[tuple[float, float]]:
        """101 places over these points; through the logarithm, as entropies in nats reach into the hundreds."""
        low, high = min(one.x for one in points), max(one.x for one in points)
        xs = [low + (high - low) * step / 100 for step in range(101)]
        return [(x, math.exp(min(math.log(self.a) + self.b * x, 700.0))) for x in xs]


@dataclass(frozen=True)
class Curve:
    """Settings of one defence.

    Attributes:
        defense: decides the colour.
        points: at least one, in the order in which a line joins them, where one does.
        name: what the legend says; the defence's own label where empty.
        variant: tells curves of one defence apart by the kind of line.
        fit: drawn through the range of the points, with its formula in the legend; None draws none.
        bare: True draws markers at emphasised points only, where there is a line.
    """

    defense: str
    points: tuple[Point, ...]
    name: str = ""
    variant: int = 0
    fit: Fit | None = None
    bare: bool = False


class Axis(NamedTuple):
    """An axis: its label, a short name, how a value (like a mean) is written, its unit, and what 1 shows as."""

    label: str
    short: str
    write: Callable[[float, float], str]
    unit: str = ""
    scale: float = 1.0

    def said(self, value: float, error: float | None = None) -> str:
        """A value with its name, its error and its unit."""
        shown, spread = self.write(self.scale * value, self.scale * value), ""
        if error:
            spread = f" ± {self.write(self.scale * error, self.scale * value)}"
        return f"{self.short} {shown}{spread}{self.unit}"


def draw(
    curves: Sequence[Curve],
    x: Axis,
    y: Axis,
    arrange: Callable[[Any], None],
    *,
    key: str,
    title: str,
    looks: Mapping[str, Style] | None,
    errors: str,
    across: Mapping[str, float] | None = None,
    upright: Mapping[str, float] | None = None,
    hidden: Sequence[Curve] = (),
    joined: bool = True,
    alone: bool = False,
    height: float = 3.9,
) -> Drawn:
    """Draw at least one curve on two axes, whose limits and scales `arrange` sets.

    `title` is read out and not drawn, because page and paper have a heading. `across` and `upright` name horizontal and
    vertical lines, `hidden` holds what is named below the figure instead of drawn, `joined` tells whether lines join
    the points, and a single curve needs no legend where `alone`. A long legend adds to the `height` in inches.
    """
    from matplotlib.figure import Figure

    looks, across, upright = looks or styles(one.defense for one in (*curves, *hidden)), across or {}, upright or {}
    with drawing():
        entries = [entry for one in curves for entry in _entries(one, looks[one.defense], x, joined)]
        columns = _columns([name for name, _ in entries])
        rows = 0 if alone and len(entries) == 1 else -(-len(entries) // columns)
        figure = Figure(figsize=(WIDTH, height + 0.26 * max(0, rows - 2)), dpi=72, layout="constrained")
        axes = figure.add_subplot()
        for one in curves:
            _draw_curve(axes, one, looks[one.defense], x.scale, y.scale, joined)
        axes.set_xlabel(x.label, parse_math=False)
        axes.set_ylabel(y.label, parse_math=False)
        arrange(axes)
        for value in across.values():
            axes.axhline(y.scale * value, color=MUTED, linewidth=1.2, linestyle=(0, (2, 3)))
        for value in upright.values():
            axes.axvline(x.scale * value, color=MUTED, linewidth=1.2, linestyle=(0, (2, 3)))
        if rows:
            _legend(figure, entries, columns)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the notes are placed for the layout as it is now
        _write_notes(axes, curves, looks, (x.scale, y.scale), across, upright, joined)
        every = [(one.name or looks[one.defense].label, one) for one in (*curves, *hidden)]
        words = "; ".join(
            [f"{name}: {_told(one, x, y)}" for name, one in every]
            + [f"{name}: {x.said(value)}" for name, value in upright.items()]
            + [f"{name}: {y.said(value)}" for name, value in across.items()]
        )
        points = [point for one in curves for point in one.points]
        remarks = [f"Bars: {errors}."] if any(point.x_error or point.y_error for point in points) else []
        if not all(point.converged for point in points):
            remarks.append("Hollow points rest on an attack that had not converged: a longer one may find more.")
        remarks += [f"Too low for the figure: {name}, {_told(one, x, y)}." for name, one in every[len(curves) :]]
        data = [
            {"series": name, "setting": point.note, x.short: point.x, f"{x.short} bar": point.x_error,
             y.short: point.y, f"{y.short} bar": point.y_error, "converged": point.converged}
            | ({} if one.fit is None else {"a": one.fit.a, "b": one.fit.b, "R2": one.fit.r2})
            for name, one in every for point in one.points
        ]  # fmt: skip
        text = " ".join(remarks)
        return to_svg(figure, key=key, title=title, description=f"{words}. {text}".strip(), rows=data, remarks=text)


def _told(curve: Curve, x: Axis, y: Axis) -> str:
    points = curve.points if len(curve.points) <= 12 else (curve.points[0], curve.points[-1])
    parts = [
        (f"{point.note}: " if point.note else "")
        + f"{x.said(point.x, point.x_error)}, {y.said(point.y, point.y_error)}"
        + ("" if point.converged else " (attack not converged)")
        for point in points
    ]
    return ", ".join(parts) + (f"; fitted {curve.fit.formula(x.short)}" if curve.fit else "")


def _dash(curve: Curve, look: Style, joined: bool) -> str:
    return LINES[(look.line + curve.variant) % len(LINES)] if joined and len(curve.points) > 1 else ""


def _draw_curve(axes: Any, curve: Curve, look: Style, right: float, up: float, joined: bool) -> None:
    dash = _dash(curve, look, joined)
    if dash:
        places = [(right * point.x, up * point.y) for point in curve.points]
        axes.plot(*zip(*places, strict=True), color=look.colour, linestyle=dash, zorder=2)
    if curve.fit is not None:
        axes.plot(*zip(*curve.fit.along(curve.points), strict=True), color=look.colour, linestyle="--", zorder=2)
    for point in curve.points:
        if curve.bare and dash and not point.emphasis:
            continue
        axes.errorbar(
            right * point.x, up * point.y, xerr=point.x_error and right * point.x_error,
            yerr=point.y_error and up * point.y_error, color=look.colour, elinewidth=1.0, capsize=2.0,
            marker=look.marker, markersize=look.size * (1.4 if point.emphasis else 1.0),
            markerfacecolor=look.colour if point.converged else PAPER,
            markeredgecolor=PAPER if point.converged else look.colour,
            markeredgewidth=0.8 if point.converged else 1.6, zorder=4 if point.emphasis else 3,
        )  # fmt: skip


def _entries(curve: Curve, look: Style, x: Axis, joined: bool) -> list[tuple[str, Any]]:
    from matplotlib.lines import Line2D

    how: Any = {"marker": look.marker, "markersize": look.size, "linestyle": _dash(curve, look, joined)}
    line = Line2D([], [], color=look.colour, markeredgecolor=PAPER, **how)
    fitted = Line2D([], [], color=look.colour, linestyle="--")
    return [(curve.name or look.label, line)] + ([(curve.fit.formula(x.short), fitted)] if curve.fit else [])


def _columns(names: Sequence[str]) -> int:
    """How many names stand in one line of a legend: three if that is all, else two, and one of very long ones."""
    most = len(names) if len(names) <= 3 else 2
    return max(1, min(most, int(72 * WIDTH // (44 + 7.0 * max(len(name) for name in names)))))


def _legend(figure: Any, entries: Sequence[tuple[str, Any]], columns: int) -> None:
    """Above the figure. As labels matplotlib would take some names for formulas, and hide those with an underscore."""
    drawn = figure.legend(
        [handle for _, handle in entries], ["x" * len(name) for name, _ in entries], loc="outside upper left",
        ncols=columns, frameon=False, handlelength=2.2, columnspacing=1.2, labelcolor=INK,
    )  # fmt: skip
    for text, (name, _) in zip(drawn.get_texts(), entries, strict=True):
        text.set_parse_math(False)
        text.set_text(name)


def _write_notes(
    axes: Any,
    curves: Sequence[Curve],
    looks: Mapping[str, Style],
    scale: tuple[float, float],
    across: Mapping[str, float],
    upright: Mapping[str, float],
    joined: bool,
) -> None:
    """Beside the points what they are, as far as there is room: emphasised first, then ends, middle and the rest."""
    bounds = axes.get_window_extent()
    frame = (bounds.x0 + 2, bounds.y0 + 2, bounds.x1, bounds.y1)

    def at(x: float, y: float) -> tuple[float, float]:
        right, up = axes.transData.transform((scale[0] * x, scale[1] * y))
        return float(right), float(up)

    def write(x: float, y: float, text: str, colour: str, **how: Any) -> None:
        axes.text(x, y, text, transform=None, color=colour, fontsize=_NOTE, va="bottom", parse_math=False, **how)

    taken: list[Area] = []
    for name, value in across.items():
        x, y = frame[0] + 4, at(curves[0].points[0].x, value)[1] + 1
        if frame[1] <= y <= frame[3]:  # a line beyond the axes has no name either
            write(x, y, name, MUTED)
            taken.append((x, y, x + 0.58 * _NOTE * len(name), y + _NOTE))
    for name, value in upright.items():
        x, y = at(value, curves[0].points[0].y)[0] - 4 - 1.2 * _NOTE, frame[1] + 6
        write(x, y, name, MUTED, rotation=90)
        taken.append((x, y, x + 1.6 * _NOTE, y + 0.58 * _NOTE * len(name)))
    spots: list[tuple[Point, Curve]] = []
    for curve in curves:
        places = [at(point.x, point.y) for point in curve.points]
        taken += [_around(*spot, 5.0) for spot in places]
        for (x0, y0), (x1, y1) in pairwise(places) if joined else ():
            taken += [_around(x0 + (x1 - x0) * i / 24, y0 + (y1 - y0) * i / 24, 1.0) for i in range(1, 24)]
        taken += [_around(*at(*spot), 1.0) for spot in (curve.fit.along(curve.points) if curve.fit else ())]
        order = dict.fromkeys([0, len(places) - 1, len(places) // 2, *range(len(places))])
        spots += [(curve.points[index], curve) for index in order]
    spots.sort(key=lambda spot: not spot[0].emphasis)
    notes = [(*at(point.x, point.y), point.note) for point, _ in spots]
    for index, (x, y) in place(notes, taken, frame, size=_NOTE, gap=5.0).items():
        point, curve = spots[index]
        write(x, y, point.note, looks[curve.defense].colour, fontweight="bold" if point.emphasis else "normal")


def _around(x: float, y: float, reach: float) -> Area:
    return x - reach, y - reach, x + reach, y + reach


def place(
    notes: Sequence[tuple[float, float, str]], obstacles: Sequence[Area], frame: Area, *, size: float, gap: float
) -> dict[int, tuple[float, float]]:
    """Lower left corner of each note (x, y of its point in points, text) that finds a free place within the frame.

    The first has precedence; `gap` lies between a point and its note. A character counts as 0.58 of the font's `size`,
    which fits the common sans-serif fonts.
    """
    taken, placed = list(obstacles), {}
    for index, (x, y, text) in enumerate(notes):
        width, height = 0.58 * size * len(text), size
        right, left, middle = x + gap, x - gap - width, x - width / 2
        above, under, level = y + gap, y - gap - height, y - height / 2
        corners = ((right, above), (left, under), (right, under), (left, above), (middle, above + gap),
                   (middle, under - gap), (right + gap, level), (left - gap, level))  # fmt: skip
        for west, south in corners if text else ():
            east, north = west + width, south + height
            inside = frame[0] <= west and east <= frame[2] and frame[1] <= south and north <= frame[3]
            if inside and not any(west < o[2] and o[0] < east and south < o[3] and o[1] < north for o in taken):
                taken.append((west, south, east, north))
                placed[index] = (west, south)
                break
    return placed
