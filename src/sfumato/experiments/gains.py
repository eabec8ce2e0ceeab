"""What CEM gains at equal accuracy: its points against the same defence's curve over the noise."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sfumato.experiments.budget import Budget, RowSpec, load_spec, spec_names
from sfumato.experiments.equal_accuracy import Comparison, compare
from sfumato.experiments.findings import Finding, collect, shared_attacks, smallest_error
from sfumato.experiments.plan import experiments_of
from sfumato.experiments.store import Store
from sfumato.report.cells import Cell, Row, Table

__all__ = ["Gain", "equal_accuracy_gains", "gains_table"]


@dataclass(frozen=True)
class Gain:
    """One setting of CEM against the curve of the same defence without it.

    Attributes:
        row, cut, noise_std, lam: the setting.
        attacks: that the setting and the whole curve have; the error is that of the strongest of them.
        found: the errors at the setting's accuracy, and their ratio.
    """

    row: str
    cut: int | str
    noise_std: float
    lam: float
    attacks: tuple[str, ...]
    found: Comparison


def equal_accuracy_gains(dataset: str, budget: Budget, rows: dict[str, RowSpec], store: Store) -> list[Gain]:
    """Every measured setting of CEM whose defence was also measured without CEM at two or more noise levels.

    All tables and figures of this data set count. The error is that of the strongest attack on unseen images, among the
    attacks that the setting and every point of its curve have.
    """
    findings = _findings(dataset, budget, rows, store)
    gains = []
    for finding in findings:
        train = finding.experiment.train
        if not train.cem or not finding.results:
            continue
        curve = sorted(
            (
                other
                for other in findings
                if not other.experiment.train.cem
                and other.results
                and (other.experiment.row, other.experiment.train.cut_at) == (finding.experiment.row, train.cut_at)
            ),
            key=lambda other: other.experiment.train.noise_std,
        )
        if (found := _gain(finding, curve)) is not None:
            gains.append(found)
    return gains


def gains_table(gains: Sequence[Gain], rows: dict[str, RowSpec], title: str) -> Table | None:
    """The gains as a table; None where there are none."""
    if not gains:
        return None
    columns = ("accuracy", "MSE, test", "MSE of the curve", "ratio", "from", "to")
    lines = []
    for one in sorted(gains, key=lambda gain: (gain.row, str(gain.cut), gain.lam, gain.noise_std)):
        found = one.found
        low, high = found.interval or (None, None)
        where = "" if found.within else "below the curve's accuracies: not comparable; "
        lines.append(
            Row(
                f"{rows[one.row].label}+CEM, cut {one.cut}, σ {one.noise_std:g}, λ {one.lam:g}",
                (
                    Cell(found.accuracy, percent=True),
                    Cell(found.value),
                    Cell(found.curve_value),
                    Cell(found.effect, digits=2),
                    Cell(low, digits=2),
                    Cell(high, digits=2),
                ),
                note=f"{where}{found.seeds} seed{'s' if found.seeds != 1 else ''}; {', '.join(one.attacks)}",
            )
        )
    notes = (
        "CEM's error over that of the same defence with more or less noise, interpolated at CEM's accuracy; above 1 "
        "CEM gains. Unseen images, the strongest of the attacks named; 95 % interval by the delete-one-seed jackknife.",
    )
    return Table(title, columns, tuple(lines), notes, corner="setting")


def _findings(dataset: str, budget: Budget, rows: dict[str, RowSpec], store: Store) -> list[Finding]:
    experiments: dict[str, Any] = {}
    for name in spec_names():
        spec = load_spec(name)
        if spec["dataset"] == dataset and spec["kind"] not in ("efficiency", "ablation"):
            for experiment in experiments_of(spec, budget, rows):
                experiments[experiment.key] = experiment
    return _merged(collect(experiments.values(), store))


def _merged(findings: Iterable[Finding]) -> list[Finding]:
    """A point that a table and a figure both have (with other attacks) counts once, with the more seeds."""
    best: dict[tuple[Any, ...], Finding] = {}
    for finding in findings:
        train = finding.experiment.train
        key = (finding.experiment.row, train.cem, train.cut_at, train.noise_std, train.lam if train.cem else 0.0)
        if key not in best or len(finding.results) > len(best[key].results):
            best[key] = finding
    return list(best.values())


def _gain(finding: Finding, curve: Sequence[Finding]) -> Gain | None:
    names = shared_attacks([finding, *curve])
    found = compare([_by_seed(level, names) for level in curve], _by_seed(finding, names))
    train = finding.experiment.train
    if found is None:
        return None
    return Gain(finding.experiment.row, train.cut_at, train.noise_std, train.lam, names, found)


def _by_seed(finding: Finding, names: Sequence[str]) -> dict[int, tuple[float, float]]:
    return {seed: (result["accuracy"], smallest_error(result, names)) for seed, result in finding.results.items()}
