"""The page of `sfumato demo`: what was measured, what it looks like, what it means and what it does not."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from sfumato.attacks import NOT_JUDGED, strongest, suite_verdict
from sfumato.errors import ConfigError
from sfumato.report.averages import average, error_text, group
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


class _Setting(NamedTuple):
    """A defence at one level of noise: how it looks, its rows, and their means over seeds by field."""

    defense: str
    noise: float
    look: Style
    rows: Sequence[Mapping[str, Any]]
    cells: Mapping[str, Cell]

    @property
    def label(self) -> str:
        return self.look.label + (f", σ\u00a0{self.noise:g}" if self.noise else "")

    @property
    def note(self) -> str:
        """How many seeds there are, and what the convergence of their attacks says."""
        hint = f"{len(self.rows)} seed{'s' * (len(self.rows) > 1)}"
        verdicts = [suite_verdict(row).converged for row in self.rows]
        if loose := verdicts.count(False):
            hint += f", {loose} not converged"
        return f"{hint}, {NOT_JUDGED}" if None in verdicts else hint


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
    verdicts = [suite_verdict(row) for row in rows]
    histories = {name: values for name, values in result["histories"].items() if values}
    looks = styles([*(row["defense"] for row in rows), *histories])
    settings = _settings(rows, looks)
    labels = {(one.defense, one.noise): one.label for one in settings}
    seeds = sorted({row["seed"] for row in rows})
    reference, test = error_text(result["mean_image_mse"]), f"{result['test_images']:,}"
    names = ", ".join(looks[name].label for name in histories)
    costs = trade_off(
        _curves(settings), looks=looks, reference=result["mean_image_mse"], errors="standard deviation over seeds"
    )
    loose = [
        f"{labels[row['defense'], row['noise_std']]}, seed {row['seed']}: {verdict.reason}"
        for row, verdict in zip(rows, verdicts, strict=True)
        if not verdict.converged
    ]
    sections = [
        Section("What the attacker sees", [
            part("split", sent="a feature", noise="noise σ"),
            part("demo_intro"),
            part("strips", strips=_strips(originals, reconstructed, settings)),
            part("demo_strips", seed=seeds[0], reference=reference),
        ]),
        Section("The numbers", [
            table(_numbers(settings)),
            part("demo_numbers", several=len(seeds) > 1, lam=f"{result['lam']:g}", reference=reference),
        ], wide=True),
        Section("Every attack", [table(_attack_table(settings))]),
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
    heads = ("defence", "accuracy", "MSE, unseen", "strongest attack", "identified", "information, nats", "SSIM",
             "seeds")  # fmt: skip
    lines: list[tuple[str, ...]] = []
    for one in _settings(rows, styles(row["defense"] for row in rows)):
        accuracy, error, identified, information, ssim = (
            " ".join(text for text in (cell.shown, cell.shown_spread, "%" * cell.percent) if text)
            if cell.ours is not None
            else MISSING
            for cell in map(one.cells.__getitem__, ("accuracy", "mse_test", "identified", "information", "ssim_test"))
        )
        by = ", ".join(dict.fromkeys(row["strongest"] for row in one.rows))
        lines.append((one.label, accuracy, error, by, identified, information, ssim, one.note))
    return heads, lines


def _settings(rows: Sequence[Mapping[str, Any]], looks: Mapping[str, Style]) -> list[_Setting]:
    """No defence first, CEM last, noise in rising order."""
    found = group([dict(row) for row in rows], "defense", "noise_std")
    settings = []
    for defense, noise in sorted(found, key=lambda one: (one[0] != "none", one[0].endswith("+cem"), one)):
        own = found[defense, noise]
        cells = {
            name: Cell.of(average(row[name] for row in own), digits=digits, percent=percent)
            for name, (_, digits, percent) in _MEASURES.items()
        }
        settings.append(_Setting(defense, noise, looks[defense], own, cells))
    return settings


def _numbers(settings: Sequence[_Setting]) -> Table:
    rows = tuple(Row(one.label, tuple(one.cells.values()), one.note) for one in settings)
    return Table("The numbers", tuple(name for name, *_ in _MEASURES.values()), rows, corner="defence")


def _strips(
    originals: Tensor, reconstructed: Mapping[str, Tensor], settings: Sequence[_Setting]
) -> list[dict[str, Any]]:
    strips: list[dict[str, Any]] = [
        {"slot": None, "label": "original", "uri": png_data_uri(originals), "figures": "", "alt": "The originals"}
    ]
    for one in settings:
        names = (f"{one.defense}{one.noise:g}", one.defense)
        if (name := next((name for name in names if name in reconstructed), None)) is None:
            continue
        shown = {field: one.cells[field].shown for field in ("mse_test", "identified", "accuracy")}
        figures = "error\u00a0{mse_test}, identified\u00a0{identified}\u00a0%, accuracy\u00a0{accuracy}\u00a0%".format(
            **shown
        )
        strips.append({
            "slot": one.look.slot,
            "label": one.label,
            "uri": png_data_uri(reconstructed[name]),
            "figures": f"{figures} ({one.rows[0]['strongest']})",
            "alt": f"The same images, reconstructed by the strongest attack, with: {one.label} ({figures} on average)",
        })  # fmt: skip
    return strips


def _attack_table(settings: Sequence[_Setting]) -> Table:
    """Every attack's error on unseen images, the strongest first."""
    every = [row["attacks"] for one in settings for row in one.rows]
    names = sorted(every[0], key=lambda name: sum(one[name]["test"]["mse"] for one in every))
    lines = []
    for one in settings:
        means = {name: average(row["attacks"][name]["test"]["mse"] for row in one.rows) for name in names}
        best = strongest({name: mean.mean for name, mean in means.items() if mean is not None})
        cells = tuple(Cell.of(mean, note="strongest" * (name == best)) for name, mean in means.items())
        lines.append(Row(one.label, cells, note=one.note))
    return Table("Every attack", tuple(names), tuple(lines), corner="MSE on unseen images")


def _curves(settings: Sequence[_Setting]) -> list[Curve]:
    """The settings of each defence along the noise, averaged over seeds."""
    curves: dict[str, list[Point]] = {}
    for one in settings:
        error, share, note = one.cells["mse_test"], one.cells["accuracy"], f"σ {one.noise:g}" if one.noise else ""
        if error.ours is not None and share.ours is not None:
            settled = all(suite_verdict(row).converged for row in one.rows)
            point = Point(error.ours, share.ours, error.spread, share.spread, note, converged=settled)
            curves.setdefault(one.defense, []).append(point)
    return [Curve(defense, tuple(points)) for defense, points in curves.items()]
