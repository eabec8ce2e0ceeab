"""Tables 1 to 8: our figures beside the published ones, the paper's averages, and what CEM gains by its rule."""

import statistics
from collections.abc import Sequence
from typing import Any

from sfumato import paper
from sfumato.attacks import NOT_JUDGED
from sfumato.experiments.budget import Budget, RowSpec
from sfumato.experiments.findings import Finding, collect, gain, seeds_note
from sfumato.experiments.plan import experiments_of
from sfumato.experiments.store import Store
from sfumato.report.cells import Cell, Row, Table

__all__ = ["circumstances", "comparison_table", "progress", "remarks"]

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
_DIGITS = {"mse": 4, "ssim": 3, "psnr": 2, "identified": 1, "information": 1}
_SHARES = ("accuracy", "identified")
_ATTACKS = ("decoder", "gan")


def comparison_table(spec: dict[str, Any], budget: Budget, rows: dict[str, RowSpec], store: Store) -> Table:
    """A table with all its rows, measured or not, at one budget."""
    columns = _COLUMNS[spec["metrics"]]
    findings = {
        (finding.experiment.row, finding.experiment.train.cem): finding
        for finding in collect(experiments_of(spec, budget, rows), store)
    }
    published = paper.published(spec["published"])
    lines = []
    for (name, cem), finding in findings.items():
        cells = tuple(_cell(finding, metric, published.get((name, cem), {})) for metric in columns.values())
        label = rows[name].label + ("+CEM" if cem else "")
        lines.append(Row(label, cells, note=seeds_note(finding)))
    lines += _averages(spec, rows, findings, list(columns.values()))
    notes = [*remarks(budget, list(findings.values())), *_gains(spec, rows, findings), *_oddities(spec)]
    return Table(spec["title"], tuple(columns), tuple(lines), tuple(notes))


def remarks(budget: Budget, findings: Sequence[Finding]) -> list[str]:
    """What a reader has to know before the figures: budget, seeds, how much is done, the data's caveat, convergence."""
    found = [f"Budget {budget.title}. {progress(budget, findings)}; ± is the deviation over seeds."]
    weight, scaling, schedule = (budget.lam[name] for name in ("sixteen_is", "scaling", "schedule"))
    found.append(
        f"The paper's λ = 16 stands for {weight:g} in the scaling '{scaling}' along the schedule '{schedule}'."
    )
    return found + circumstances(findings)


def progress(budget: Budget, findings: Sequence[Finding]) -> str:
    """How many of the experiments are done, as a clause."""
    done = sum(len(finding.results) for finding in findings)
    return f"{done} of {len(findings) * len(budget.seeds)} experiments are done"


def circumstances(findings: Sequence[Finding]) -> list[str]:
    """The data's caveat, attacks that had not converged, devices."""
    results = [result for finding in findings for result in finding.results.values()]
    found = sorted({result["caveat"] for result in results if result["caveat"]})
    if unconverged := sum(finding.unconverged for finding in findings):
        found.append(f"Attacks that had not converged: {unconverged}; their errors are no evidence of safety.")
    if unjudged := sum(finding.unjudged for finding in findings):
        found.append(
            f"Attacks without a stored history: {unjudged}; {NOT_JUDGED}, so their errors are no evidence of safety."
        )
    devices = sorted({f"{result['evidence']['device']}, torch {result['evidence']['torch']}" for result in results})
    return found + [f"Measured on {device}." for device in devices]


def _cell(finding: Finding, metric: str, published: dict[str, float]) -> Cell:
    figure = finding.figure(metric)
    return Cell(
        ours=None if figure is None else figure.mean,
        spread=None if figure is None else figure.spread,
        published=published.get(metric),
        **_written(metric),
    )


def _written(metric: str) -> dict[str, Any]:
    return {"digits": _DIGITS.get(metric.split("_")[1] if "_" in metric else metric), "percent": metric in _SHARES}


def _counted(rows: dict[str, RowSpec], findings: dict[tuple[str, bool], Finding]) -> list[str]:
    """The paper's rows that were measured with and without CEM."""
    names = [name for name, cem in findings if cem and rows[name].paper]
    return [name for name in names if all(findings[name, cem].results for cem in (False, True))]


def _average(findings: dict[tuple[str, bool], Finding], names: list[str], cem: bool, metric: str) -> float | None:
    figures = [findings[name, cem].figure(metric) for name in names]
    means = [figure.mean for figure in figures if figure is not None]
    return statistics.fmean(means) if means and len(means) == len(names) else None


def _averages(
    spec: dict[str, Any], rows: dict[str, RowSpec], findings: dict[tuple[str, bool], Finding], metrics: list[str]
) -> list[Row]:
    names = _counted(rows, findings)
    printed = paper.averages(spec["published"])
    lines = []
    for cem in (False, True):
        cells = []
        for metric in metrics:
            ours = _average(findings, names, cem, metric)
            cells.append(Cell(ours, None, printed[cem].get(metric), **_written(metric)))
        note = f"ours over {len(names)} of 7 defences"
        lines.append(Row(f"Average {'w/' if cem else 'w/o'} CEM", tuple(cells), note=note, emphasis=True))
    return lines


def _gains(spec: dict[str, Any], rows: dict[str, RowSpec], findings: dict[tuple[str, bool], Finding]) -> list[str]:
    if spec["metrics"] != "mse":
        return []
    table = spec["published"]
    names, printed, stated = _counted(rows, findings), paper.averages(table), paper.STATED_GAINS[table]
    found = []
    for part, words in (("train", "training images"), ("test", "unseen images")):
        theirs = gain(lambda cem, metric: printed[cem].get(metric), _ATTACKS, part)
        ours = gain(lambda cem, metric: _average(findings, names, cem, metric), _ATTACKS, part)
        shown = "not measured yet" if ours is None else f"{ours:+.1%}"
        found.append(
            f"CEM's gain in MSE on {words} by the paper's rule (ratio of the averages over rows, averaged over both "
            f"attacks), at unequal accuracy: {shown}; published averages give {theirs:+.1%}, the text states "
            f"{stated[part]:+.1%}."
        )
    return found


def _oddities(spec: dict[str, Any]) -> list[str]:
    odd = paper.ODDITIES.get(spec["published"], ())
    return [f"In the published table {'; '.join(odd)}."] if odd else []
