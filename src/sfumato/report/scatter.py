"""Figure 3 of the paper: the attacker's error against the relative conditional entropy, with an exponential fit."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sfumato.errors import ConfigError
from sfumato.report.averages import error_text
from sfumato.report.chart import Axis, Curve, Fit, Point, draw
from sfumato.report.drawn import Drawn
from sfumato.report.style import Style

__all__ = ["Dot", "Fit", "Series", "entropy_scatter"]

Series = Curve  # the models of one defence


class Dot(Point):
    """One trained model: its relative conditional entropy H(x|z), in the unit of the axis, and the attacker's error."""

    @property
    def entropy(self) -> float:
        """Of any sign."""
        return self.x

    @property
    def mse(self) -> float:
        """Mean squared error."""
        return self.y


def entropy_scatter(
    series: Sequence[Curve],
    *,
    looks: Mapping[str, Style] | None = None,
    x_label: str = "relative conditional entropy H(x|z), nats",
    y_label: str = "attacker's error (MSE)",
    reference: float | None = None,
    key: str = "entropy",
    errors: str = "errors",
) -> Drawn:
    """The attacker's error (upwards) against the conditional entropy (to the right), as inline SVG."""
    shown = [one for one in series if one.points]
    if not shown:
        raise ConfigError("the entropy figure has no dots; give at least one measured model")
    for fit in (one.fit for one in shown):
        if fit is not None and not (fit.a > 0 and math.isfinite(fit.a) and math.isfinite(fit.b)):
            raise ConfigError(f"a fit a exp(b x) needs a finite a above 0 and a finite b, got a {fit.a}, b {fit.b}")
    if reference is not None:
        shown = [one if min(dot.y for dot in one.points) < reference else replace(one, fit=None) for one in shown]
    highest = max([dot.y + (dot.y_error or 0.0) for one in shown for dot in one.points] + [reference or 0.0])

    def arrange(axes: Any) -> None:
        axes.set_ylim(0, 1.08 * highest or 1.0)
        axes.margins(x=0.08)

    return draw(
        shown,
        Axis(x_label, "H", lambda value, _: f"{value:.4g}"),
        Axis(y_label, "MSE", error_text),
        arrange,
        key=key,
        title="The attacker's error against the conditional entropy",
        looks=looks,
        errors=errors,
        across={} if reference is None else {"answering with the mean image": reference},
        joined=False,
        alone=not shown[0].name,
    )
