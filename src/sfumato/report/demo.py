"""The page of `sfumato demo`: what was measured, what it looks like, what it means and what it does not."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.attacks import NOT_JUDGED, strongest, suite_verdict
from sfumato.errors import ConfigError
from sfumato.report.averages import Mean, average, error_text, group
from sfumato.report.chart import Curve, Point
from sfumato.report.figures import information_curve, trade_off
from sfumato.report.page import CONVERGED, Section, figure, part, table, write_page
from sfumato.report.pictures import png_data_uri
from sfumato.report.style import Style, styles
from sfumato.report.tables import MISSING, Cell, Row, Table
from sfumato.report.verdict import demo_verdict

_MEASURES: dict[str, tuple[str, int | None, bool]] = {
    "accuracy": ("accuracy", 1, True),
    "mse_test": ("MSE, unseen", None, False),
    "identified": ("identified", 1, True),
    "information": ("information held out, nats", 1, False),
    "identified_at_most": ("identified at most", 1, True),
    "mse_train": ("MSE, training", None, False),
    "psnr_test": ("PSNR, unseen, dB", 2, False),
    "ssim_test": ("SSIM, unseen", 3, False),
}
"""Field of the rows -> its name, its decimals, and whether it is a share."""

Groups = Mapping[tuple[str, float], Sequence[Mapping[str, Any]]]
"""Defence and noise -> its rows."""


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
    groups, verdicts = _settings(rows), [suite_verdict(row) for row in rows]
    histories = {name: values for name, values in result["histories"].items() if values}
    looks = styles([*(defense for defense, _ in groups), *histories])
    seeds = sorted({row["seed"] for row in rows})
    reference, test = error_text(result["mean_image_mse"]), f"{result['test_images']:,}"
    names = ", ".join(looks[name].label for name in histories)
    attacks = _attack_table(groups, looks)
    costs = trade_off(
        _curves(groups), looks=looks, reference=result["mean_image_mse"], errors="standard deviation over seeds"
    )
    loose = [
        f"{_label(looks, row['defense'], row['noise_std'])}, seed {row['seed']}: {verdict.reason}"
        for row, verdict in zip(rows, verdicts, strict=True)
        if not verdict.converged
    ]
    sections = [
        Section("What the attacker sees", [
            part("split", sent="a feature", noise="noise σ"),
            part("demo_intro"),
            part("strips", strips=_strips(originals, reconstructed, groups, looks)),
            part("demo_strips", seed=seeds[0], reference=reference),
        ]),
        Section("The numbers", [
            table(_numbers(groups, looks)),
            part("demo_numbers", several=len(seeds) > 1, lam=f"{result['lam']:g}", reference=reference),
        ], wide=True),
        Section("Every attack", [table(attacks)]) if attacks else None,
        Section("What privacy costs", [figure(costs, "Each point is a setting with attacks of its own; up and to the "
                "right is better. σ: standard deviation of the noise.")]),
        Section("The information during training", [figure(information_curve(histories, looks=looks),
                "Bound of Theorem 2 on the information that the noisy feature carries, from the moments of the "
                f"training features after each epoch, which underestimate it, seed {seeds[0]} ({names}). "
                "1 nat is 1.44 bits.")])
        if histories else None,
        Section("What these numbers mean", [part("demo_meaning", candidates=test)]),
        Section("What is not guaranteed", [
            part("unconverged", heading=f"In {len(loose)} of {len(rows)} runs not every attack had converged",
                 reasons=loose) if loose else part("para", text=f"In all {len(rows)} runs every attack {CONVERGED}"),
            part("limits", own=[("Small data.", result["caveat"])]),
        ]),
    ]  # fmt: skip
    write_page(
        path,
        title="Sfumato demo: can handwritten digits be reconstructed from what leaves the device?",
        verdict=demo_verdict(result["equal_accuracy"], verdicts, images=result["test_images"]),
        sections=sections,
        facts=[
            ("runs", f"{len(rows)} in the table, seeds {', '.join(map(str, seeds))}"),
            ("images", f"{result['train_images']:,} for training, {test} unseen"),
            ("data", result["caveat"]),
        ],
        seconds=result["seconds"],
        evidence=result["evidence"],
    )


def demo_table(rows: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Heads and lines of the demo's table as the command and the README show it, one line per defence and noise."""
    groups, looks = _settings(rows), styles(row["defense"] for row in rows)
    heads = ("defence", "accuracy", "MSE, unseen", "strongest attack", "identified", "information, nats", "SSIM",
             "seeds")  # fmt: skip
    lines: list[tuple[str, ...]] = []
    for (defense, noise), own in groups.items():
        cells = _cells(own)
        shown = {
            name: " ".join(text for text in (cell.shown, cell.shown_spread, "%" * cell.percent) if text)
            if cell.ours is not None
            else MISSING
            for name, cell in cells.items()
        }
        by = ", ".join(dict.fromkeys(row["strongest"] for row in own if "strongest" in row)) or MISSING
        fields = (shown[name] for name in ("identified", "information", "ssim_test"))
        lines.append(
            (_label(looks, defense, noise), shown["accuracy"], shown["mse_test"], by, *fields, _seeds_note(own))
        )
    return heads, lines


def _settings(rows: Sequence[Mapping[str, Any]]) -> Groups:
    """The rows of each setting: no defence first, CEM last, noise in rising order."""
    found = group([dict(row) for row in rows], "defense", "noise_std")
    order = sorted(found, key=lambda one: (one[0] != "none", one[0].endswith("+cem"), one))
    return {(defense, noise): found[defense, noise] for defense, noise in order}


def _cells(rows: Sequence[Mapping[str, Any]]) -> dict[str, Cell]:
    """Means over seeds; rows older than identification have another `information`, that of their training features."""
    cells = {}
    for name, (_, digits, percent) in _MEASURES.items():
        mean = average(row.get(name) for row in rows if name != "information" or "identified" in row)
        cells[name] = _cell(mean, digits=digits, percent=percent)
    return cells


def _cell(mean: Mean | None, **how: Any) -> Cell:
    return Cell(**how) if mean is None else Cell(mean.mean, mean.sd, **how)


def _label(looks: Mapping[str, Style], defense: str, noise: float) -> str:
    return looks[defense].label + (f", σ\u00a0{noise:g}" if noise else "")


def _seeds_note(rows: Sequence[Mapping[str, Any]]) -> str:
    hint = f"{len(rows)} seed{'s' * (len(rows) > 1)}"
    verdicts = [suite_verdict(row).converged for row in rows]
    if loose := verdicts.count(False):
        hint += f", {loose} not converged"
    return f"{hint}, {NOT_JUDGED}" if None in verdicts else hint


def _numbers(groups: Groups, looks: Mapping[str, Style]) -> Table:
    cells = {setting: _cells(own) for setting, own in groups.items()}
    known = [name for name in _MEASURES if any(own[name].ours is not None for own in cells.values())]
    rows = [
        Row(_label(looks, *setting), tuple(cells[setting][name] for name in known), _seeds_note(own))
        for setting, own in groups.items()
    ]
    return Table("The numbers", tuple(_MEASURES[name][0] for name in known), tuple(rows), corner="defence")


def _strips(
    originals: Tensor, reconstructed: Mapping[str, Tensor], groups: Groups, looks: Mapping[str, Style]
) -> list[dict[str, Any]]:
    strips: list[dict[str, Any]] = [
        {"slot": None, "label": "original", "uri": png_data_uri(originals), "figures": "", "alt": "The originals"}
    ]
    for (defense, noise), own in groups.items():
        name = next((one for one in (f"{defense}{noise:g}", defense) if one in reconstructed), None)
        if name is None:
            continue
        cells, label = _cells(own), _label(looks, defense, noise)
        figures = ", ".join(
            f"{words}\u00a0{cells[field].shown}{unit}"
            for field, words, unit in (
                ("mse_test", "error", ""), ("identified", "identified", "\u00a0%"), ("accuracy", "accuracy", "\u00a0%")
            )
            if cells[field].ours is not None
        )  # fmt: skip
        strips.append({
            "slot": looks[defense].slot,
            "label": label,
            "uri": png_data_uri(reconstructed[name]),
            "figures": figures + (f" ({own[0]['strongest']})" if own[0].get("strongest") else ""),
            "alt": f"The same images, reconstructed by the strongest attack, with: {label} ({figures} on average)",
        })  # fmt: skip
    return strips


def _attack_table(groups: Groups, looks: Mapping[str, Style]) -> Table | None:
    """Every attack's error on unseen images, the strongest first; None for results that kept none."""
    kept = {setting: [row["attacks"] for row in own if "attacks" in row] for setting, own in groups.items()}
    every = [one for own in kept.values() for one in own]
    if not every:
        return None
    names = sorted(every[0], key=lambda name: sum(one[name]["test"]["mse"] for one in every))
    lines = []
    for setting, own in kept.items():
        means = {name: average(one[name]["test"]["mse"] for one in own) for name in names}
        best = strongest({name: mean.mean for name, mean in means.items() if mean is not None}) if own else ""
        cells = tuple(_cell(mean, note="strongest" * (name == best)) for name, mean in means.items())
        lines.append(Row(_label(looks, *setting), cells, note=_seeds_note(groups[setting])))
    return Table("Every attack", tuple(names), tuple(lines), corner="MSE on unseen images")


def _curves(groups: Groups) -> list[Curve]:
    """The settings of each defence along the noise, averaged over seeds."""
    curves: dict[str, list[Point]] = {}
    for (defense, noise), own in groups.items():
        cells, settled = _cells(own), all(suite_verdict(row).converged for row in own)
        error, share, note = cells["mse_test"], cells["accuracy"], f"σ {noise:g}" if noise else ""
        if error.ours is not None and share.ours is not None:
            point = Point(error.ours, share.ours, error.spread, share.spread, note, converged=settled)
            curves.setdefault(defense, []).append(point)
    return [Curve(defense, tuple(points)) for defense, points in curves.items()]
