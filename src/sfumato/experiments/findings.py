"""Results of the store by what they are results of, averaged over seeds; every number of the tables comes from here."""

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sfumato.experiments.experiment import Experiment
from sfumato.experiments.store import Store

__all__ = ["Figure", "Finding", "collect", "gain", "metric", "seeds_note"]

Result = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """A mean over seeds.

    Attributes:
        mean: of the seeds.
        spread: standard deviation over seeds; None for one.
        count: of seeds.
    """

    mean: float
    spread: float | None
    count: int


@dataclass(frozen=True)
class Finding:
    """All seeds of one setting.

    Attributes:
        experiment: of the first seed.
        results: by seed; may be empty.
    """

    experiment: Experiment
    results: Mapping[int, Result]

    def figure(self, name: str) -> Figure | None:
        """A metric's mean and spread; None where nothing was measured."""
        values = [value for result in self.results.values() if (value := metric(result, name)) is not None]
        if not values:
            return None
        return Figure(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    @property
    def unconverged(self) -> int:
        """Attacks that had not converged."""
        return sum(not attack["converged"] for result in self.results.values() for attack in result["attacks"].values())


def collect(experiments: Iterable[Experiment], store: Store) -> list[Finding]:
    """The findings of these experiments, seeds of one setting together, in the order of the experiments."""
    found: dict[str, tuple[Experiment, dict[int, Result]]] = {}
    for experiment in experiments:
        key = _without_seed(experiment)
        _, results = found.setdefault(key, (experiment, {}))
        if (result := store.read(experiment.key)) is not None:
            results[experiment.train.seed] = result
    return [Finding(experiment, results) for experiment, results in found.values()]


def seeds_note(finding: Finding) -> str:
    """How many seeds stand behind a row; empty where there is none."""
    count = len(finding.results)
    return "" if not count else f"{count} seed{'s' if count > 1 else ''}"


def metric(result: Result, name: str) -> float | None:
    """A figure of a result: `accuracy`, `decoder_mse_test`, `gan_ssim_train`, ...; None where it was not measured."""
    if name == "accuracy":
        return float(result["accuracy"])
    attack, measure, part = name.split("_")
    attacked = result["attacks"].get(attack)
    return None if attacked is None else float(attacked[part][measure])


def gain(averages: Callable[[bool, str], float | None], attacks: Sequence[str], part: str) -> float | None:
    """What CEM adds to the attackers' MSE, by the paper's rule: the ratio of the averages over rows, less 1, averaged
    over the attacks.

    Args:
        averages: `(with CEM, metric)` -> average over the rows; None where it is missing.
        attacks: names of the attacks.
        part: `train` or `test`.
    """
    ratios = []
    for attack in attacks:
        without, with_cem = (averages(cem, f"{attack}_mse_{part}") for cem in (False, True))
        if without is None or with_cem is None:
            return None
        ratios.append(with_cem / without - 1.0)
    return statistics.fmean(ratios)


def _without_seed(experiment: Experiment) -> str:
    identity = experiment.identity()
    identity["train"] = {name: value for name, value in identity["train"].items() if name != "seed"}
    identity["attacks"] = {
        attack: {name: value for name, value in settings.items() if name != "seed"}
        for attack, settings in identity["attacks"].items()
    }
    return repr(identity)
