"""A figure of lines with error bars: errors over queries, over knowledge, over epochs, floors over information."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sfumato.errors import ConfigError
from sfumato.report.marks import legend, line_handle
from sfumato.report.palette import MUTED, Style, styles
from sfumato.report.svg import drawing, to_svg

__all__ = ["Line", "line_figure"]

_LINES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Line:
    """One line of a figure.

    Attributes:
        name: what the legend says.
        x, y: the points.
        errors: half the lengths of error bars; empty without any.
        marks: whether each point gets a marker.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    errors: Sequence[float] = ()
    marks: bool = True


def line_figure(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    key: str,
    title: str,
    log_x: bool = False,
    log_y: bool = False,
    references: Mapping[str, float] | None = None,
    looks: Mapping[str, Style] | None = None,
    height: float = 3.6,
) -> str:
    """The figure as inline SVG.

    Args:
        lines: at least one with a point.
        x_label: of the horizontal axis.
        y_label: of the vertical one.
        key: begins the ids inside the SVG, for several figures on one page.
        title: read out by screen readers.
        log_x: horizontal axis logarithmic to base 2, with ticks at the points.
        log_y: vertical axis logarithmic.
        references: names and values of horizontal lines.
        looks: style per name; chosen from the names where None.
        height: in inches, at a width of 6.

    Raises:
        ConfigError: there is no point to draw.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

    lines = [line for line in lines if len(line.x)]
    if not lines:
        raise ConfigError("the figure has no points; give at least one line with a point")
    looks = looks or styles(line.name for line in lines)
    with drawing():
        figure = Figure(figsize=(6.0, height + 0.25 * max(0, (len(lines) + 1) // 2 - 1)), dpi=72, layout="constrained")
        axes = figure.add_subplot()
        for index, line in enumerate(lines):
            look = looks[line.name]
            axes.errorbar(
                list(line.x),
                list(line.y),
                yerr=list(line.errors) or None,
                color=look.colour,
                linestyle=_LINES[index // 10 % len(_LINES)],
                marker=look.marker if line.marks or len(line.x) == 1 else "",
                elinewidth=1.0,
                capsize=2.0,
            )
        if log_x:
            ticks = sorted({value for line in lines for value in line.x})
            axes.set_xscale("log", base=2)
            axes.xaxis.set_major_locator(FixedLocator(ticks))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_locator(NullLocator())
        values = [value for line in lines for value in line.y] + list((references or {}).values())
        if log_y:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            if max(values) > 10 * min(values):
                axes.yaxis.set_minor_formatter(NullFormatter())
            else:
                axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        else:
            axes.set_ylim(0, 1.08 * max(max(values), 1e-9))
        for name, value in (references or {}).items():
            axes.axhline(value, color=MUTED, linewidth=1.0, linestyle=(0, (2, 3)))
            axes.annotate(
                name, (0, value), xycoords=("axes fraction", "data"), xytext=(4, 3), textcoords="offset points",
                ha="left", color=MUTED, fontsize=10.5,
            )  # fmt: skip
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if len(lines) > 1:
            legend(figure, [(line.name, line_handle(looks[line.name])) for line in lines])
        return to_svg(figure, key=key, title=title, description=_words(lines, references or {}))


def _words(lines: Sequence[Line], references: Mapping[str, float]) -> str:
    parts = []
    for line in lines:
        ends = [0, len(line.x) - 1] if len(line.x) > 6 else range(len(line.x))
        parts.append(f"{line.name}: " + ", ".join(f"{line.y[i]:.4g} at {line.x[i]:g}" for i in ends))
    parts += [f"{name}: {value:.4g}" for name, value in references.items()]
    return "; ".join(parts) + "."
