"""The page of an audit of texts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfumato.report.audit import BEYOND, gate_of, told
from sfumato.report.averages import percent_text
from sfumato.report.chart import Curve, Point
from sfumato.report.figures import line_figure
from sfumato.report.page import Section, figure, part, table, write_page
from sfumato.report.tables import Cell, Row, Table
from sfumato.report.verdict import Verdict

__all__ = ["write_text_report"]

_READ = (
    "The attacker holds the encoder and every setting of the defence, and what left the device for each unseen text; "
    "not the noise. It encodes texts of its own, fits a centre to every token and an offset to every position, and "
    "names the token whose centre is nearest, whitened by what noise and context leave over. Every attacker can do "
    "that: a large share means that the text is readable, a small one proves nothing about a better attacker."
)


def write_text_report(path: Path, result: Mapping[str, Any]) -> None:
    """Write an audit of texts as one HTML file that needs nothing else.

    Args:
        path: of the page.
        result: as in `audit.json`.

    Raises:
        StorageError: the file could not be written.
    """
    target, data, verdict, channel = result["target"], result["data"], result["verdict"], result["target"]["channel"]
    tokens, leakage, noise = result["tokens"], result["leakage"], f"noise σ {channel['noise_std']:g}"
    required = [("There:" if one["met"] else "Missing:", f"{one['name']}. {one['sentence']}.")
                for one in result["requirements"]]  # fmt: skip
    lists = {f"The verdict: {verdict['outcome']}": [(verdict["sentence"], "")],
             "The gate": [gate_of(one) for one in result["thresholds"]], "What a pass needs": required}  # fmt: skip
    shares = {"recovered": Cell(tokens["recovered"], tokens["error"], percent=True, digits=1),
              "of the worst-served 5 % of texts": Cell(tokens["worst5"], percent=True, digits=1),
              "by chance": Cell(tokens["chance"], percent=True, digits=1)}  # fmt: skip
    note = "±: standard error over texts. Chance: always the commonest token. Worst-served: of which most is read."
    rows = (Row("nearest token at each position", tuple(shares.values())),)
    read = [part("para", text=_READ), table(Table("Tokens recovered", tuple(shares), rows, (note,), corner="attack"))]
    points = tuple(Point(at, share) for at, share in enumerate(tokens["by_position"], 1) if share is not None)
    if len(points) > 1:
        drawn = line_figure([Curve("nearest token", points)], ("position in the text", "share of tokens recovered"),
                            key="positions", title="Tokens recovered at each position")  # fmt: skip
        read.append(figure(drawn, "Share of the unseen texts whose token at a position is recovered."))
    sections = [
        *(Section(heading, [part("listed", pairs=pairs)]) for heading, pairs in lists.items() if pairs),
        Section("How much of a text is read", read),
        Section("Which text was sent", [part("para", text=leakage["sentence"])]) if leakage else None,
        Section("What was not tested", [part("listed", pairs=[*told(result["not_tested"]), *BEYOND])]),
    ]
    wire = {"clipped to norm": channel["clip_norm"], "bits:": channel["quantize_bits"]}
    facts = {
        "target": f"{target['name']} ({target['kind']})",
        "on the wire": ", ".join([f"{'×'.join(map(str, target['feature_shape']))} values", noise,
                                  *(f"{name} {value:g}" for name, value in wire.items() if value)]),
        "accuracy": f"{percent_text(result['accuracy'])} %" if result["accuracy"] is not None else "",
        "texts": f"{data['name']}: {data['train_texts']:,} of the attacker's, {data['test_texts']:,} unseen, of "
        f"{data['length']:,} tokens; a vocabulary of {data['vocabulary']:,}",
        "digest": target["digest"],
    }  # fmt: skip
    write_page(
        path,
        title=f"Sfumato audit: {target['name']}",
        verdict=Verdict(verdict["headline"], tuple(verdict["notes"])),
        sections=sections,
        facts=[(name, text) for name, text in facts.items() if text],
        seconds=result["budget"]["seconds"],
        evidence=result["evidence"],
    )
