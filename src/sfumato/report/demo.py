"""The page of `sfumato demo`: what was measured, what it looks like, what it means and what it does not."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.attacks import NOT_JUDGED, strongest, suite_verdict
from sfumato.errors import ConfigError
from sfumato.report.averages import Mean, average, error_text, group, percent_text
from sfumato.report.cells import MISSING, Cell, Row, Table
from sfumato.report.figures import Curve, Point, information_curve, trade_off
from sfumato.report.page import write_page
from sfumato.report.palette import Style, styles
from sfumato.report.pictures import png_data_uri
from sfumato.report.tables import to_html
from sfumato.report.verdict import demo_verdict

__all__ = ["demo_table", "write_demo_report"]


@dataclass(frozen=True)
class _Measure:
    """One line of the table: a field of the rows, its name, and how a value (like a mean) is written."""

    field: str
    label: str
    write: Callable[[float, float], str]


def _decimals(count: int) -> Callable[[float, float], str]:
    return lambda value, _: f"{value:.{count}f}"


_MEASURES = (
    _Measure("accuracy", "accuracy, %", lambda value, _: percent_text(value)),
    _Measure("mse_test", "MSE, unseen", error_text),
    _Measure("identified", "identified, %", lambda value, _: percent_text(value)),
    _Measure("information", "information held out, nats", _decimals(1)),
    _Measure("identified_at_most", "identified at most, %", lambda value, _: percent_text(value)),
    _Measure("mse_train", "MSE, training", error_text),
    _Measure("psnr_test", "PSNR, unseen, dB", _decimals(2)),
    _Measure("ssim_test", "SSIM, unseen", _decimals(3)),
)

Setting = tuple[str, float]
"""Defence and noise."""

Summary = dict[Setting, dict[str, Mean | None]]
Groups = Mapping[Setting, Sequence[Mapping[str, Any]]]


def write_demo_report(
    path: Path, result: Mapping[str, Any], originals: Tensor, reconstructed: Mapping[str, Tensor]
) -> None:
    """Write the demo's result as one HTML file that needs nothing else: no network, no scripts.

    Args:
        path: of the page.
        result: as in `result.json`; repetitions with other seeds are averaged here, and convergence is judged here.
        originals: (n, C, H, W) in [0, 1].
        reconstructed: the same images as the strongest attack of each defence reconstructs them, by the defence's name
            (`noise0.4` for a level of noise alone that is not CEM's own).

    Raises:
        ConfigError: the result has no rows.
        FeatureError: the pictures are no images.
        StorageError: the file could not be written.
    """
    rows = result["rows"]
    if not rows:
        raise ConfigError("the result has no rows; run the demo before writing its report")
    groups = _settings(rows)
    summary: Summary = {
        (defense, noise): {measure.field: average(_value(row, measure.field) for row in own) for measure in _MEASURES}
        for (defense, noise), own in groups.items()
    }
    verdicts = [suite_verdict(row) for row in rows]
    histories = {name: values for name, values in result["histories"].items() if values}
    reference = result["mean_image_mse"]
    looks = styles([*(defense for defense, _ in summary), *histories])
    write_page(
        path,
        "demo.html.j2",
        title="Sfumato demo",
        verdict=demo_verdict(result["equal_accuracy"], verdicts, images=result["test_images"]),
        looks=looks,
        strips=_strips(originals, reconstructed, summary, groups, looks),
        columns=[
            {"slot": looks[defense].slot, "label": _label(looks, defense, noise), "hint": _column_hint(own)}
            for (defense, noise), own in groups.items()
        ],
        table=_table(summary),
        attack_table=_attack_table(groups, looks),
        trade_off=trade_off(_curves(groups), looks=looks, reference=reference, errors="standard deviation over seeds"),
        information=information_curve(histories, looks=looks) if histories else None,
        information_names=[looks[name].label for name in histories],
        several_seeds=any(len(own) > 1 for own in groups.values()),
        loose=[
            {"label": _label(looks, row["defense"], row["noise_std"]), "seed": row["seed"], "reason": verdict.reason}
            for row, verdict in zip(rows, verdicts, strict=True)
            if not verdict.converged
        ],
        total=len(rows),
        lam=result["lam"],
        reference=error_text(reference),
        seeds=sorted({row["seed"] for row in rows}),
        counts=(result["train_images"], result["test_images"]),
        seconds=result["seconds"],
        evidence=result["evidence"],
        caveat=result["caveat"],
    )


def demo_table(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heads and lines of the demo's table as the command and the README show it, one line per defence and noise."""
    groups = _settings(rows)
    looks = styles(row["defense"] for row in rows)
    heads = (
        "defence",
        "accuracy",
        "MSE, unseen",
        "strongest attack",
        "identified",
        "information, nats",
        "SSIM",
        "seeds",
    )
    lines: list[tuple[str, ...]] = []
    for (defense, noise), own in groups.items():
        values = {measure.field: average(_value(row, measure.field) for row in own) for measure in _MEASURES}
        shown = {
            measure.field: _written(measure, value)
            + ("" if value is None or value.sd is None else f" ± {measure.write(value.sd, value.mean)}")
            for measure, value in ((one, values[one.field]) for one in _MEASURES)
        }
        by = ", ".join(dict.fromkeys(row["strongest"] for row in own if "strongest" in row)) or MISSING
        percent = {name: shown[name] + " %" * (shown[name] != MISSING) for name in ("accuracy", "identified")}
        lines.append(
            (
                _label(looks, defense, noise),
                percent["accuracy"],
                shown["mse_test"],
                by,
                percent["identified"],
                shown["information"],
                shown["ssim_test"],
                _column_hint(own),
            )
        )
    return heads, lines


def _settings(rows: Sequence[Mapping[str, Any]]) -> Groups:
    """The rows of each setting."""
    found = group([dict(row) for row in rows], "defense", "noise_std")
    return {(defense, noise): found[defense, noise] for defense, noise in sorted(found, key=_place)}


def _value(row: Mapping[str, Any], field: str) -> float | None:
    """A figure of a row; rows older than identification have another `information`, that of their training features."""
    if field == "information" and "identified" not in row:
        return None
    value: float | None = row.get(field)
    return value


def _place(setting: tuple[Any, ...]) -> tuple[bool, bool, str, float]:
    """No defence first, CEM last, noise in rising order."""
    defense, noise = setting
    return defense != "none", defense.endswith("+cem"), defense, noise


def _label(looks: Mapping[str, Style], defense: str, noise: float) -> str:
    return looks[defense].label + (f", σ\u00a0{noise:g}" if noise else "")


def _column_hint(rows: Sequence[Mapping[str, Any]]) -> str:
    hint = f"{len(rows)} seed{'s' * (len(rows) > 1)}"
    verdicts = [suite_verdict(row).converged for row in rows]
    if loose := verdicts.count(False):
        hint += f", {loose} not converged"
    return f"{hint}, {NOT_JUDGED}" if None in verdicts else hint


def _strips(
    originals: Tensor,
    reconstructed: Mapping[str, Tensor],
    summary: Summary,
    groups: Groups,
    looks: Mapping[str, Style],
) -> list[dict[str, Any]]:
    strips: list[dict[str, Any]] = [
        {"slot": None, "label": "original", "uri": png_data_uri(originals), "figures": "", "alt": "The originals"}
    ]
    for (defense, noise), own in groups.items():
        name = next((one for one in (f"{defense}{noise:g}", defense) if one in reconstructed), None)
        if name is None:
            continue
        values, label = summary[defense, noise], _label(looks, defense, noise)
        shown = {measure.field: _written(measure, values[measure.field]) for measure in _MEASURES}
        figures = ", ".join(
            f"{words}\u00a0{shown[field]}{unit}"
            for field, words, unit in (
                ("mse_test", "error", ""),
                ("identified", "identified", "\u00a0%"),
                ("accuracy", "accuracy", "\u00a0%"),
            )
            if shown[field] != MISSING
        )
        by = own[0].get("strongest")
        strips.append(
            {
                "slot": looks[defense].slot,
                "label": label,
                "uri": png_data_uri(reconstructed[name]),
                "figures": figures + (f" ({by})" if by else ""),
                "alt": f"The same images, reconstructed by the strongest attack, with: {label} ({figures} on average)",
            }
        )
    return strips


def _written(measure: _Measure, value: Mean | None) -> str:
    return MISSING if value is None else measure.write(value.mean, value.mean)


def _table(summary: Summary) -> list[dict[str, Any]]:
    lines = []
    for measure in _MEASURES:
        cells = []
        for values in summary.values():
            value = values[measure.field]
            spread = "" if value is None or value.sd is None else f"± {measure.write(value.sd, value.mean)}"
            cells.append((_written(measure, value), spread))
        if any(cell[0] != MISSING for cell in cells):
            lines.append({"label": measure.label, "cells": cells})
    return lines


def _attack_table(groups: Groups, looks: Mapping[str, Style]) -> str | None:
    """Every attack's error on unseen images, the strongest first; None for results that kept none."""
    kept = {setting: [row for row in own if "attacks" in row] for setting, own in groups.items()}
    every = [row["attacks"] for own in kept.values() for row in own]
    if not every:
        return None
    names = sorted(every[0], key=lambda name: sum(one[name]["test"]["mse"] for one in every))
    lines = []
    for (defense, noise), own in kept.items():
        if not own:
            continue
        figures = {name: average(row["attacks"][name]["test"]["mse"] for row in own) for name in names}
        best = strongest({name: mean.mean for name, mean in figures.items() if mean is not None})
        cells = tuple(
            Cell(mean.mean, mean.sd, note="strongest" if name == best else "")
            for name, mean in figures.items()
            if mean is not None
        )
        lines.append(Row(_label(looks, defense, noise), cells, note=_column_hint(own)))
    table = Table("Every attack", tuple(names), tuple(lines), corner="MSE on unseen images")
    return to_html(table)


def _curves(groups: Groups) -> list[Curve]:
    """The settings of each defence along the noise, averaged over seeds."""
    curves: dict[str, list[Point]] = {}
    for (defense, noise), own in groups.items():
        error, share = average(row["mse_test"] for row in own), average(row["accuracy"] for row in own)
        if error is None or share is None:
            continue
        settled = all(suite_verdict(row).converged for row in own)
        note = f"σ {noise:g}" if noise else ""
        curves.setdefault(defense, []).append(
            Point(error.mean, share.mean, error.sd, share.sd, note, converged=settled)
        )
    return [Curve(defense, tuple(points)) for defense, points in curves.items()]
