"""Cost against size on logarithmic axes, where a power law is a straight line and its slope the exponent."""

from collections.abc import Mapping, Sequence
from typing import Any

from sfumato.errors import ConfigError
from sfumato.report.palette import GRID, INK, MUTED, styles
from sfumato.report.svg import drawing, to_svg

__all__ = ["scaling_figure"]

_PANEL = (3.6, 3.0)


def scaling_figure(sweeps: Sequence[Mapping[str, Any]], *, key: str = "scaling") -> str:
    """One panel per operation, one line per swept size, over that size relative to its smallest value; inline SVG.

    Args:
        sweeps: each with `what`, `over`, `values`, `seconds` and the fitted `exponent`.
        key: begins the ids inside the SVG.

    Raises:
        ConfigError: there is nothing to draw.
    """
    if not sweeps:
        raise ConfigError("there is no sweep to draw; run `sfumato bench` first")
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, ScalarFormatter

    panels = list(dict.fromkeys(str(sweep["what"]) for sweep in sweeps))
    looks = styles(dict.fromkeys(str(sweep["over"]) for sweep in sweeps))
    with drawing():
        figure = Figure(figsize=(_PANEL[0] * len(panels), _PANEL[1]), layout="constrained")
        for number, what in enumerate(panels, 1):
            axes = figure.add_subplot(1, len(panels), number)
            for sweep in sweeps:
                if sweep["what"] != what:
                    continue
                look = looks[str(sweep["over"])]
                relative = [value / sweep["values"][0] for value in sweep["values"]]
                slower = [second / sweep["seconds"][0] for second in sweep["seconds"]]
                label = f"{sweep['over']}: exponent {sweep['exponent']:.2f}"
                axes.plot(relative, slower, color=look.colour, marker=look.marker, label=label)
            axes.set_xscale("log")
            axes.set_yscale("log")
            slowest = max(max(sweep["seconds"]) / sweep["seconds"][0] for sweep in sweeps if sweep["what"] == what)
            axes.set_ylim(0.7, 12 * slowest)  # room for the legend above the lines
            axes.set_title(what, color=INK)
            axes.set_xlabel("size over its smallest")
            axes.set_ylabel("time over its smallest" if number == 1 else "")
            axes.grid(color=GRID, linewidth=0.6)
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_formatter(ScalarFormatter())
                axis.set_minor_locator(NullLocator())
            axes.legend(frameon=False, labelcolor=MUTED, fontsize="small")
        told = "; ".join(
            f"{sweep['what']} over {sweep['over']} {sweep['values'][0]:,} to {sweep['values'][-1]:,}: exponent "
            f"{sweep['exponent']:.2f}"
            for sweep in sweeps
        )
        return to_svg(figure, key=key, title="How the cost of CEM grows", description=told)
