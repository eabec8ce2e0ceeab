"""The page and the text of the longer study: CEM against noise alone at equal accuracy, over folds."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.errors import ConfigError
from sfumato.report.averages import group
from sfumato.report.chart import Curve, Point
from sfumato.report.figures import trade_off
from sfumato.report.page import Section, evidence_list, figure, part, table, write_page
from sfumato.report.style import label
from sfumato.report.tables import Cell, Row, Table, to_markdown
from sfumato.report.verdict import study_verdict

_CAVEATS = [
    ("The settings were chosen by hand", "and are few. The interval describes chance between folds, not the choice of "
     "network, attack or data."),
    ("Small data.", "8×8 digits show how a method behaves within minutes, and say little about photographs at real "
     "resolution."),
]  # fmt: skip


def write_study_report(path: Path, study: Mapping[str, Any]) -> None:
    """Write the study as one HTML file that needs nothing else.

    Args:
        path: of the page.
        study: `points` (CEM's settings), `noise_curve`, `overall`, `seconds` and `evidence`, as in `study.json`;
            `train_config` and `attack_config` are shown where present.

    Raises:
        ConfigError: the study has no points or no noise-only curve.
        StorageError: the file could not be written.
    """
    tables, overall = _tables(study), study["overall"]
    caption = (
        f"Means over {overall['folds']} folds; up and to the right is better. σ: standard deviation of the noise; λ: "
        "weight of CEM."
    )
    drawn = trade_off(_curves(study), errors="standard error over folds")
    runs = (
        f"{overall['folds']} folds over {overall['digits']:,} digits, every digit unseen once; {len(study['points'])} "
        f"settings of CEM, {len(study['noise_curve'])} of noise alone"
    )
    write_page(
        path,
        title="Sfumato: CEM against noise at equal accuracy",
        verdict=study_verdict(study),
        sections=[
            Section("Accuracy against error", [figure(drawn, caption), part("study_method")]),
            *(Section(one.title, [table(one)]) for one in tables),
            Section("What is not guaranteed", [part("limits", own=_CAVEATS)]),
        ],
        facts=[("runs", runs)],
        seconds=study["seconds"],
        evidence=study["evidence"],
        settings=[
            (f"Settings of the {name} (first run)", json.dumps(study[field], indent=2, sort_keys=True, default=str))
            for name, field in (("training", "train_config"), ("attack", "attack_config"))
            if field in study
        ],
    )


def study_markdown(study: Mapping[str, Any]) -> str:
    """The study as Markdown: the verdict, both tables and the evidence.

    Raises:
        ConfigError: the study has no points or no noise-only curve.
    """
    tables, verdict, overall = _tables(study), study_verdict(study), study["overall"]
    evidence = ", ".join(f"{name} {value}" for name, value in evidence_list(study["evidence"]))
    parts = [
        verdict.headline,
        "\n".join(f"- {note}" for note in verdict.notes),
        *(to_markdown(one).strip() for one in tables),
        f"{overall['folds']} folds, {overall['digits']} digits, {study['seconds']:.0f} s. "
        + evidence.replace("|", r"\|").replace("<", "&lt;")
        + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _tables(study: Mapping[str, Any]) -> tuple[Table, Table]:
    if not study["points"] or not study["noise_curve"]:
        raise ConfigError("the study has no points to compare; run it with at least one setting of noise and of CEM")
    columns = ("accuracy", "error (MSE)")
    points = [
        Row(
            f"σ {row['noise_std']:g}, λ {row['lam']:g}",
            (
                *_measured(row),
                Cell(row["curve_mse"]),
                Cell(row["ratio"], digits=2, note="{:.2f}–{:.2f}".format(*row["ratio_ci"])),
                Cell(row["below_curve_se"] or None, digits=1),
            ),
        )
        for row in study["points"]
    ]
    noise = [Row(f"σ {row['noise_std']:g}", _measured(row)) for row in study["noise_curve"]]
    notes = (
        "σ: standard deviation of the noise; λ: weight of CEM. ±: standard error over folds. Ratio: the attacker's "
        "error with CEM over that with noise alone at the same accuracy, with its 95 % interval; above 1, CEM protects "
        "better. Below: by how many standard errors a setting lies below the curve of noise alone.",
    )
    heads = (*columns, "noise alone at this accuracy", "ratio", "below")
    return (
        Table("Noise with CEM", heads, tuple(points), notes, corner="setting"),
        Table("Noise alone", columns, tuple(noise), corner="setting"),
    )


def _measured(row: Mapping[str, Any]) -> tuple[Cell, Cell]:
    return Cell(row["accuracy"], row["accuracy_se"], digits=1, percent=True), Cell(row["mse_test"], row["mse_se"])


def _curves(study: Mapping[str, Any]) -> list[Curve]:
    def points(rows: Any, name: str, field: str) -> tuple[Point, ...]:
        return tuple(
            Point(row["mse_test"], row["accuracy"], row["mse_se"], row["accuracy_se"], f"{name} {row[field]:g}")
            for row in rows
        )

    families = group(sorted(study["points"], key=lambda row: (row["noise_std"], row["lam"])), "defense", "noise_std")
    return [Curve("noise", points(study["noise_curve"], "σ", "noise_std"))] + [
        Curve(defense, points(own, "λ", "lam"), f"{label(defense)}, σ {noise:g}", variant)
        for variant, ((defense, noise), own) in enumerate(families.items())
    ]
