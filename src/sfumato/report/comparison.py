"""The page of several audits: accuracy against the strongest attack, and who dominates whom."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfumato.report.averages import group
from sfumato.report.cells import Cell, Row, Table
from sfumato.report.curves import Curve, Point
from sfumato.report.figures import trade_off
from sfumato.report.page import write_page
from sfumato.report.palette import styles
from sfumato.report.tables import to_html

__all__ = ["write_comparison_report"]


def write_comparison_report(path: Path, comparison: Mapping[str, Any]) -> None:
    """Write a comparison as one HTML file that needs nothing else.

    Args:
        path: of the page.
        comparison: as in `comparison.json`.

    Raises:
        StorageError: the file could not be written.
    """
    subjects = comparison["subjects"]
    looks = styles(one["defense"] for one in subjects)
    figures = []
    if all(one["accuracy"] is not None for one in subjects):
        for field, words in (("mse_mean", "Mean error of the strongest attack"), ("mse_worst5", "Worst-served 5 %")):
            svg = trade_off(
                _curves(subjects, field),
                looks=looks,
                reference=subjects[0]["reference"] if field == "mse_mean" else None,
                key=field.replace("_", "-"),
                errors="standard error",
            )
            figures.append((words, svg))
    write_page(
        path,
        "comparison.html.j2",
        title="Audits compared",
        verdict={"headline": comparison["headline"], "notes": comparison["caveats"]},
        figures=figures,
        table=to_html(_table(subjects)),
        subjects=subjects,
        seconds=comparison["seconds"],
        evidence=comparison["evidence"],
    )


def _curves(subjects: Sequence[Mapping[str, Any]], field: str) -> list[Curve]:
    """One curve per defence, through its settings in the order of their errors."""
    curves = []
    for (defense,), own in group([dict(one) for one in subjects], "defense").items():
        points = tuple(
            Point(
                one[field],
                one["accuracy"],
                one["mse_error"] if field == "mse_mean" else None,
                one["accuracy_error"],
                one["setting"] if len(own) > 1 else "",
                converged=one["converged"] is not False,
            )
            for one in sorted(own, key=lambda one: one[field])
        )
        curves.append(Curve(defense, points))
    return curves


def _table(subjects: Sequence[Mapping[str, Any]]) -> Table:
    rows = tuple(
        Row(
            one["name"],
            (
                Cell(one["accuracy"], spread=one["accuracy_error"], percent=True, digits=1),
                Cell(one["mse_mean"], spread=one["mse_error"]),
                Cell(one["mse_worst5"]),
                Cell(one["psnr_mean"], digits=1),
                Cell(one["ssim_mean"], digits=2),
                Cell(text=one["attack"], note="" if one["converged"] is not False else "not converged"),
            ),
            note=one["setting"],
            emphasis=not one["dominated_by"],
        )
        for one in subjects
    )
    return Table(
        "Targets",
        ("accuracy", "MSE", "MSE, worst 5 %", "PSNR", "SSIM", "strongest attack"),
        rows,
        notes=("In bold: dominated by no other. ±: standard error. Worst is worst for the person in the picture.",),
        corner="target",
    )
