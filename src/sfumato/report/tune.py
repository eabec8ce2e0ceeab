"""The page of `sfumato tune`: what was found, the curve that was walked, and what it rests on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.attacks import NOT_JUDGED
from sfumato.report.cells import Cell, Row, Table
from sfumato.report.figures import Curve, Point, trade_off
from sfumato.report.page import write_page
from sfumato.report.tables import to_html
from sfumato.report.verdict import Verdict

__all__ = ["tune_curves", "tune_table", "write_tune_report"]


def write_tune_report(path: Path, result: Mapping[str, Any]) -> None:
    """Write the search as one HTML file that needs nothing else.

    Args:
        path: of the page.
        result: as in `tune.json`.

    Raises:
        StorageError: the file could not be written.
    """
    write_page(
        path,
        "tune.html.j2",
        title="Sfumato: which defence, which strength?",
        verdict=Verdict(result["headline"], tuple(result["notes"])),
        figure=_figure(result),
        table=to_html(tune_table(result)) if result["curve"] else None,
        result=result,
        command=result.get("command"),
        space=result["space"],
        loose=any(row["converged"] is not True for row in result["curve"]),
        warnings=result["warnings"],
        settings=json.dumps(result.get("config", {}), indent=2, sort_keys=True, ensure_ascii=False),
        seconds=result["training_seconds"],
        evidence=result["evidence"],
    )


def tune_curves(result: Mapping[str, Any]) -> list[Curve]:
    """One curve per defence and noise level, along lambda from noise alone, and the baseline as a point."""
    curves = []
    if (baseline := result["baseline"]) is not None:
        curves.append(Curve("none", (Point(baseline["error"], baseline["accuracy"], note="no defence"),)))
    for name, noise in sorted({_foot(row) for row in result["curve"]}):
        own = sorted((row for row in result["curve"] if _foot(row) == (name, noise)), key=lambda row: row["lam"])
        before = f"{name} " if name else ""
        points = tuple(
            Point(
                row["error"],
                row["accuracy"],
                accuracy_error=row["loss_se"],
                note=f"λ {row['lam']:g}" if row["lam"] else f"σ {noise:g}",
                emphasis=row["verdict"] == "chosen",
                converged=row["converged"] is True,
            )
            for row in own
        )
        curves.append(Curve(f"{before}σ {noise:g}", points, f"{before}noise σ {noise:g}"))
    return curves


def _foot(row: Mapping[str, Any]) -> tuple[str, float]:
    name = row.get("defense", "")
    return "" if name == "none" else name, row["noise_std"]


def tune_table(result: Mapping[str, Any]) -> Table:
    """One line per setting that was trained, the baseline first."""
    rows = []
    if (baseline := result["baseline"]) is not None:
        cells = (
            Cell(baseline["accuracy"], percent=True, digits=1),
            Cell(),
            Cell(baseline["error"], note=baseline.get("strongest", "")),
            *_leakage(baseline),
        )
        rows.append(Row("no defence", cells, note=_count(baseline["trainings"])))
    for row in result["curve"]:
        name, noise = _foot(row)
        label = f"{name} σ {noise:g}".lstrip() + (
            f", λ {row['lam']:g}" if row["lam"] else ", no CEM" if name else " alone"
        )
        spread = None if row["loss_se"] is None else 100 * row["loss_se"]
        cells = (
            Cell(row["accuracy"], percent=True, digits=1),
            Cell(100 * row["loss"], spread, digits=1),
            Cell(row["error"], note=_attack_note(row)),
            *_leakage(row),
        )
        rows.append(
            Row(label, cells, note=f"{row['verdict']}, {_count(row['trainings'])}", emphasis=row["verdict"] == "chosen")
        )
    return Table(
        "The settings that were trained",
        ("accuracy", "points lost", "strongest attacker's error", "identified", "information held out, nats"),
        tuple(rows),
        ("Accuracy, error and identification on all held-out images; points lost against the baseline on the same "
         "images, ± standard error. The setting is chosen by the strongest attacker's error.",),
        corner="strength",
    )  # fmt: skip


def _attack_note(row: Mapping[str, Any]) -> str:
    if "strongest" not in row:
        return NOT_JUDGED
    if not row["strongest"]:
        return "the training diverged"
    return row["strongest"] + ("" if row["converged"] else ", not converged")


def _leakage(row: Mapping[str, Any]) -> tuple[Cell, Cell]:
    """Identification and information; a dash for searches older than both."""
    return Cell(row.get("identified"), percent=True, digits=1), Cell(row.get("information"), digits=1)


def _count(count: int) -> str:
    return f"{count} training{'s' * (count > 1)}"


def _figure(result: Mapping[str, Any]) -> str | None:
    curves = tune_curves(result)
    if not curves:
        return None
    return trade_off(
        curves,
        floor=_floor(result),
        errors="standard error of the accuracy's difference to the baseline",
    )


def _floor(result: Mapping[str, Any]) -> float | None:
    floor = result["floor"]
    if floor["accuracy_at_least"] is not None:
        return float(floor["accuracy_at_least"])
    baseline = result["baseline"]
    return None if baseline is None else float(baseline["accuracy"] - floor["lose_at_most"] / 100)
