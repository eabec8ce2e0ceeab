"""Tables 1 to 8 beside the published ones: averages, CEM's gain by the paper's rule, and at equal accuracy."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sfumato import paper
from sfumato.attacks import NOT_JUDGED
from sfumato.report.averages import Mean
from sfumato.report.tables import Cell, Row, Table
from sfumato.studies.engine import Store
from sfumato.studies.equal_accuracy import Comparison, compare
from sfumato.studies.experiment import Experiment
from sfumato.studies.plan import Budget, RowSpec, experiments_of, load_spec, seeds_of, spec_names
from sfumato.studies.results import SeedResults, cell, collect, gain, seeds_note, shared_attacks

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


_LEAKAGE = {
    "strongest MSE, test": "strongest_mse_test",
    "identified": "identified",
    "information held out, nats": "information",
}
_COLUMNS = {
    "mse": {
        "accuracy": "accuracy",
        "decoder MSE, train": "decoder_mse_train",
        "decoder MSE, test": "decoder_mse_test",
        "GAN MSE, train": "gan_mse_train",
        "GAN MSE, test": "gan_mse_test",
        **_LEAKAGE,
    },
    "similarity": {
        "accuracy": "accuracy",
        "decoder SSIM": "decoder_ssim_test",
        "decoder PSNR": "decoder_psnr_test",
        "GAN SSIM": "gan_ssim_test",
        "GAN PSNR": "gan_psnr_test",
        **_LEAKAGE,
    },
}
Rows = dict[tuple[str, bool], SeedResults]
"""Results by row and whether CEM is added."""

_ATTACKS = ("decoder", "gan")


def comparison_table(spec: dict[str, Any], budget: Budget, rows: dict[str, RowSpec], store: Store) -> Table:
    """A table with all its rows, measured or not, at one budget."""
    columns = _COLUMNS[spec["metrics"]]
    found = {
        (one.experiment.row, one.experiment.train.cem): one
        for one in collect(experiments_of(spec, budget, rows), store)
    }
    published = paper.published(spec["published"])
    lines = []
    for (name, cem), one in found.items():
        theirs = published.get((name, cem), {})
        cells = tuple(cell(metric, one.figure(metric), theirs.get(metric)) for metric in columns.values())
        lines.append(Row(rows[name].label + ("+CEM" if cem else ""), cells, note=seeds_note(one)))
    lines += _averages(spec, rows, found, list(columns.values()))
    notes = [*remarks(spec, budget, list(found.values())), *_gains(spec, rows, found), *_oddities(spec)]
    return Table(spec["title"], tuple(columns), tuple(lines), tuple(notes))


def remarks(spec: dict[str, Any], budget: Budget, results: Sequence[SeedResults]) -> list[str]:
    """What a reader has to know before the figures: budget, seeds, how much is done, the data's caveat, convergence."""
    weight, scaling, schedule = (budget.lam[name] for name in ("sixteen_is", "scaling", "schedule"))
    return [
        f"Budget {budget.title}. {progress(spec, budget, results)}; ± is the deviation over seeds.",
        f"The paper's λ = 16 stands for {weight:g} in the scaling '{scaling}' along the schedule '{schedule}'.",
        *circumstances(results),
    ]


def progress(spec: dict[str, Any], budget: Budget, results: Sequence[SeedResults]) -> str:
    """How many of the experiments are done, as a clause."""
    done = sum(len(one.results) for one in results)
    return f"{done} of {len(results) * len(seeds_of(spec, budget))} experiments are done"


def circumstances(results: Sequence[SeedResults]) -> list[str]:
    """The data's caveat, attacks that had not converged, devices."""
    every = [result for one in results for result in one.results.values()]
    found = sorted({result["caveat"] for result in every if result["caveat"]})
    if unconverged := sum(one.unconverged for one in results):
        found.append(f"Attacks that had not converged: {unconverged}; their errors are no evidence of safety.")
    if unjudged := sum(one.unjudged for one in results):
        found.append(
            f"Attacks without a stored history: {unjudged}; {NOT_JUDGED}, so their errors are no evidence of safety."
        )
    devices = sorted({f"{result['evidence']['device']}, torch {result['evidence']['torch']}" for result in every})
    return found + [f"Measured on {device}." for device in devices]


def _counted(rows: dict[str, RowSpec], found: Rows) -> list[str]:
    """The paper's rows that were measured with and without CEM."""
    names = [name for name, cem in found if cem and rows[name].paper]
    return [name for name in names if all(found[name, cem].results for cem in (False, True))]


def _average(found: Rows, names: list[str], cem: bool, metric: str) -> float | None:
    figures = [found[name, cem].figure(metric) for name in names]
    means = [figure.mean for figure in figures if figure is not None]
    return statistics.fmean(means) if means and len(means) == len(names) else None


def _averages(spec: dict[str, Any], rows: dict[str, RowSpec], found: Rows, metrics: list[str]) -> list[Row]:
    names, printed = _counted(rows, found), paper.averages(spec["published"])
    lines = []
    for cem in (False, True):
        cells = []
        for metric in metrics:
            mean = _average(found, names, cem, metric)
            figure = None if mean is None else Mean(mean, None, 1)
            cells.append(cell(metric, figure, printed[cem].get(metric)))
        note = f"ours over {len(names)} of 7 defences"
        lines.append(Row(f"Average {'w/' if cem else 'w/o'} CEM", tuple(cells), note=note, emphasis=True))
    return lines


def _gains(spec: dict[str, Any], rows: dict[str, RowSpec], found: Rows) -> list[str]:
    if spec["metrics"] != "mse":
        return []
    table = spec["published"]
    names, printed, stated = _counted(rows, found), paper.averages(table), paper.STATED_GAINS[table]
    notes = []
    for part, words in (("train", "training images"), ("test", "unseen images")):
        theirs = gain(lambda cem, metric: printed[cem].get(metric), _ATTACKS, part)
        ours = gain(lambda cem, metric: _average(found, names, cem, metric), _ATTACKS, part)
        shown = "not measured yet" if ours is None else f"{ours:+.1%}"
        notes.append(
            f"CEM's gain in MSE on {words} by the paper's rule (ratio of the averages over rows, averaged over both "
            f"attacks), at unequal accuracy: {shown}; published averages give {theirs:+.1%}, the text states "
            f"{stated[part]:+.1%}."
        )
    return notes


def _oddities(spec: dict[str, Any]) -> list[str]:
    odd = paper.ODDITIES.get(spec["published"], ())
    return [f"In the published table {'; '.join(odd)}."] if odd else []
