"""Results of the store, averaged over seeds: every number of the tables, and what a reader has to know beside them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, NamedTuple

from sfumato.attacks import CLOSED_FORM, NOT_JUDGED, judged, strongest
from sfumato.report.averages import Mean, average
from sfumato.report.tables import Cell
from sfumato.studies.engine import Store
from sfumato.studies.experiment import FOLDS, Experiment
from sfumato.studies.plan import Budget, Group, RowSpec, groups_of, seeds_of

Result = dict[str, Any]

LEAKAGE = {"identified": "identified", "information held out, nats": "information"}
"""Heads of columns and the metrics below them."""

SPREAD = "standard deviation over seeds"
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
        return average(_metric(result, name) for result in self.results.values())

    def error(self, names: Iterable[str]) -> Mean | None:
        """The error on unseen images of the strongest of these attacks; None where nothing was measured."""
        found = tuple(names)
        return average(_smallest_error(result, found) for result in self.results.values())

    def by_seed(self, names: Sequence[str] | None = None) -> dict[int, tuple[float, float]]:
        """Accuracy and the error of the strongest of these attacks, or where None the share identified, by seed.

        By fold where the experiment has folds, averaged over the seeds that leave it out: they share its test images.
        """
        groups: dict[int, list[tuple[float, float]]] = {}
        for seed, one in self.results.items():
            value = one["leakage"]["identified"] if names is None else _smallest_error(one, names)
            group = seed if self.experiment.fold is None else seed % FOLDS
            groups.setdefault(group, []).append((one["accuracy"], value))
        return {group: (fmean(x for x, _ in own), fmean(y for _, y in own)) for group, own in groups.items()}

    def cells(self, names: Iterable[str], published: Mapping[str, float | None] | None = None) -> tuple[Cell, ...]:
        """Metrics as tables write them, beside published ones."""
        return tuple(cell(name, self.figure(name), (published or {}).get(name)) for name in names)

    def count(self, converged: bool | None) -> int:
        """Attacks of all seeds with this verdict, by today's rule; None: the result is too old to tell."""
        verdicts = [one for result in self.results.values() for one in judged(result["attacks"]).values()]
        return sum(verdict.converged is converged for verdict in verdicts)

    @property
    def note(self) -> str:
        """How many seeds stand behind a row, and what its attacks' convergence says; empty where there is none."""
        if not (count := len(self.results)):
            return ""
        older = any(result.get("older", False) for result in self.results.values())  # its mixture did not fit
        seeds = f"{count} seed{'s' if count > 1 else ''}" + (", CEM of version 1" if older else "")
        if self.count(False):
            return f"{seeds}, not converged"
        return f"{seeds}, {NOT_JUDGED}" if self.count(None) else seeds


class Collected(NamedTuple):
    """What there is of a line, a curve or a variant."""

    group: Group
    results: list[SeedResults]


def collect(spec: dict[str, Any], budget: Budget, rows: dict[str, RowSpec], store: Store) -> list[Collected]:
    """The results behind a spec, measured or not, seeds of one setting together, in the order of the groups.

    A result of the first version of CEM stands in, marked as older, where there is none of today's.
    """
    return [
        Collected(group, _together([one for seed in seeds_of(spec, budget) for one in group.of_seed(seed)], store))
        for group in groups_of(spec, budget, rows)
    ]


def _together(experiments: Iterable[Experiment], store: Store) -> list[SeedResults]:
    found: dict[str, tuple[Experiment, dict[int, Result]]] = {}
    for experiment in experiments:
        decided = tuple(replace(attack, seed=0) for attack in experiment.attacks)
        unseeded = replace(experiment, train=replace(experiment.train, seed=0), attacks=decided, fold=None)
        _, results = found.setdefault(unseeded.digest, (experiment, {}))
        result = store.read(experiment.key)
        if result is None and (older := store.read(experiment.older_key)) is not None:
            result = older | {"older": True}
        if result is not None:
            results[experiment.train.seed] = result
    return [SeedResults(experiment, results) for experiment, results in found.values()]


def shared_attacks(settings: Iterable[SeedResults]) -> tuple[str, ...]:
    """The attacks that every one of these results has, in the order of the first; only those can be compared."""
    names = [list(result["attacks"]) for one in settings for result in one.results.values()]
    return tuple(name for name in names[0] if all(name in other for other in names)) if names else ()


def _smallest_error(result: Result, names: Iterable[str]) -> float:
    return float(min(result["attacks"][name]["test"]["mse"] for name in names))


def _metric(result: Result, name: str) -> float | None:
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
    return Cell.of(figure, published=published, digits=_DIGITS.get(measure), percent=name in _SHARES)


def attackers(names: Sequence[str]) -> str:
    """Whose error is shown."""
    return f"The error is that of the strongest of: {', '.join(names)}."


def remarks(spec: dict[str, Any], budget: Budget, results: Sequence[SeedResults]) -> list[str]:
    """What a reader has to know before the figures: budget, seeds, how much is done, the data's caveat, convergence."""
    done = sum(len(one.results) for one in results)
    progress = f"{done} of {len(results) * len(seeds_of(spec, budget))} experiments are done"
    if "variants" in spec:
        one = results[0].experiment
        images = "all" if one.train.limit is None else f"{one.train.limit:,}"
        work = f"{images} training images, {one.train.epochs} epochs, decoding attack of {one.attacks[0].epochs}"
        said = [f"Budget {budget.name}, {work}: {progress}."]
    else:
        weight, scaling, schedule = (budget.lam[name] for name in ("sixteen_is", "scaling", "schedule"))
        said = [
            f"Budget {budget.title}. {progress}; ± is the deviation over seeds.",
            f"The paper's λ = 16 stands for {weight:g} in the scaling '{scaling}' along the schedule '{schedule}'.",
        ]
    every = [result for one in results for result in one.results.values()]
    said += sorted({result["caveat"] for result in every if result["caveat"]})
    if loose := sum(one.count(False) for one in results):
        said.append(f"Attacks that had not converged: {loose}; their errors are no evidence of safety.")
    if old := sum(one.count(None) for one in results):
        said.append(
            f"Attacks without a stored history: {old}; {NOT_JUDGED}, so their errors are no evidence of safety."
        )
    devices = {f"{result['evidence']['device']}, torch {result['evidence']['torch']}" for result in every}
    return said + [f"Measured on {device}." for device in sorted(devices)]
