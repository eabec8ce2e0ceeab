"""Tables 1 to 8 beside the published ones: averages over rows, and CEM's gain by the paper's rule."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from sfumato import paper
from sfumato.report.averages import Mean
from sfumato.report.tables import Row, Table
from sfumato.studies.plan import Budget, RowSpec
from sfumato.studies.results import LEAKAGE, Collected, SeedResults, cell, remarks

_LEAKAGE = {"strongest MSE, test": "strongest_mse_test", **LEAKAGE}
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
Averages = dict[bool, dict[str, float | None]]
"""Metrics without CEM and with it, averaged over rows."""


def comparison_table(
    spec: dict[str, Any], budget: Budget, rows: dict[str, RowSpec], found: Sequence[Collected]
) -> Table:
    """A table with all its rows, measured or not, at one budget."""
    columns = _COLUMNS[spec["metrics"]]
    metrics = list(columns.values())
    settings = {(one.experiment.row, one.experiment.train.cem): one for _, results in found for one in results}
    published, printed = paper.published(spec["published"]), paper.averages(spec["published"])
    lines = [
        Row(rows[name].label + ("+CEM" if cem else ""), one.cells(metrics, published.get((name, cem))), one.note)
        for (name, cem), one in settings.items()
    ]
    # The paper's rows that were measured with and without CEM.
    pairs = [(settings[name, False], one) for (name, cem), one in settings.items() if cem and rows[name].paper]
    pairs = [pair for pair in pairs if all(one.results for one in pair)]
    ours = {cem: {name: _average([pair[cem] for pair in pairs], name) for name in metrics} for cem in (False, True)}
    for cem, averages in ours.items():
        cells = tuple(
            cell(name, None if mean is None else Mean(mean, None, 1), printed[cem].get(name))
            for name, mean in averages.items()
        )
        note = f"ours over {len(pairs)} of 7 defences"
        lines.append(Row(f"Average {'w/' if cem else 'w/o'} CEM", cells, note=note, emphasis=True))
    notes = [*remarks(spec, budget, list(settings.values())), *_gains(spec, ours, printed)]
    if odd := paper.ODDITIES.get(spec["published"], ()):
        notes.append(f"In the published table {'; '.join(odd)}.")
    return Table(spec["title"], tuple(columns), tuple(lines), tuple(notes))


def _average(settings: Sequence[SeedResults], metric: str) -> float | None:
    figures = [one.figure(metric) for one in settings]
    means = [figure.mean for figure in figures if figure is not None]
    return fmean(means) if means and len(means) == len(settings) else None


def _gains(spec: dict[str, Any], ours: Averages, printed: Any) -> list[str]:
    """What CEM adds to the attackers' MSE by the paper's rule, at unequal accuracy."""
    if spec["metrics"] != "mse":
        return []
    notes = []
    for part, words in (("train", "training images"), ("test", "unseen images")):
        gain, theirs = (_gain(averages, part) for averages in (ours, printed))
        shown = "not measured yet" if gain is None else f"{gain:+.1%}"
        notes.append(
            f"CEM's gain in MSE on {words} by the paper's rule (ratio of the averages over rows, averaged over both "
            f"attacks), at unequal accuracy: {shown}; published averages give {theirs:+.1%}, the text states "
            f"{paper.STATED_GAINS[spec['published']][part]:+.1%}."
        )
    return notes


def _gain(averages: Averages, part: str) -> float | None:
    pairs = [[averages[cem].get(f"{attack}_mse_{part}") for cem in (False, True)] for attack in ("decoder", "gan")]
    ratios = [with_cem / without for without, with_cem in pairs if without is not None and with_cem is not None]
    return fmean(ratios) - 1.0 if len(ratios) == len(pairs) else None
