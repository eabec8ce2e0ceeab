"""How CEM's cost grows with batch, dimensions, clusters and samples: medians, fitted exponents, and their picture."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from sfumato.bench.training import clustered
from sfumato.cem import CEM
from sfumato.report.drawn import to_svg
from sfumato.report.style import GRID, INK, MUTED, drawing, styles

__all__ = ["Scaling", "fitted_exponent", "scaling", "scaling_figure"]

_PANEL = (3.6, 3.0)

_BATCH, _DIM, _PER_CLASS, _SAMPLES = 128, 512, 3, 20_000


@dataclass(frozen=True)
class Scaling:
    """One quantity swept, the others kept.

    Attributes:
        what: `loss` (forward and backward of a batch) or `refresh` (a warm one).
        over: what is swept.
        values: of it.
        seconds: medians.
        exponent: b of the least-squares fit seconds = a value^b on a logarithmic scale.
        limit: the project's own limit of the exponent, or None.
    """

    what: str
    over: str
    values: tuple[int, ...]
    seconds: tuple[float, ...]
    exponent: float
    limit: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self) | {"met": None if self.limit is None else self.exponent <= self.limit}


def fitted_exponent(values: Sequence[float], seconds: Sequence[float]) -> float:
    """b of seconds = a value^b, by least squares of the logarithms."""
    logs = [math.log(value) for value in values]
    slope, _ = statistics.linear_regression(logs, [math.log(second) for second in seconds])
    return slope


def scaling(rounds: int, *, quick: bool = False) -> list[Scaling]:
    """All sweeps: the loss over batch, dimensions and clusters, the refresh over samples, clusters and dimensions."""
    samples, own = (500, 32) if quick else (_SAMPLES, _DIM)
    batches, dims, clusters = (64, 128, 256, 512), (128, 256, 512, 1024), (1, 3, 10, 30)
    swept = (6_250, 12_500, 25_000, 50_000)
    if quick:
        batches, dims, clusters, swept = (32, 64), (32, 64), (1, 3), (400, 800)  # type: ignore[assignment]
    return [
        _sweep("loss", "batch", batches, lambda n: _loss(samples, dim=own, batch=n), rounds),
        _sweep("loss", "dimensions", dims, lambda dim: _loss(samples, dim=dim), rounds),
        _sweep("loss", "clusters", clusters, lambda m: _loss(samples, dim=own, per_class=m), rounds, times=10),
        _sweep("refresh", "samples", swept, lambda n: _refresh(n, dim=own), rounds, limit=1.1),
        _sweep(
            "refresh",
            "clusters",
            clusters,
            lambda m: _refresh(samples, dim=own, per_class=m),
            rounds,
            times=10,
            limit=1.1,
        ),
        _sweep("refresh", "dimensions", dims, lambda dim: _refresh(samples, dim=dim), rounds),
    ]


def _sweep(
    what: str,
    over: str,
    values: tuple[int, ...],
    make: Callable[[int], Callable[[], object]],
    rounds: int,
    *,
    times: int = 1,
    limit: float | None = None,
) -> Scaling:
    seconds = []
    for value in values:
        call = make(value)
        call()
        taken = []
        for _ in range(rounds):
            began = time.perf_counter()
            call()
            taken.append(time.perf_counter() - began)
        seconds.append(statistics.median(taken))
    shown = tuple(value * times for value in values)
    return Scaling(what, over, shown, tuple(seconds), fitted_exponent(shown, seconds), limit)


def _fitted(samples: int, dim: int, per_class: int) -> tuple[CEM, torch.Tensor, torch.Tensor]:
    features, labels = clustered(samples, dim)
    cem = CEM(num_classes=10, clusters_per_class=per_class, noise_std=0.025)
    cem.refresh(features, labels)
    return cem, features, labels


def _loss(samples: int, *, batch: int = _BATCH, dim: int = _DIM, per_class: int = _PER_CLASS) -> Callable[[], object]:
    cem, features, labels = _fitted(samples, dim, per_class)
    z, y = features[:batch].clone().requires_grad_(), labels[:batch]

    def call() -> None:
        z.grad = None
        cem(z, y).backward()

    return call


def _refresh(samples: int, *, dim: int = _DIM, per_class: int = _PER_CLASS) -> Callable[[], object]:
    cem, features, labels = _fitted(samples, dim, per_class)
    return lambda: cem.refresh(features, labels)


def scaling_figure(sweeps: Sequence[Mapping[str, Any]], *, key: str = "scaling") -> str:
    """One panel per operation, one line per swept size, over that size relative to its smallest value; inline SVG.

    Args:
        sweeps: each with `what`, `over`, `values`, `seconds` and the fitted `exponent`.
        key: begins the ids inside the SVG.
    """
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
