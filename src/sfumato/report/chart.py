"""The one way from points to a figure: error bars, hollow points, notes beside points, words for the blind."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from sfumato.report.drawn import Drawn, to_svg
from sfumato.report.style import INK, LINES, MUTED, PAPER, Style, drawing, styles

__all__ = ["Axis", "Curve", "Fit", "Point", "draw", "place"]

WIDTH = 5.6  # inches of 72 points: on a page of 400 pixels the letters are as large as the page's small print
_NOTE = 11.0
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

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
    """The curve `y = a exp(b x)` that somebody fitted to points.

    Attributes:
        a: error at entropy 0, above 0.
        b: growth per unit of the horizontal axis.
        r2: coefficient of determination; on which scale is for the caption to say.
    """

    a: float
    b: float
    r2: float

    def formula(self, x: str) -> str:
        """In words, with three significant digits.

        >>> Fit(0.01, -0.25, 0.987).formula("H")
        '0.01 exp(−0.25 H), R² 0.99'
        """
        return f"{_number(self.a)} exp({_number(self.b)} {x}), R² {self.r2:.2f}".replace("-", "−")

    def between(self, low: float, high: float) -> list[tuple[float, float]]:
        """101 places along it; through the logarithm, because entropies in nats reach into the hundreds."""
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


def draw(
    curves: Sequence[Curve],
    x: Axis,
    y: Axis,
    arrange: Callable[[Any], None],
    *,
    key: str,
    title: str,
    looks: Mapping[str, Style] | None = None,
    errors: str = "",
    across: Mapping[str, float] | None = None,
    upright: Mapping[str, float] | None = None,
    hidden: Sequence[Curve] = (),
    joined: bool = True,
    alone: bool = False,
    height: float = 3.9,
) -> Drawn:
    """Draw curves as one figure.

    Args:
        curves: at least one.
        x: the horizontal axis.
        y: the vertical one.
        arrange: sets limits and scales of the matplotlib axes.
        key: begins the ids inside the SVG, for several figures on one page.
        title: read out by screen readers; not drawn, because page and paper have a heading.
        looks: style per defence; chosen from the curves where None.
        errors: what the error bars show.
        across: names and values of horizontal reference lines.
        upright: names and values of vertical ones.
        hidden: curves that are named instead of drawn.
        joined: whether lines join the points.
        alone: whether a single curve needs no legend.
        height: in inches; a long legend adds to it.
    """
    from matplotlib.figure import Figure

    looks = looks or styles(one.defense for one in (*curves, *hidden))
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
        for value in (across or {}).values():
            axes.axhline(y.scale * value, color=MUTED, linewidth=1.2, linestyle=(0, (2, 3)))
        for value in (upright or {}).values():
            axes.axvline(x.scale * value, color=MUTED, linewidth=1.2, linestyle=(0, (2, 3)))
        if rows:
            _legend(figure, entries, columns)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the notes are placed for the layout as it is now
        named = [(one.name or looks[one.defense].label, one) for one in curves]
        below = [(one.name or looks[one.defense].label, dot) for one in hidden for dot in one.points]
        lines = [f"below: {name} {_said(dot, x, y)}" for name, dot in below[:2]] + ["and more"] * (len(below) > 2)
        _write_notes(axes, curves, looks, (x.scale, y.scale), across or {}, upright or {}, lines, joined)
        words = [f"{name}: {_told(one, x, y)}" for name, one in named]
        words += [f"{name}, not drawn: {_said(dot, x, y)}" for name, dot in below]
        for axis, values in ((x, upright or {}), (y, across or {})):
            words += [f"{name}: {axis.write(axis.scale * at, at)}{axis.unit}" for name, at in values.items()]
        remarks = _remarks([dot for one in curves for dot in one.points], errors)
        data = [_row(name, dot, x, y) | _coefficients(one.fit) for name, one in named for dot in one.points]
        data += [_row(name, dot, x, y) for name, dot in below]
        description = " ".join(["; ".join(words) + ".", *([remarks] if remarks else [])])
        return to_svg(figure, key=key, title=title, description=description, rows=data, remarks=remarks)


def _remarks(points: Sequence[Point], errors: str) -> str:
    parts = []
    if any(one.x_error or one.y_error for one in points):
        parts.append(f"Bars: {errors}.")
    if not all(one.converged for one in points):
        parts.append("Hollow points rest on an attack that had not converged: a longer one may find more.")
    return " ".join(parts)


def _row(name: str, dot: Point, x: Axis, y: Axis) -> dict[str, Any]:
    return {
        "series": name,
        "setting": dot.note,
        x.short: dot.x,
        f"{x.short} bar": dot.x_error,
        y.short: dot.y,
        f"{y.short} bar": dot.y_error,
        "converged": dot.converged,
    }


def _coefficients(fit: Fit | None) -> dict[str, float]:
    return {} if fit is None else {"a": fit.a, "b": fit.b, "R2": fit.r2}


def _told(curve: Curve, x: Axis, y: Axis) -> str:
    points = curve.points if len(curve.points) <= 12 else (curve.points[0], curve.points[-1])
    fitted = [f"fitted {curve.fit.formula(x.short)}"] if curve.fit else []
    return "; ".join([", ".join(_said(dot, x, y) for dot in points), *fitted])


def _said(dot: Point, x: Axis, y: Axis) -> str:
    parts = []
    for axis, value, error in ((x, dot.x, dot.x_error), (y, dot.y, dot.y_error)):
        spread = f" ± {axis.write(axis.scale * error, axis.scale * value)}" if error else ""
        parts.append(f"{axis.short} {axis.write(axis.scale * value, axis.scale * value)}{spread}{axis.unit}")
    loose = "" if dot.converged else " (attack not converged)"
    return (f"{dot.note}: " if dot.note else "") + ", ".join(parts) + loose


def _number(value: float) -> str:
    """Three significant digits, with a power of ten where there would be an e."""
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa}·10{str(int(exponent)).translate(_SUPERSCRIPT)}" if exponent else mantissa


def _places(curve: Curve) -> list[tuple[float, float]]:
    """Along the fitted curve of a curve that has one."""
    if curve.fit is None:
        return []
    return curve.fit.between(min(dot.x for dot in curve.points), max(dot.x for dot in curve.points))


def _dash(curve: Curve, look: Style, joined: bool) -> str:
    return LINES[(look.line + curve.variant) % len(LINES)] if joined and len(curve.points) > 1 else ""


def _draw_curve(axes: Any, curve: Curve, look: Style, right: float, up: float, joined: bool) -> None:
    dash, xs, ys = (
        _dash(curve, look, joined),
        [right * dot.x for dot in curve.points],
        [up * dot.y for dot in curve.points],
    )
    if dash:
        axes.plot(xs, ys, color=look.colour, linestyle=dash, zorder=2)
    if curve.fit is not None:
        axes.plot(*zip(*_places(curve), strict=True), color=look.colour, linestyle="--", zorder=2)
    for dot, x, y in zip(curve.points, xs, ys, strict=True):
        if curve.bare and dash and not dot.emphasis:
            continue
        axes.errorbar(
            x, y, xerr=dot.x_error and right * dot.x_error, yerr=dot.y_error and up * dot.y_error, color=look.colour,
            elinewidth=1.0, capsize=2.0, marker=look.marker, markersize=look.size * (1.4 if dot.emphasis else 1.0),
            markerfacecolor=look.colour if dot.converged else PAPER,
            markeredgecolor=PAPER if dot.converged else look.colour,
            markeredgewidth=0.8 if dot.converged else 1.6, zorder=4 if dot.emphasis else 3,
        )  # fmt: skip


def _entries(curve: Curve, look: Style, x: Axis, joined: bool) -> list[tuple[str, Any]]:
    from matplotlib.lines import Line2D

    dash = _dash(curve, look, joined)
    how = {"marker": look.marker, "markersize": look.size, "markeredgecolor": PAPER}
    entries = [(curve.name or look.label, Line2D([], [], color=look.colour, linestyle=dash, **how))]
    if curve.fit is not None:
        entries.append((curve.fit.formula(x.short), Line2D([], [], color=look.colour, linestyle="--")))
    return entries


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
    below: Sequence[str],
    joined: bool,
) -> None:
    """Beside the points what they are, as far as there is room: emphasised first, then ends, middle and the rest."""
    bounds = axes.get_window_extent()
    frame = (bounds.x0 + 2, bounds.y0 + 2, bounds.x1, bounds.y1)

    def at(x: float, y: float) -> tuple[float, float]:
        right, up = axes.transData.transform((scale[0] * x, scale[1] * y))
        return float(right), float(up)

    def write(x: float, y: float, text: str, colour: str, **how: Any) -> Area:
        """With the lower left corner at (x, y); gives what it covers."""
        axes.text(x, y, text, transform=None, color=colour, fontsize=_NOTE, va="bottom", parse_math=False, **how)
        return x, y, x + 0.58 * _NOTE * len(text), y + _NOTE

    taken = [write(frame[0] + 4, frame[1] + 4 + 13 * i, text, MUTED) for i, text in enumerate(reversed(below))]
    some = curves[0].points[0]
    for name, value in across.items():
        taken.append(write(frame[0] + 4, at(some.x, value)[1] + 1, name, MUTED))
    for name, value in upright.items():
        x = at(value, some.y)[0] - 4 - 1.2 * _NOTE
        write(x, frame[1] + 6, name, MUTED, rotation=90)
        taken.append((x, frame[1], x + 1.6 * _NOTE, frame[1] + 6 + 0.58 * _NOTE * len(name)))
    spots: list[tuple[Point, Curve]] = []
    for curve in curves:
        places = [at(dot.x, dot.y) for dot in curve.points]
        taken += [_around(*spot, 5.0 if dot.emphasis else 4.0) for spot, dot in zip(places, curve.points, strict=True)]
        for (x0, y0), (x1, y1) in pairwise(places) if joined else ():
            taken += [_around(x0 + (x1 - x0) * i / 24, y0 + (y1 - y0) * i / 24, 1.0) for i in range(1, 24)]
        taken += [_around(*at(*spot), 1.0) for spot in _places(curve)]
        order = dict.fromkeys([0, len(places) - 1, len(places) // 2, *range(len(places))])
        spots += [(curve.points[index], curve) for index in order]
    spots.sort(key=lambda spot: not spot[0].emphasis)
    notes = [(*at(dot.x, dot.y), dot.note) for dot, _ in spots]
    for index, (x, y) in place(notes, taken, frame, size=_NOTE, gap=5.0).items():
        dot, curve = spots[index]
        write(x, y, dot.note, looks[curve.defense].colour, fontweight="bold" if dot.emphasis else "normal")


def _around(x: float, y: float, reach: float) -> Area:
    return x - reach, y - reach, x + reach, y + reach


def place(
    notes: Sequence[tuple[float, float, str]], obstacles: Sequence[Area], frame: Area, *, size: float, gap: float
) -> dict[int, tuple[float, float]]:
    """Find a free place beside each point for its note; a note without one is left out.

    Args:
        notes: (x, y, text) in points, the most important first.
        obstacles: what must stay visible.
        frame: what the notes must not leave.
        size: of the font; a character counts as 0.58 of it, which fits the common sans-serif fonts.
        gap: between a point and its note.

    Returns:
        The lower left corner of each note that has a place, by its index.
    """
    taken, placed = list(obstacles), {}
    for index, (x, y, text) in enumerate(notes):
        width, height = 0.58 * size * len(text), size
        right, left, middle = x + gap, x - gap - width, x - width / 2
        above, under, level = y + gap, y - gap - height, y - height / 2
        corners = ((right, above), (left, under), (right, under), (left, above), (middle, above + gap),
                   (middle, under - gap), (right + gap, level), (left - gap, level))  # fmt: skip
        for corner in corners if text else ():
            l, b, r, t = corner[0], corner[1], corner[0] + width, corner[1] + height  # noqa: E741
            inside = frame[0] <= l and r <= frame[2] and frame[1] <= b and t <= frame[3]
            if inside and not any(l < o[2] and o[0] < r and b < o[3] and o[1] < t for o in taken):
                taken.append((l, b, r, t))
                placed[index] = corner
                break
    return placed
