"""Figure 3 of the paper: the attacker's error against the relative conditional entropy, with an exponential fit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sfumato.errors import ConfigError
from sfumato.report.averages import error_text
from sfumato.report.labels import Box, place
from sfumato.report.marks import NOTE_SIZE, draw_point, legend, legend_columns, line_handle, point_box, write_text_at
from sfumato.report.palette import Style, styles
from sfumato.report.svg import drawing, to_svg

__all__ = ["Dot", "Fit", "Series", "entropy_scatter"]

_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


@dataclass(frozen=True)
class Fit:
    """The curve `y = a exp(b x)` that somebody fitted to the dots.

    Attributes:
        a: error at entropy 0, above 0.
        b: growth per unit of the horizontal axis.
        r2: coefficient of determination; on which scale is for the caption to say.
    """

    a: float
    b: float
    r2: float


@dataclass(frozen=True)
class Dot:
    """One trained model.

    Attributes:
        entropy: relative conditional entropy H(x|z), in the unit of the axis; any sign.
        mse: the attacker's error.
        entropy_error, mse_error: half the length of an error bar; None where there is none.
        note: its setting, such as `σ² 0.1`; written beside it where there is room.
        converged: False draws it hollow.
    """

    entropy: float
    mse: float
    entropy_error: float | None = None
    mse_error: float | None = None
    note: str = ""
    converged: bool = True


@dataclass(frozen=True)
class Series:
    """Models of one defence.

    Attributes:
        defense: decides the colour.
        dots: at least one.
        name: what the legend says; the defence's own label where empty.
        fit: drawn through the range of the dots, with its formula in the legend; None draws no curve.
    """

    defense: str
    dots: tuple[Dot, ...]
    name: str = ""
    fit: Fit | None = None


def entropy_scatter(
    series: Sequence[Series],
    *,
    looks: Mapping[str, Style] | None = None,
    x_label: str = "relative conditional entropy H(x|z), nats",
    y_label: str = "attacker's error (MSE)",
    key: str = "entropy",
    errors: str = "errors",
) -> str:
    """The attacker's error (upwards) against the conditional entropy (to the right), as inline SVG.

    Args:
        series: what to show.
        looks: style per defence; chosen from the series where None.
        x_label: of the horizontal axis, with its unit (nats, or nats per dimension).
        y_label: of the vertical axis.
        key: begins the ids inside the SVG, for several figures on one page.
        errors: what the error bars show, for the description.

    Raises:
        ConfigError: there is nothing to draw, or a fit is no curve.
    """
    from matplotlib.figure import Figure

    shown = [one for one in series if one.dots]
    _check(shown)
    looks = looks or styles(one.defense for one in shown)
    with drawing():
        entries = _entries(shown, looks)
        names = [name for name, _ in entries]
        rows = -(-len(names) // legend_columns(names))
        figure = Figure(figsize=(6.0, 3.9 + 0.25 * max(0, rows - 2)), dpi=72, layout="constrained")
        axes = figure.add_subplot()
        for one in shown:
            if one.fit is not None:
                axes.plot(*_curve(one.fit, one.dots), color=looks[one.defense].colour, linestyle="--", zorder=2)
            for dot in one.dots:
                at, bars = (dot.entropy, dot.mse), (dot.entropy_error, dot.mse_error)
                draw_point(axes, at, bars, looks[one.defense], converged=dot.converged)
        axes.set_ylim(0, 1.08 * max(dot.mse + (dot.mse_error or 0.0) for one in shown for dot in one.dots) or 1.0)
        axes.margins(x=0.08)
        axes.set_xlabel(x_label, parse_math=False)
        axes.set_ylabel(y_label, parse_math=False)
        if len(entries) > 1 or shown[0].name:
            legend(figure, entries)
        figure.draw_without_rendering()
        figure.set_layout_engine("none")  # the notes are placed for the layout as it is now
        _write_notes(axes, shown, looks)
        title = "The attacker's error against the conditional entropy"
        return to_svg(figure, key=key, title=title, description=_words(shown, looks, x_label, errors))


def _check(series: Sequence[Series]) -> None:
    if not series:
        raise ConfigError("the entropy figure has no dots; give at least one measured model")
    for fit in (one.fit for one in series):
        if fit is not None and not (fit.a > 0 and math.isfinite(fit.a) and math.isfinite(fit.b)):
            raise ConfigError(f"a fit a exp(b x) needs a finite a above 0 and a finite b, got a {fit.a}, b {fit.b}")


def _curve(fit: Fit, dots: Sequence[Dot]) -> tuple[list[float], list[float]]:
    """Places along the fitted curve; through the logarithm, because entropies in nats reach into the hundreds."""
    low, high = min(dot.entropy for dot in dots), max(dot.entropy for dot in dots)
    x = [low + (high - low) * step / 100 for step in range(101)]
    return x, [math.exp(min(math.log(fit.a) + fit.b * value, 700.0)) for value in x]


def _entries(series: Sequence[Series], looks: Mapping[str, Style]) -> list[tuple[str, Any]]:
    from matplotlib.lines import Line2D

    entries = []
    for one in series:
        look = looks[one.defense]
        entries.append((one.name or look.label, line_handle(look, "")))
        if one.fit is not None:
            entries.append((_formula(one.fit), Line2D([], [], color=look.colour, linestyle="--")))
    return entries


def _formula(fit: Fit) -> str:
    return f"{_number(fit.a)} exp({_number(fit.b)} H), R² {fit.r2:.2f}".replace("-", "−")


def _number(value: float) -> str:
    """Three significant digits, with a power of ten where there would be an e."""
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa}·10{str(int(exponent)).translate(_SUPERSCRIPT)}" if exponent else mantissa


def _write_notes(axes: Any, series: Sequence[Series], looks: Mapping[str, Style]) -> None:
    bounds = axes.get_window_extent()
    frame = Box(bounds.x0 + 2, bounds.y0 + 2, bounds.x1, bounds.y1)
    dots = [(dot, one) for one in series for dot in one.dots]
    spots = [tuple(map(float, axes.transData.transform((dot.entropy, dot.mse)))) for dot, _ in dots]
    obstacles = [point_box(x, y) for x, y in spots]
    for one in series:
        if one.fit is not None:
            curve = list(zip(*_curve(one.fit, one.dots), strict=True))
            obstacles += [point_box(float(x), float(y), 1.0) for x, y in axes.transData.transform(curve)]
    texts = [(x, y, dot.note) for (x, y), (dot, _) in zip(spots, dots, strict=True)]
    for spot in place(texts, obstacles, frame, size=NOTE_SIZE, gap=5.0):
        dot, one = dots[spot.index]
        write_text_at(axes, spot.x, spot.y, dot.note, looks[one.defense].colour)


def _words(series: Sequence[Series], looks: Mapping[str, Style], x_label: str, errors: str) -> str:
    parts = []
    for one in series:
        dots = ", ".join(_dot_words(dot) for dot in one.dots)
        fit = "" if one.fit is None else f"; fitted {_formula(one.fit)}"
        parts.append(f"{one.name or looks[one.defense].label}: {dots}{fit}")
    bars = any(dot.mse_error or dot.entropy_error for one in series for dot in one.dots)
    return f"H: {x_label}. " + "; ".join(parts) + "." + (f" Error bars: {errors}." if bars else "")


def _dot_words(dot: Dot) -> str:
    entropy, error = f"{dot.entropy:.4g}", error_text(dot.mse)
    if dot.entropy_error:
        entropy += f" ± {dot.entropy_error:.2g}"
    if dot.mse_error:
        error += f" ± {error_text(dot.mse_error, dot.mse)}"
    note = f"{dot.note}: " if dot.note else ""
    return f"{note}H {entropy}, MSE {error}{'' if dot.converged else ' (attack not converged)'}"
