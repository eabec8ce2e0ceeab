"""The page of `sfumato tune`: what was found, the curve that was searched, and what it rests on."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.report.averages import percent_text
from sfumato.report.chart import Curve, Point
from sfumato.report.figures import trade_off
from sfumato.report.page import Section, figure, part, table, write_page
from sfumato.report.tables import Cell, Row, Table
from sfumato.report.verdict import Verdict

_NOTE = (
    "Accuracy, error (MSE) and identification on all held-out images; points lost against the baseline on the same "
    "images, ± standard error. Identified: how often the attacker tells which image was sent. Information: an upper "
    "bound on what a feature tells about its image; 1 nat is 1.44 bits. The setting is chosen by the error."
)


def write_tune_report(path: Path, result: Mapping[str, Any]) -> None:
    """Write the search as one HTML file that needs nothing else."""
    space, count = result["space"], f"{result['trainings']} of {result['grid_trainings']} on the whole grid"
    sections: list[Section | None] = []
    if result.get("command"):
        sections.append(Section("Train it", [part("command", command=result["command"])]))
    if curves := tune_curves(result):
        floor = _floor(result)
        drawn = trade_off(curves, floor=floor, errors="standard error of the difference to the baseline")
        caption = (
            "Held-out images; up and to the right is better. σ: standard deviation of the noise; λ: weight of CEM, per "
            "dimension of the feature. Dotted: the floor; the large point was chosen. Only what the search needed was "
            f"trained, some of it in one fold only: {count}."
            + ("" if floor is None else f" Floor: {percent_text(floor)} %.")
        )
        sections.append(Section("The curve that was searched", [figure(drawn, caption)]))
    if result["curve"]:
        sections.append(Section("The numbers", [table(tune_table(result))], wide=True))
    cheap = "" if space["attack"] == "ridge" else ", and a decoder, trained briefly"
    limits = [
        ("The attackers here are cheap ones", f"(a linear map and nearest neighbours{cheap}). They rank settings; how "
         "much a strong attacker reconstructs is for sfumato audit to say."),
        ("The floor is met on average", "over trainings and images like these, with the confidence stated. A single "
         "new training may be a little less accurate."),
        *(("A training warned:", text) for text in result["warnings"]),
    ]  # fmt: skip
    write_page(
        path,
        title="Sfumato: which defence, which strength?",
        verdict=Verdict(result["headline"], tuple(result["notes"])),
        sections=[
            *sections,
            Section("How the choice was made", [part("tune_method", images=f"{result['images']:,}", space=space,
                    floor=result["floor"]["words"])]),
            Section("What is not guaranteed", [part("limits", own=limits)]),
        ],
        facts=[("images", f"{result['images']:,}, each held out once"), ("trainings", count)],
        seconds=result["training_seconds"],
        evidence=result["evidence"],
        settings=[("Settings of all trainings", json.dumps(result.get("config", {}), indent=2, sort_keys=True))],
    )  # fmt: skip


def tune_curves(result: Mapping[str, Any]) -> list[Curve]:
    """One curve per defence and noise level, along lambda from noise alone, and the baseline as a point."""
    curves = []
    if (baseline := result["baseline"]) is not None:
        curves.append(Curve("none", (Point(baseline["error"], baseline["accuracy"], note="no defence"),)))
    for name, noise in sorted({_foot(row) for row in result["curve"]}):
        own = sorted((row for row in result["curve"] if _foot(row) == (name, noise)), key=lambda row: row["lam"])
        before = f"{name} " if name else ""
        points = []
        for row in own:
            note = f"λ {row['lam']:g}" if row["lam"] else f"σ {noise:g}"
            chosen, converged = row["verdict"] == "chosen", row["converged"] is True
            points.append(Point(row["error"], row["accuracy"], None, row["loss_se"], note, chosen, converged))
        curves.append(Curve(f"{before}σ {noise:g}", tuple(points), f"{before}noise σ {noise:g}"))
    return curves


def _foot(row: Mapping[str, Any]) -> tuple[str, float]:
    name = row.get("defense", "")
    return "" if name == "none" else name, row["noise_std"]


def tune_table(result: Mapping[str, Any]) -> Table:
    """One line per setting that was trained, the baseline first."""
    rows = []
    if (baseline := result["baseline"]) is not None:
        cells = _cells(baseline, Cell(), baseline["strongest"])
        rows.append(Row("no defence", cells, note=_count(baseline["trainings"])))
    for row in result["curve"]:
        name, noise = _foot(row)
        label = f"{name} σ {noise:g}".lstrip() + (
            f", λ {row['lam']:g}" if row["lam"] else ", no CEM" if name else " alone"
        )
        spread = None if row["loss_se"] is None else 100 * row["loss_se"]
        by = row["strongest"] + ("" if row["converged"] else ", not converged")
        by = by if row["strongest"] else "the training diverged"
        cells = _cells(row, Cell(100 * row["loss"], spread, digits=1), by)
        note = f"{row['verdict']}, {_count(row['trainings'])}"
        rows.append(Row(label, cells, note, emphasis=row["verdict"] == "chosen"))
    return Table(
        "The settings that were trained",
        ("accuracy", "points lost", "strongest attacker's error", "identified", "information held out, nats"),
        tuple(rows),
        (_NOTE,),
        corner="strength",
    )  # fmt: skip


def _cells(row: Mapping[str, Any], lost: Cell, note: str) -> tuple[Cell, ...]:
    accuracy = Cell(row["accuracy"], percent=True, digits=1)
    leaked = (Cell(row["identified"], percent=True, digits=1), Cell(row["information"], digits=1))
    return (accuracy, lost, Cell(row["error"], note=note), *leaked)


def _count(count: int) -> str:
    return f"{count} training{'s' * (count > 1)}"


def _floor(result: Mapping[str, Any]) -> float | None:
    floor = result["floor"]
    if floor["accuracy_at_least"] is not None:
        return float(floor["accuracy_at_least"])
    baseline = result["baseline"]
    return None if baseline is None else float(baseline["accuracy"] - floor["lose_at_most"] / 100)
