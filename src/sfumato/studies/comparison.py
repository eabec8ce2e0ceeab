"""Tables 1 to 8 beside the published ones: averages, CEM's gain by the paper's rule, and at equal accuracy."""

import statistics
from collections.abc import Sequence
from typing import Any

from sfumato import paper
from sfumato.attacks import NOT_JUDGED
from sfumato.report.averages import Mean
from sfumato.report.tables import Cell, Row, Table
from sfumato.studies.engine import Store
from sfumato.studies.equal_accuracy import compare
from sfumato.studies.plan import Budget, RowSpec, experiments_of, seeds_of
from sfumato.studies.results import Curves, SeedResults, cell, collect, gain, seeds_note, shared_attacks


def gains_table(curves: Curves, rows: dict[str, RowSpec]) -> Table | None:
    """Every measured point with CEM of a figure against the same defence without it, at the same cut.

    The error is that of the strongest attack on unseen images, among those that the point and its whole curve have.
    None where no curve without CEM has two points.
    """
    every = [one for _, results in curves for one in results if one.results]
    lines = []
    for one in (one for one in every if one.experiment.train.cem):
        train, row = one.experiment.train, one.experiment.row
        same = [
            other for other in every if (other.experiment.row, other.experiment.train.cut_at) == (row, train.cut_at)
        ]
        curve = [other for other in same if not other.experiment.train.cem]
        names = shared_attacks([one, *curve])
        if (found := compare([level.by_seed(names) for level in curve], one.by_seed(names))) is None:
            continue
        low, high = found.interval or (None, None)
        where = "" if found.within else "below the curve's accuracies: not comparable; "
        label = f"{rows[row].label}+CEM, cut {train.cut_at}, σ {train.noise_std:g}, λ {train.lam:g}"
        ratios = (Cell(value, digits=2) for value in (found.effect, low, high))
        cells = (Cell(found.accuracy, percent=True), Cell(found.value), Cell(found.curve_value), *ratios)
        note = f"{where}{found.seeds} seed{'s' * (found.seeds != 1)}; {', '.join(names)}"
        lines.append(Row(label, cells, note=note))
    notes = (
        "CEM's error over that of the same defence with more or less noise, interpolated at CEM's accuracy; above 1 "
        "CEM gains. Unseen images, the strongest of the attacks named; 95 % interval by the delete-one-seed jackknife.",
    )
    columns = ("accuracy", "MSE, test", "MSE of the curve", "ratio", "from", "to")
    return Table("CEM's gain at equal accuracy", columns, tuple(lines), notes, corner="setting") if lines else None


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
