"""The page of several audits: accuracy against the strongest attack, and who dominates whom."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfumato.report.averages import group
from sfumato.report.chart import Curve, Point
from sfumato.report.figures import trade_off
from sfumato.report.page import Section, figure, part, table, write_page
from sfumato.report.tables import Cell, Row, Table
from sfumato.report.verdict import Verdict

_CAPTION = (
    "Each point is a target under its strongest attack; up and to the right is better. Lines join settings of one "
    "defence. MSE: squared difference between original and reconstruction, averaged over pixels from 0 to 1."
)
_PLAIN = {"mse_worst5": None, "psnr_mean": 1, "ssim_mean": 2}


def write_comparison_report(path: Path, comparison: Mapping[str, Any]) -> None:
    """Write a comparison as one HTML file that needs nothing else."""
    subjects, sections = comparison["subjects"], []
    for field, words in (("mse_mean", "Mean error of the strongest attack"), ("mse_worst5", "Worst-served 5 %")):
        if all(one["accuracy"] is not None for one in subjects):
            drawn = trade_off(
                _curves(subjects, field),
                reference=subjects[0]["reference"] if field == "mse_mean" else None,
                key=field.replace("_", "-"),
                errors="standard error",
            )
            sections.append(Section(words, [figure(drawn, _CAPTION)]))
    write_page(
        path,
        title=f"Sfumato: {len(subjects)} audits compared",
        verdict=Verdict(comparison["headline"], tuple(comparison["caveats"])),
        sections=[
            *sections,
            Section("The numbers", [table(comparison_table(subjects))], wide=True),
            Section("Who dominates whom", [part("dominance", subjects=subjects)]),
        ],
        facts=[("targets", ", ".join(one["name"] for one in subjects))],
        seconds=comparison["seconds"],
        evidence=comparison["evidence"],
    )


def _curves(subjects: Sequence[Mapping[str, Any]], field: str) -> list[Curve]:
    """One curve per defence, through its settings in the order of their errors."""
    curves = []
    for (defense,), own in group([dict(one) for one in subjects], "defense").items():
        points = []
        for one in sorted(own, key=lambda one: one[field]):
            bars = (one["mse_error"] if field == "mse_mean" else None, one["accuracy_error"])
            note, converged = one["setting"] if len(own) > 1 else "", one["converged"] is not False
            points.append(Point(one[field], one["accuracy"], *bars, note, converged=converged))
        curves.append(Curve(defense, tuple(points)))
    return curves


def comparison_table(subjects: Sequence[Mapping[str, Any]]) -> Table:
    """One line per target, with those that dominate it."""
    rows = []
    for one in subjects:
        cells = (
            Cell(one["accuracy"], spread=one["accuracy_error"], percent=True, digits=1),
            Cell(one["mse_mean"], spread=one["mse_error"]),
            *(Cell(one[name], digits=digits) for name, digits in _PLAIN.items()),
            Cell(text=one["attack"], note="not converged" * (one["converged"] is False)),
        )
        beaten = one["dominated_by"] and f"dominated by {', '.join(one['dominated_by'])}"
        note = ", ".join(text for text in (one["setting"], beaten) if text)
        rows.append(Row(one["name"], cells, note, emphasis=not beaten))
    notes = (
        "In bold: dominated by no other. ±: standard error. Worst is worst for the person in the picture. PSNR: "
        "10 log₁₀(1 / MSE) in dB; SSIM: likeness of local structure, 1 for identical images.",
    )
    columns = ("accuracy", "MSE", "MSE, worst 5 %", "PSNR, dB", "SSIM", "strongest attack")
    return Table("Targets", columns, tuple(rows), notes, corner="target")
