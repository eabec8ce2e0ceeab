"""Results of the store, averaged over seeds: every number of the tables, and the curves of Figures 3 and 4."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from sfumato.attacks import CLOSED_FORM, NOT_JUDGED, Convergence, judged, strongest
from sfumato.errors import ConfigError
from sfumato.report.averages import Mean, average
from sfumato.report.chart import Curve, Fit, Point
from sfumato.report.figures import entropy_scatter, trade_off
from sfumato.report.tables import Cell, Row, Table
from sfumato.studies.engine import Store
from sfumato.studies.experiment import FOLDS, Experiment
from sfumato.studies.plan import Budget, RowSpec, curve_experiments

Result = dict[str, Any]

_DIGITS = {"ssim": 3, "psnr": 2} | dict.fromkeys(
    ("identified", "identified_at_most", "information", "information_error"), 1
)
_SHARES = ("accuracy", "identified", "identified_at_most")


@dataclass(frozen=True)
class SeedResults:
    """All seeds of one setting.

    Attributes:
        experiment: of the first seed.
        results: by seed; may be empty.
    """

    experiment: Experiment
    results: Mapping[int, Result]

    def figure(self, name: str) -> Mean | None:
        """A metric's mean and spread; None where nothing was measured."""
        return average(metric(result, name) for result in self.results.values())

    def error(self, names: Iterable[str]) -> Mean | None:
        """The error on unseen images of the strongest of these attacks; None where nothing was measured."""
        found = tuple(names)
        return average(smallest_error(result, found) for result in self.results.values())

    def by_seed(self, names: Sequence[str] | None = None) -> dict[int, tuple[float, float]]:
        """Accuracy and the error of the strongest of these attacks, or where None the share identified, by seed.

        By fold where the experiment has folds, averaged over the seeds that leave it out: they share its test images.
        """
        groups: dict[int, list[tuple[float, float]]] = {}
        for seed, one in self.results.items():
            value = one["leakage"]["identified"] if names is None else smallest_error(one, names)
            group = seed if self.experiment.fold is None else seed % FOLDS
            groups.setdefault(group, []).append((one["accuracy"], value))
        return {group: (fmean(x for x, _ in own), fmean(y for _, y in own)) for group, own in groups.items()}

    @property
    def older(self) -> bool:
        """Whether a result is of the first version of CEM, whose mixture did not fit the features of the steps."""
        return any(result.get("older", False) for result in self.results.values())

    @property
    def verdicts(self) -> list[Convergence]:
        """Today's verdict on every attack of every seed."""
        return [verdict for result in self.results.values() for verdict in judged(result["attacks"]).values()]

    @property
    def unconverged(self) -> int:
        """Attacks that had not converged."""
        return sum(verdict.converged is False for verdict in self.verdicts)

    @property
    def unjudged(self) -> int:
        """Attacks whose result is too old to tell."""
        return sum(verdict.converged is None for verdict in self.verdicts)


def collect(experiments: Iterable[Experiment], store: Store) -> list[SeedResults]:
    """The results of these experiments, seeds of one setting together, in the order of the experiments."""
    found: dict[str, tuple[Experiment, dict[int, Result]]] = {}
    for experiment in experiments:
        key = _without_seed(experiment)
        _, results = found.setdefault(key, (experiment, {}))
        result = store.read(experiment.key)
        if result is None and (older := store.read(experiment.older_key)) is not None:
            result = older | {"older": True}
        if result is not None:
            results[experiment.train.seed] = result
    return [SeedResults(experiment, results) for experiment, results in found.values()]


def seeds_note(setting: SeedResults) -> str:
    """How many seeds stand behind a row, and what its attacks' convergence says; empty where there is none."""
    count = len(setting.results)
    if not count:
        return ""
    seeds = f"{count} seed{'s' if count > 1 else ''}" + (", CEM of version 1" if setting.older else "")
    if setting.unconverged:
        return f"{seeds}, not converged"
    return f"{seeds}, {NOT_JUDGED}" if setting.unjudged else seeds


def shared_attacks(settings: Iterable[SeedResults]) -> tuple[str, ...]:
    """The attacks that every one of these results has, in the order of the first; only those can be compared."""
    names = [list(result["attacks"]) for one in settings for result in one.results.values()]
    return tuple(name for name in names[0] if all(name in other for other in names)) if names else ()


def smallest_error(result: Result, names: Iterable[str]) -> float:
    """The error on unseen images of the strongest of these attacks."""
    return float(min(result["attacks"][name]["test"]["mse"] for name in names))


def metric(result: Result, name: str) -> float | None:
    """A figure of a result; None where it was not measured, as in results older than the measure."""
    if name == "accuracy":
        return float(result["accuracy"])
    if not name.endswith(("_train", "_test")):
        value = (result.get("leakage") or {}).get(name)
        return None if value is None else float(value)
    attack, measure, part = name.split("_")
    figures = result["attacks"]
    if attack == "strongest":
        if not set(CLOSED_FORM) <= set(figures):
            return None
        attack = strongest({one: figures[one][part]["mse"] for one in figures})
    return None if attack not in figures else float(figures[attack][part][measure])


def cell(name: str, figure: Mean | None, published: float | None = None) -> Cell:
    """A metric as tables write it.

    >>> cell("accuracy", Mean(0.9, None, 1)).shown
    '90.00'
    """
    measure = name.split("_")[1] if name.endswith(("_train", "_test")) else name
    digits, percent = _DIGITS.get(measure), name in _SHARES
    mean, spread = (None, None) if figure is None else (figure.mean, figure.sd)
    return Cell(mean, spread, published, digits=digits, percent=percent)


def gain(averages: Callable[[bool, str], float | None], attacks: Sequence[str], part: str) -> float | None:
    """What CEM adds to the attackers' MSE, by the paper's rule: the ratio of the averages over rows, less 1, averaged
    over the attacks.
    """
    ratios = []
    for attack in attacks:
        without, with_cem = (averages(cem, f"{attack}_mse_{part}") for cem in (False, True))
        if without is None or with_cem is None:
            return None
        ratios.append(with_cem / without - 1.0)
    return fmean(ratios)


def _without_seed(experiment: Experiment) -> str:
    decided = tuple(replace(attack, seed=0) for attack in experiment.attacks)
    return replace(experiment, train=replace(experiment.train, seed=0), attacks=decided, fold=None).digest


_COLUMNS = {
    "accuracy": "accuracy",
    "decoder MSE, train": "decoder_mse_train",
    "decoder MSE, test": "decoder_mse_test",
    "strongest MSE, test": "strongest_mse_test",
    "identified": "identified",
    "information held out, nats": "information",
}
_SPREAD = "standard deviation over seeds"

Curves = Sequence[tuple[dict[str, Any], list[SeedResults]]]
"""Each curve of a figure with its points' results, in the order of its variances."""


def collect_curves(spec: dict[str, Any], budget: Budget, rows: dict[str, RowSpec], store: Store) -> Curves:
    """What there is of a figure's curves."""
    seeds = budget.seeds
    return [
        (curve, collect([one for seed in seeds for one in curve_experiments(spec, budget, rows, curve, seed)], store))
        for curve in spec["curves"]
    ]


def points_table(spec: dict[str, Any], found: Curves, notes: Sequence[str]) -> Table:
    """The figure's points as a table."""
    lines = [
        Row(
            f"{curve['label']}, {_variance(one)}",
            tuple(cell(metric, one.figure(metric)) for metric in _COLUMNS.values()),
            note=seeds_note(one),
        )
        for curve, results in found
        for one in results
    ]
    return Table(spec["title"], tuple(_COLUMNS), tuple(lines), tuple(notes), corner="point")


def draw(spec: dict[str, Any], found: Curves) -> tuple[str, str] | None:
    """(caption, SVG) of a figure; None where nothing was measured yet."""
    every = [one for _, results in found for one in results]
    names = shared_attacks(every)
    if spec["kind"] == "entropy":
        known = [figure.mean for one in every if (figure := one.figure("information")) is not None]
        return _draw_entropy(spec, found, names, max(known)) if known else None
    if not names:
        return None
    curves = [
        Curve(curve["label"], points, name=curve["label"], variant=int(curve["cem"]))
        for curve, results in found
        if (points := trade_off_points(results, names, _variance))
    ]
    svg = trade_off(curves, key=spec["name"], errors=_SPREAD)
    return f"{spec['title']}\nEach curve runs along the noise; up and to the right is better. {_attackers(names)}", svg


def trade_off_points(
    results: Sequence[SeedResults], names: Sequence[str], note: Callable[[SeedResults], str]
) -> tuple[Point, ...]:
    """Accuracy against the error of the strongest of these attacks, for what is measured."""
    points = []
    for one in results:
        accuracy, error = one.figure("accuracy"), one.error(names)
        if accuracy is not None and error is not None:
            spreads, converged = (error.sd, accuracy.sd), not one.unconverged
            points.append(Point(error.mean, accuracy.mean, *spreads, note(one), converged=converged))
    return tuple(points)


def exponential_fit(x: Sequence[float], y: Sequence[float]) -> Fit:
    """Least squares of log y on x: `y = a exp(b x)`, with R^2 on the logarithmic scale."""
    if len(set(x)) < 2:
        raise ConfigError("an exponential fit needs at least two different points; measure another one")
    logs = [math.log(value) for value in y]
    b, intercept = statistics.linear_regression(x, logs)
    mean = fmean(logs)
    residual = sum((log - intercept - b * value) ** 2 for value, log in zip(x, logs, strict=True))
    total = sum((log - mean) ** 2 for log in logs)
    return Fit(math.exp(intercept), b, 1.0 - residual / total if total > 0 else 1.0)


def _draw_entropy(spec: dict[str, Any], found: Curves, names: Sequence[str], most: float) -> tuple[str, str]:
    series = []
    for curve, results in found:
        dots = []
        for one in results:
            information, error = one.figure("information"), one.error(names)
            if information is not None and error is not None:
                entropy, converged = most - information.mean, not one.unconverged
                dots.append(Point(entropy, error.mean, None, error.sd, _variance(one), converged=converged))
        if dots:
            several = len({dot.x for dot in dots}) > 1
            fit = exponential_fit([dot.x for dot in dots], [dot.y for dot in dots]) if several else None
            series.append(Curve(curve["row"] + "+cem", tuple(dots), name=curve["label"], fit=fit))
    svg = entropy_scatter(series, key=spec["name"], errors=_SPREAD)
    caption = (
        f"{spec['title']}\nThe entropy is relative: H(x) is unknown and replaced by the constant that puts the first "
        "point at 0. Information is the upper bound on held-out features. The fit is by least squares on the "
        f"logarithm, R² on that scale. {_attackers(names)}"
    )
    return caption, svg


def _variance(one: SeedResults) -> str:
    return f"σ² {one.experiment.train.noise_std**2:.3g}"


def _attackers(names: Sequence[str]) -> str:
    return f"The error is that of the strongest of: {', '.join(names)}."
