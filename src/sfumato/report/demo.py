"""The page of `sfumato demo`: what was measured, what it looks like, what it means and what it does not."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.errors import ConfigError
from sfumato.report.averages import Mean, average, error_text, group, percent_text
from sfumato.report.figures import Curve, Point, information_curve, trade_off
from sfumato.report.page import write_page
from sfumato.report.palette import Style, styles
from sfumato.report.pictures import png_data_uri
from sfumato.report.verdict import demo_verdict

__all__ = ["write_demo_report"]


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
    _Measure("mse_train", "MSE, training", error_text),
    _Measure("psnr_test", "PSNR, unseen, dB", _decimals(2)),
    _Measure("psnr_train", "PSNR, training, dB", _decimals(2)),
    _Measure("ssim_test", "SSIM, unseen", _decimals(3)),
    _Measure("ssim_train", "SSIM, training", _decimals(3)),
    _Measure("information", "information, nats", _decimals(1)),
)

Summary = dict[str, dict[str, Mean | None]]


def write_demo_report(path: Path, result: Mapping[str, Any], originals: Tensor, redrawn: Mapping[str, Tensor]) -> None:
    """Write the demo's result as one HTML file that needs nothing else: no network, no scripts.

    Args:
        path: of the page.
        result: `rows`, `curve`, `histories`, `gain`, `mean_image_mse`, `seconds`, `evidence` and `caveat`, as in
            `result.json`; repetitions with other seeds are averaged here.
        originals: (n, C, H, W) in [0, 1].
        redrawn: defence -> the same images as the attacker redrew them.

    Raises:
        ConfigError: the result has no rows.
        FeatureError: the pictures are no images.
        StorageError: the file could not be written.
    """
    rows = result["rows"]
    if not rows:
        raise ConfigError("the result has no rows; run the demo before writing its report")
    summary: Summary = {
        defense: {measure.field: average(row[measure.field] for row in own) for measure in _MEASURES}
        for (defense,), own in group(rows, "defense").items()
    }
    attacks = [*rows, *(row for row in result["curve"] if row not in rows)]
    loose = [row for row in rows if not row["converged"]]
    histories = {name: values for name, values in result["histories"].items() if values}
    reference = result["mean_image_mse"]
    looks = styles([*summary, *redrawn, *histories, *(row["defense"] for row in result["curve"])])
    write_page(
        path,
        "demo.html.j2",
        title="Sfumato demo",
        verdict=demo_verdict(result["gain"], summary, loose, len(rows)),
        looks=looks,
        strips=_strips(originals, redrawn, summary, looks),
        defenses=[(name, _column_hint(own)) for (name,), own in group(rows, "defense").items()],
        table=_table(summary),
        trade_off=trade_off(_curves(result), looks=looks, reference=reference, errors="standard deviation over seeds"),
        information=information_curve(histories, looks=looks) if histories else None,
        information_names=[looks[name].label for name in histories],
        several_seeds=any(len(own) > 1 for own in group(rows, "defense").values()),
        loose=[row for row in attacks if not row["converged"]],
        attacks=len(attacks),
        total=len(rows),
        gain=result["gain"],
        reference=error_text(reference),
        seeds=sorted({row["seed"] for row in rows}),
        counts=(result.get("train_images"), result.get("test_images")),
        seconds=result["seconds"],
        evidence=result["evidence"],
        caveat=result["caveat"],
    )


def _column_hint(rows: Sequence[Mapping[str, Any]]) -> str:
    hint = f"{len(rows)} seed{'s' * (len(rows) > 1)}"
    loose = sum(not row["converged"] for row in rows)
    return f"{hint}, {loose} not converged" if loose else hint


def _strips(
    originals: Tensor, redrawn: Mapping[str, Tensor], summary: Summary, looks: Mapping[str, Style]
) -> list[dict[str, str]]:
    strips = [{"name": "", "label": "original", "uri": png_data_uri(originals), "figures": "", "alt": "The originals"}]
    for name, images in redrawn.items():
        figures = ""
        error, share = (summary.get(name, {}).get(field) for field in ("mse_test", "accuracy"))
        if error is not None and share is not None:
            figures = f"error\u00a0{error_text(error.mean)}, accuracy\u00a0{percent_text(share.mean)}\u00a0%"
        strips.append(
            {
                "name": name,
                "label": looks[name].label,
                "uri": png_data_uri(images),
                "figures": figures,
                "alt": f"The same {len(images)} images as the attacker redrew them with: {looks[name].label}"
                + (f" ({figures} on average)" if figures else ""),
            }
        )
    return strips


def _table(summary: Summary) -> list[dict[str, Any]]:
    lines = []
    for measure in _MEASURES:
        cells = []
        for values in summary.values():
            value = values[measure.field]
            if value is None:
                cells.append(("–", ""))
                continue
            spread = "" if value.sd is None else f"± {measure.write(value.sd, value.mean)}"
            cells.append((measure.write(value.mean, value.mean), spread))
        if any(cell[0] != "–" for cell in cells):
            lines.append({"label": measure.label, "cells": cells})
    return lines


def _curves(result: Mapping[str, Any]) -> list[Curve]:
    """The sweep, averaged over seeds; the settings of the table stand out."""
    in_table = {(row["defense"], row["noise_std"], row["lam"]) for row in result["rows"]}
    curves = []
    for (defense,), own in group(result["curve"] or result["rows"], "defense").items():
        noises = {row["noise_std"] for row in own}
        lams = {row["lam"] for row in own}
        points = []
        settings = group(own, "noise_std", "lam")
        for noise, lam in sorted(settings):
            repeated = settings[noise, lam]
            error, share = average(row["mse_test"] for row in repeated), average(row["accuracy"] for row in repeated)
            if error is None or share is None:
                continue
            notes = [f"σ {noise:g}"] if len(noises) > 1 or (len(lams) == 1 and noise) else []
            notes += [f"λ {lam:g}"] if len(lams) > 1 else []
            points.append(
                Point(
                    error.mean,
                    share.mean,
                    error.sd,
                    share.sd,
                    ", ".join(notes),
                    emphasis=(defense, noise, lam) in in_table and len(settings) > 1,
                    converged=all(row["converged"] for row in repeated),
                )
            )
        curves.append(Curve(defense, tuple(points)))
    return curves
