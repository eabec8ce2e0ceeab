"""The page of `sfumato protect`: shapes of noise at equal accuracy, and what they leave to attackers."""

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

__all__ = ["protect_sentence", "protect_table", "write_protect_report"]

_NOTE = (
    "Accuracy, error (MSE of the strongest attack) and identification on test images that no strength was sought on; "
    "attackers whiten by the noise's own covariance. Certificate: no attack identifies more often; void where a "
    "direction has no noise."
)
_LIMITS = (
    ("It holds on average", "over images like these. The shape follows the directions that the cloud seldom needs; a "
     "rare image may need one of them."),
    ("A shape fools nobody who knows it.", "Attackers here whiten by its covariance; one who measures plain distances "
     "is misled and proves nothing."),
    ("Only the noise was sought.", "A network that is trained for this resists better; see sfumato train with CEM."),
)  # fmt: skip


def protect_sentence(result: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    lines = {line["name"]: line for line in result["shapes"]}
    best, white = lines[result["chosen"]], lines.get("white")
    kept = f"an accuracy of {percent_text(best['accuracy'])} %"
    if white is None or best is white:
        return f"White noise protects as well as any shape here: error {best['error']:.4f} at {kept}."
    return (
        f"At {kept} noise of the shape '{best['name']}' ({best['meaning']}) leaves attackers "
        f"{best['error'] / white['error']:.2f} times the error that white noise leaves, and identifies "
        f"{percent_text(best['identified'])} % of images instead of {percent_text(white['identified'])} %."
    )


def protect_table(result: Mapping[str, Any]) -> Table:
    """One line per shape."""
    rows = [
        Row(
            line["name"],
            (
                Cell(line["accuracy"], percent=True, digits=1),
                Cell(line["error"], note=line["strongest"]),
                Cell(line["identified"], percent=True, digits=1),
                Cell(line["information"], digits=1),
                Cell(text="void") if line["singular"] else Cell(line["identified_at_most"], percent=True, digits=1),
                Cell(line["noise_std"]),
            ),
            note=line["meaning"],
            emphasis=line["name"] == result["chosen"],
        )
        for line in result["shapes"]
    ]
    columns = ("accuracy", "attackers' error", "identified", "information, nats", "certificate", "noise per value")
    return Table("Shapes at equal accuracy", columns, tuple(rows), (_NOTE,), corner="shape")


def write_protect_report(path: Path, result: Mapping[str, Any]) -> None:
    """Write the page.

    Raises:
        StorageError: the file could not be written.
    """
    curves = [
        Curve(
            name, tuple(Point(one["error"], one["accuracy"], note=f"σ {one['noise_std']:.3g}") for one in points), name
        )
        for name, points in result["curves"].items()
    ]
    drawn = trade_off(curves, reference=result["mean_image_mse"], floor=result["floor"])
    images = result["images"]
    caption = "Half, once and twice the strength that was found; up and to the right is better. Dotted: the floor."
    write_page(
        path,
        title="Sfumato: protect a model as it is",
        verdict=Verdict(protect_sentence(result), ()),
        sections=[
            Section("The curve", [figure(drawn, caption)]),
            Section("The shapes", [table(protect_table(result))], wide=True),
            Section("What is not guaranteed", [part("limits", own=_LIMITS)]),
        ],
        facts=[
            ("accuracy without noise", f"{percent_text(result['clean_accuracy'])} %"),
            ("may be lost", f"{result['lose_at_most']:g} points"),
            ("cloud", "retuned on noisy features" if result["retuned"] else "as it was"),
            ("images", f"{images['attacker']:,} of the attacker, {images['validation']:,} to seek strengths on, "
             f"{images['judged']:,} to judge"),
        ],
        seconds=result["seconds"],
        evidence=result["evidence"],
        settings=[("Settings", json.dumps(result["config"], indent=2, sort_keys=True))],
    )  # fmt: skip
