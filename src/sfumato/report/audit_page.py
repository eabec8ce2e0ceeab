"""What the pages of all audits share, and the page of an audit of texts."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sfumato.report.averages import percent_text
from sfumato.report.chart import Curve, Point
from sfumato.report.figures import line_figure
from sfumato.report.page import Section, figure, part, table, write_page
from sfumato.report.tables import Cell, Row, Table
from sfumato.report.verdict import Verdict

_FAILED = (
    "These pieces ended with an error, so they are no evidence of anything. The tracebacks are in the audit's folder, "
    "under pieces."
)
_BEYOND = [
    ("Attackers beyond this suite.", "An attack that fails proves nothing about a better one. Only a bound that holds "
     "limits every attacker."),
    ("The device itself.", "A stolen key or noise that can be predicted makes every number here meaningless; see the "
     "threat model."),
]  # fmt: skip
_READ = (
    "The attacker holds the encoder and every setting of the defence, and what left the device for each unseen text; "
    "not the noise. It encodes texts of its own, fits a centre to every token and an offset to every position, and "
    "names the token whose centre is nearest, whitened by what noise and context leave over. Every attacker can do "
    "that: a large share means that the text is readable, a small one proves nothing about a better attacker."
)


def write_audit_page(
    path: Path,
    result: Mapping[str, Any],
    own: Sequence[Section | None],
    facts: Mapping[str, str],
    skipped: Sequence[tuple[str, str]] = (),
) -> None:
    """The page of any audit: the verdict and what it rests on, sections of its own, what says nothing, the facts."""
    target, verdict, failed = result["target"], result["verdict"], result["failed"]
    required = [("There:" if one["met"] else "Missing:", f"{one['name']}. {one['sentence']}.")
                for one in result["requirements"]]  # fmt: skip
    violations = result.get("consistency", {}).get("violations", ())
    before = {f"The verdict: {verdict['outcome']}": [(verdict["sentence"], "")],
              "The gate": [_gate(one) for one in result["thresholds"]],
              "What a pass needs": required,
              "This audit contradicts itself": [(f"{one['sentence']}.", "") for one in violations]}  # fmt: skip
    after = {"What was not tested": [*_told(result["not_tested"]), *_BEYOND], "Files that could not be read": skipped}
    about = {
        "target": f"{target['name']} ({target['kind']}), {'' if target['gradients'] else 'no '}gradients",
        "input": (target.get("input") or {}).get("sentence", ""),
        "on the wire": _wire(target),
        "accuracy": f"{percent_text(result['accuracy'])} %" if result["accuracy"] is not None else "",
        **facts,
        "budget": f"{result['budget']['minutes']:g} minutes",
        "digest": target["digest"],
    }
    write_page(
        path,
        title=f"Sfumato audit: {target['name']}",
        verdict=Verdict(verdict["headline"], tuple(verdict["notes"])),
        sections=[
            *(Section(heading, [part("listed", pairs=pairs)]) for heading, pairs in before.items() if pairs),
            *own,
            Section("What failed", [part("para", text=_FAILED), part("listed", pairs=_told(failed))])
            if failed else None,
            *(Section(heading, [part("listed", pairs=pairs)]) for heading, pairs in after.items() if pairs),
        ],
        facts=[(name, text) for name, text in about.items() if text],
        seconds=result["budget"]["seconds"],
        evidence=result["evidence"],
    )  # fmt: skip


def values_of(target: Mapping[str, Any]) -> str:
    """What the device sends, such as `4×8×8 values`."""
    return f"{'×'.join(map(str, target['feature_shape']))} values"


def _wire(target: Mapping[str, Any]) -> str:
    """What crosses the wire: values, noise with its shape, clip, levels, transforms."""
    channel = target["channel"]
    noise = f"noise σ {channel['noise_std']:.3g}"
    if channel.get("noise_shape") is not None:
        rank, weakest = channel["noise_rank"], channel["noise_smallest"]
        kind = f"correlated through a factor of rank {rank}" if rank else "of its own level for each value"
        least = f"σ {weakest:.3g}" if weakest else "no noise"
        noise += f" on average, {kind}, {least} in the weakest direction, shape {channel['noise_shape'][:8]}"
    clip, bits = channel["clip_norm"], channel["quantize_bits"]
    parts = [values_of(target), noise, f"clipped to norm {clip:g}" if clip else "", f"{bits} bits" if bits else ""]
    return ", ".join([part for part in parts if part] + channel["transforms"])


def _told(entries: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(f"{one['what']}:", f"{one['why']}.") for one in entries]


def _gate(threshold: Mapping[str, Any]) -> tuple[str, str]:
    outcome = {True: "failed", False: "passed", None: "not judged"}[threshold["holds"]]
    value, end = threshold["value"], threshold["pessimistic"]
    text = f"fails if {threshold['expression']}; measured {'nothing' if value is None else f'{value:.4g}'}"
    interval = "" if end is None else f", and {end:.4g} at the end of its 95 % interval at which more has leaked"
    return outcome, text + interval


def write_text_report(path: Path, result: Mapping[str, Any]) -> None:
    """Write an audit of texts as one HTML file that needs nothing else.

    Args:
        path: of the page.
        result: as in `audit.json`.

    Raises:
        StorageError: the file could not be written.
    """
    data, tokens, leakage = result["data"], result["tokens"], result["leakage"]
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
        Section("How much of a text is read", read),
        Section("Which text was sent", [part("para", text=leakage["sentence"])]) if leakage else None,
    ]
    facts = {
        "texts": f"{data['name']}: {data['train_texts']:,} of the attacker's, {data['test_texts']:,} unseen, of "
        f"{data['length']:,} tokens; a vocabulary of {data['vocabulary']:,}",
    }
    write_audit_page(path, result, sections, facts)
