"""The page and the text of the longer study: CEM against noise alone at equal accuracy, over folds."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.errors import ConfigError
from sfumato.report.averages import error_text, group, percent_text
from sfumato.report.figures import Curve, Point, trade_off
from sfumato.report.page import write_page
from sfumato.report.palette import styles
from sfumato.report.verdict import study_verdict

__all__ = ["study_markdown", "write_study_report"]

_HEADS = (
    "noise σ",
    "λ",
    "accuracy, %",
    "error (MSE)",
    "noise alone at this accuracy",
    "ratio (95\u00a0% interval)",
    "below",
)
_NOISE_HEADS = ("noise σ", "accuracy, %", "error (MSE)")


def write_study_report(path: Path, study: Mapping[str, Any]) -> None:
    """Write the study as one HTML file that needs nothing else.

    Args:
        path: of the page.
        study: `points` (CEM's settings), `noise_curve`, `overall`, `seconds` and `evidence`, as in `study.json`;
            `unconverged`, `train_config` and `attack_config` are shown where present.

    Raises:
        ConfigError: the study has no points or no noise-only curve.
        StorageError: the file could not be written.
    """
    _check(study)
    write_page(
        path,
        "study.html.j2",
        title="Sfumato: CEM against noise at equal accuracy",
        verdict=study_verdict(study),
        trade_off=trade_off(_curves(study), errors="standard error over folds"),
        heads=_HEADS,
        points=_cells(study["points"]),
        noise_heads=_NOISE_HEADS,
        noise_points=_noise_cells(study["noise_curve"]),
        overall=study["overall"],
        settings=[
            (name, json.dumps(study[field], indent=2, sort_keys=True, ensure_ascii=False, default=str))
            for name, field in (("training", "train_config"), ("attack", "attack_config"))
            if field in study
        ],
        seconds=study["seconds"],
        evidence=study["evidence"],
    )


def study_markdown(study: Mapping[str, Any]) -> str:
    """The study as Markdown: the verdict, both tables and the evidence.

    Raises:
        ConfigError: the study has no points or no noise-only curve.
    """
    _check(study)
    verdict = study_verdict(study)
    evidence = ", ".join(f"{name} {value}" for name, value in study["evidence"].items() if value is not None)
    parts = [
        verdict.headline,
        "\n".join(f"- {note}" for note in verdict.notes),
        "Noise with CEM, each setting against noise alone at the same accuracy (± standard error over folds; "
        "`below`: standard errors below the curve of noise alone):",
        _markdown_table(_HEADS, _cells(study["points"])),
        "Noise alone:",
        _markdown_table(_NOISE_HEADS, _noise_cells(study["noise_curve"])),
        f"{study['overall']['folds']} folds, {study['overall']['digits']} digits, {study['seconds']:.0f} s. "
        + _escaped(evidence)
        + ".",
    ]
    return "\n\n".join(parts) + "\n"


def _check(study: Mapping[str, Any]) -> None:
    if not study["points"] or not study["noise_curve"]:
        raise ConfigError("the study has no points to compare; run it with at least one setting of noise and of CEM")


def _curves(study: Mapping[str, Any]) -> list[Curve]:
    curves = [
        Curve(
            "noise",
            tuple(
                Point(row["mse_test"], row["accuracy"], row["mse_se"], row["accuracy_se"], f"σ {row['noise_std']:g}")
                for row in study["noise_curve"]
            ),
        )
    ]
    families = group(sorted(study["points"], key=lambda row: (row["noise_std"], row["lam"])), "defense", "noise_std")
    for variant, ((defense, noise), own) in enumerate(families.items()):
        points = tuple(
            Point(row["mse_test"], row["accuracy"], row["mse_se"], row["accuracy_se"], f"λ {row['lam']:g}")
            for row in own
        )
        name = f"{styles([defense])[defense].label}, σ {noise:g}"
        curves.append(Curve(defense, points, name, variant))
    return curves


def _cells(points: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    cells: list[tuple[str, ...]] = []
    for row in points:
        low, high = row["ratio_ci"]
        cells.append(
            (
                f"{row['noise_std']:g}",
                f"{row['lam']:g}",
                f"{percent_text(row['accuracy'])} ± {percent_text(row['accuracy_se'])}",
                f"{error_text(row['mse_test'])} ± {error_text(row['mse_se'], row['mse_test'])}",
                error_text(row["curve_mse"]),
                f"{row['ratio']:.2f} ({low:.2f}–{high:.2f})",
                f"{row['below_curve_se']:.1f}" if row["below_curve_se"] else "–",
            )
        )
    return cells


def _noise_cells(points: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            f"{row['noise_std']:g}",
            f"{percent_text(row['accuracy'])} ± {percent_text(row['accuracy_se'])}",
            f"{error_text(row['mse_test'])} ± {error_text(row['mse_se'], row['mse_test'])}",
        )
        for row in points
    ]


def _markdown_table(heads: tuple[str, ...], lines: list[tuple[str, ...]]) -> str:
    rows = [heads, tuple("---:" for _ in heads), *lines]
    return "\n".join("| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in rows)


def _escaped(text: str) -> str:
    return text.replace("|", r"\|").replace("<", "&lt;")
