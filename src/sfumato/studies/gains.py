"""What CEM gains at equal accuracy: its points against the same defence's curve over the noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sfumato.report.cells import Cell, Row, Table
from sfumato.studies.equal_accuracy import Comparison, compare
from sfumato.studies.experiment import Experiment
from sfumato.studies.plan import experiments_of
from sfumato.studies.results import SeedResults, collect, shared_attacks
from sfumato.studies.spec import Budget, RowSpec, load_spec, spec_names
from sfumato.studies.store import Store

_COMPARED = ("comparison", "pictures", "curves", "entropy")


@dataclass(frozen=True)
class Gain:
    """One setting of CEM against the curve of the same defence without it, by the strongest of the attacks that the
    setting and the whole curve have.
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
    measured = [one for one in _every_point(dataset, budget, rows, store) if one.results]
    gains = []
    for one in measured:
        train, row = one.experiment.train, one.experiment.row
        if not train.cem:
            continue
        curve = [
            other
            for other in sorted(measured, key=lambda other: other.experiment.train.noise_std)
            if not other.experiment.train.cem
            and (other.experiment.row, other.experiment.train.cut_at) == (row, train.cut_at)
        ]
        names = shared_attacks([one, *curve])
        if (found := compare([level.by_seed(names) for level in curve], one.by_seed(names))) is not None:
            gains.append(Gain(row, train.cut_at, train.noise_std, train.lam, names, found))
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


def _every_point(dataset: str, budget: Budget, rows: dict[str, RowSpec], store: Store) -> list[SeedResults]:
    """A point that a table and a figure both have (with other attacks) counts once, with the more seeds."""
    experiments: dict[str, Experiment] = {}
    for spec in map(load_spec, spec_names()):
        if spec["dataset"] == dataset and spec["kind"] in _COMPARED:
            experiments |= {one.key: one for one in experiments_of(spec, budget, rows)}
    best: dict[tuple[Any, ...], SeedResults] = {}
    for one in collect(experiments.values(), store):
        train = one.experiment.train
        key = (one.experiment.row, train.cem, train.cut_at, train.noise_std, train.lam if train.cem else 0.0)
        if key not in best or len(one.results) > len(best[key].results):
            best[key] = one
    return list(best.values())
