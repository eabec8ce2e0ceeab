"""The page of `sfumato audit`: what was reconstructed, what is provable, what was not tested, and how to read it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.report.averages import error_text, percent_text
from sfumato.report.cells import Cell, Row, Table
from sfumato.report.drawn import Drawn
from sfumato.report.figures import Curve, Point, line_figure
from sfumato.report.page import Section, figure, part, table, write_page
from sfumato.report.pictures import png_data_uri
from sfumato.report.style import Style, styles
from sfumato.report.verdict import Verdict

__all__ = ["write_audit_report"]

Results = Sequence[Mapping[str, Any]]

_BEYOND = [
    ("Attackers beyond this suite.", "An attack that fails proves nothing about a better one. Only a bound that holds "
     "limits every attacker."),
    ("The device itself.", "A stolen key or noise that can be predicted makes every number here meaningless; see the "
     "threat model."),
]  # fmt: skip
_HEADINGS = {
    "typical": "Typical: unseen images drawn at random",
    "worst": "Worst: the unseen images that are reconstructed best",
}


def write_audit_report(
    path: Path, result: Mapping[str, Any], pictures: Mapping[str, tuple[Tensor, Mapping[str, Tensor]]]
) -> None:
    """Write an audit as one HTML file that needs nothing else: no network, no scripts.

    Args:
        path: of the page.
        result: as in `audit.json`.
        pictures: `typical` and `worst`: originals (n, C, H, W) in [0, 1], and per attack the same images reconstructed.

    Raises:
        FeatureError: the pictures are no images.
        StorageError: the file could not be written.
    """
    target, data, attacks, channel = (result["target"], result["data"], result["attacks"], result["target"]["channel"])
    looks = styles(attack["name"] for attack in attacks)
    reference, noise = error_text(result["reference"]["test"]), f"noise σ {channel['noise_std']:g}"
    loose = [f"{one['name']}: {one['reason']}" for one in attacks if one["converged"] is False]
    wire = [noise, *([f"clipped to norm {channel['clip_norm']:g}"] if channel["clip_norm"] else []),
            *([f"{channel['quantize_bits']} bits"] if channel["quantize_bits"] else []),
            *channel["transforms"]]  # fmt: skip
    shape = "×".join(map(str, target["feature_shape"]))
    contradictions = [(f"{one['sentence']}.", "") for one in _either(result, "consistency", "law")["violations"]]
    required = [("met:" if one["met"] else "missing:", one["sentence"]) for one in result.get("requirements", ())]
    skipped = [("", one["reason"]) for one in data["skipped"]]
    converging, probes, failed = _convergence(attacks, looks), result["probes"], result["failed"]
    sections = [
        Section("This audit contradicts itself", [part("listed", pairs=contradictions)]) if contradictions else None,
        Section("The gate", [part("listed", pairs=_gate(result["thresholds"]))]) if result["thresholds"] else None,
        Section("What a pass requires", [part("listed", pairs=required)]) if required else None,
        Section("What was attacked", [part("split", sent=f"{shape} values", noise=noise), part("audit_words")]),
        Section("Which image was sent", [part("audit_sent", leakage=result["leakage"], percent=_leaked)]),
        Section("What the attacker reconstructs", [
            *(part("strips", strips=_strips(*pictures[name], attacks, looks), heading=heading)
              for name, heading in _HEADINGS.items() if name in pictures),
            part("audit_strips", reference=reference),
        ]),
        Section("Every attack, in numbers", [table(_attack_table(result))], wide=True),
        Section("The best attacker for each image", [part("audit_best", shares=_shares(result["best"]["per_image"]))]),
        Section("Had the attacks converged?", [
            part("unconverged", heading=f"{len(loose)} of {len(attacks)} attacks had not converged", reasons=loose)
            if loose else part("converged", what="All attacks"),
            *([figure(converging, "Error on images of the attacker's own set that it did not learn from. A line that "
               "still falls at its end belongs to an attack that more time would make stronger. Dotted: the best "
               "attack in closed form, which a trained attack should beat.")] if converging else []),
            part("folded", summary="What each attack was given", pairs=[_given(one) for one in attacks]),
        ]),
        *_sweeps(result),
        Section("What else can be read", [table(_probe_table(probes))]) if probes else None,
        Section("What is provable", _provable(result)),
        Section("What failed", [part("audit_failed"), part("listed", pairs=_told(failed))]) if failed else None,
        Section("What was not tested", [part("listed", pairs=[*_told(result["not_tested"]), *_BEYOND])]),
        Section("Files that could not be read", [part("listed", pairs=skipped)]) if skipped else None,
    ]  # fmt: skip
    tried = _either(data, "reconstructed", "redrawn")["test"]
    facts = [
        ("target", f"{target['name']} ({target['kind']}), {'' if target['gradients'] else 'no '}gradients"),
        ("on the wire", ", ".join(wire)),
        ("accuracy", f"{percent_text(result['accuracy'])} %" if result["accuracy"] is not None else ""),
        ("images", f"{data['name']}: {data['train_images']:,} of the attacker's, {data['test_images']:,} unseen, of "
         f"which {tried:,} were reconstructed; {'×'.join(map(str, data['image_shape']))}"),
        ("data", data["caveat"]),
        ("budget", f"{result['budget']['minutes']:g} minutes"),
        ("digest", target["digest"]),
    ]  # fmt: skip
    write_page(
        path,
        title=f"Sfumato audit: {target['name']}",
        verdict=Verdict(result["verdict"]["headline"], tuple(result["verdict"]["notes"])),
        sections=sections,
        facts=[(name, text) for name, text in facts if text],
        seconds=result["budget"]["seconds"],
        evidence=result["evidence"],
    )


def _either(values: Mapping[str, Any], new: str, old: str) -> Any:
    """A field of an audit, under the name that older ones had for it."""
    return values[new] if new in values else values[old]


def _leaked(share: float) -> str:
    return f"{100 * share:.3g} %"


def _told(entries: Results) -> list[tuple[str, str]]:
    return [(f"{one['what']}:", f"{one['why']}.") for one in entries]


def _gate(thresholds: Results) -> list[tuple[str, str]]:
    words = {True: "failed", False: "passed", None: "not judged"}
    return [
        (words[one["holds"]], f"fails if {one['expression']}; measured "
         + ("nothing" if one["value"] is None else f"{one['value']:.4g}"))
        for one in thresholds
    ]  # fmt: skip


def _given(attack: Mapping[str, Any]) -> tuple[str, str]:
    epochs = f", {len(attack['history'])} epochs" if len(attack["history"]) > 1 else ""
    reason = f"; {attack['reason']}" if attack["reason"] else ""
    return f"{attack['name']}:", f"{attack['images']:,} images{epochs}, {attack['seconds']:.0f} s{reason}"


def _shares(per_image: Mapping[str, Any]) -> str:
    """Per attack how many images it reconstructs best, and as a share."""
    counts = {name: count for name, count in per_image["counts"].items() if count}
    shares = {name: percent_text(count / sum(counts.values())) for name, count in counts.items()}
    ordered = sorted(counts, key=lambda name: -counts[name])
    return "; ".join(f"{name} reconstructs {counts[name]:,} of the images best ({shares[name]} %)" for name in ordered)


def _strips(
    originals: Tensor, reconstructed: Mapping[str, Tensor], attacks: Results, looks: Mapping[str, Style]
) -> list[dict[str, Any]]:
    first = {"slot": None, "label": "original", "uri": png_data_uri(originals), "alt": "The originals", "figures": ""}
    means = {attack["name"]: attack["test"] for attack in attacks}
    strips = [first]
    for name, images in sorted(reconstructed.items(), key=lambda pair: means[pair[0]]["mse"]["mean"]):
        figures = f"MSE\u00a0{error_text(means[name]['mse']['mean'])}, SSIM\u00a0{means[name]['ssim']['mean']:.2f}"
        alt = f"The same {len(images)} images as the {name} attack reconstructed them ({figures} on average)"
        uri = png_data_uri(images)
        strips.append({"slot": looks[name].slot, "label": name, "uri": uri, "figures": figures, "alt": alt})
    return strips


def _attack_table(result: Mapping[str, Any]) -> Table:
    """One row per attack: unseen images on average, worst 5 % and worst image; training images on average."""

    def measures(of: Mapping[str, Any]) -> list[Cell]:
        return [
            Cell(of[kind][name], of[kind].get("error") if (kind, name) == ("mse", "mean") else None, digits=digits)
            for kind, digits in (("mse", None), ("psnr", 1), ("ssim", 2))
            for name in ("mean", "worst5", "worst")
        ]

    rows, strongest = [], set(result["best"]["test"].values())
    for attack in sorted(result["attacks"], key=lambda one: one["test"]["mse"]["mean"]):
        test, notes = attack["test"], ["not converged"] * (attack["converged"] is False)
        if test["images"] < _either(result["data"], "reconstructed", "redrawn")["test"]:
            same = attack["same_images"]
            notes.append(f"on {test['images']} images, where {same['attack']} has {same['mse']:.4f}")
        cells = (*measures(test), Cell(attack["train"]["mse"]["mean"]))
        rows.append(Row(attack["name"], cells, "; ".join(notes), attack["name"] in strongest))
    best, blank, reference = result["best"]["per_image"]["summary"], [Cell()] * 8, result["reference"]
    rows.append(Row("best for each image", (*measures(best), Cell()), "an upper bound"))
    rows.append(Row("mean image", (Cell(reference["test"]), *blank, Cell(reference["train"])), "sees nothing"))
    columns = tuple(f"{kind}{end}" for kind in ("MSE", "PSNR, dB", "SSIM") for end in ("", ", worst 5 %", ", worst"))
    note = "±: standard error of the mean. In bold: the strongest by one of the measures."
    title = "Attacks on unseen images"
    return Table(title, (*columns, "MSE, training images"), tuple(rows), (note,), corner="attack")


def _probe_table(probes: Results) -> Table:
    """What is read from the feature and from the reconstruction besides the image."""
    rows = tuple(
        Row(
            one["label"],
            (Cell(one["accuracy"], one["error"], percent=True, digits=1), Cell(one["chance"], percent=True, digits=1)),
            one.get("note", ""),
        )
        for one in probes
    )
    note = (
        "A classifier was trained on the attacker's images to read each property from the feature or from the "
        "reconstruction, and tried on unseen images."
    )
    corner = "read from what leaves the device"
    return Table("Attributes and identity", ("right", "by chance"), rows, (note,), corner=corner)


def _convergence(attacks: Results, looks: Mapping[str, Style]) -> Drawn | None:
    """Held-out error over the epochs, of the attacks that train."""
    curves = []
    for attack in attacks:
        history = attack["history"]
        if len(history) > 1:
            points = tuple(Point(100 * (one["epoch"] + 1) / len(history), one["held_out_mse"]) for one in history)
            curves.append(Curve(attack["name"], points, bare=True))
    if not curves:
        return None
    flat = {one["name"]: one["held_out_mse"] for one in attacks if len(one["history"]) <= 1 and one["held_out_mse"]}
    best = min(flat, key=lambda name: flat[name], default="")
    return line_figure(
        curves,
        ("share of the training, %", "error (MSE) on held-out images"),
        key="convergence",
        title="Error on images that an attack did not learn from, while it trains",
        log_y=True,
        references={f"{best}, in closed form": flat[best]} if flat else {},
        looks=looks,
    )


def _sweeps(result: Mapping[str, Any]) -> list[Section]:
    """Repeated queries first, then what the attacker knows: a figure where there is a scale, and a table."""
    sections, queries = [], result["queries"]
    if queries:
        curves = [
            Curve(one["label"], tuple(Point(at["queries"], at["mse"]["mean"], None, at["mse"]["error"])
                                      for at in one["points"]))
            for one in queries
        ]  # fmt: skip
        drawn = line_figure(
            curves, ("queries of one image, K", "attacker's error (MSE)"), key="queries",
            title="Error against the number of queries of one image", log_x=True,
        )  # fmt: skip
        caption = (
            "Mean error on unseen images, against how often the same image is sent. Fresh noise averages away; "
            "memoised noise repeats for an exact repeat, and does not for a near-duplicate."
        )
        parts = [figure(drawn, caption), table(_query_table(queries)), *_notes(queries)]
        sections.append(Section("The same image more than once", parts))
    if knowledge := result.get("knowledge"):
        rows = [
            Row(
                f"{sweep['label']}: {point['label']}",
                (
                    Cell(point["mse"]["mean"], spread=point["mse"]["error"]), Cell(point["mse"]["worst5"]),
                    Cell(point["psnr"]["mean"], digits=1), Cell(point["ssim"]["mean"], digits=2),
                    Cell(text=f"{point['images']:,}"),
                ),
                note=point.get("note", ""),
            )
            for sweep in knowledge
            for point in sweep["points"]
        ]  # fmt: skip
        columns = ("MSE", "MSE, worst 5 %", "PSNR, dB", "SSIM", "images reconstructed")
        shown = Table("Attacker's knowledge", columns, tuple(rows), corner="attacker")
        sections.append(Section("An attacker who knows less, or something wrong", [table(shown), *_notes(knowledge)]))
    return sections


def _notes(sweeps: Results) -> list[Any]:
    return [part("hint", text=one["note"]) for one in sweeps if one.get("note")]


def _query_table(sweeps: Results) -> Table:
    """One row per way to repeat an image, one column per number of queries; errors, and the best K's share of K = 1."""
    counts = sorted({point["queries"] for sweep in sweeps for point in sweep["points"]})
    rows = []
    for sweep in sweeps:
        errors = {point["queries"]: point["mse"] for point in sweep["points"]}
        cells = [Cell(errors[count]["mean"], errors[count]["error"]) if count in errors else Cell() for count in counts]
        best, first = min(one["mean"] for one in errors.values()), errors[min(errors)]["mean"]
        gained = Cell(round(1 - best / first, 4) if first > 0 else None, percent=True, digits=1)
        rows.append(Row(sweep["label"], (*cells, gained)))
    note = (
        "Attacker's mean error on unseen images when an image is sent K times. ±: its standard error. Gained: by how "
        "much the error falls from one query to the best number of them."
    )
    heads = (*(f"K = {count}" for count in counts), "gained")
    return Table("Repeated queries", heads, tuple(rows), notes=(note,), corner="the same image")


def _provable(result: Mapping[str, Any]) -> list[Any]:
    """Every bound with its assumption, and how exp(-2 I / d) falls with I, with the bounds on I marked."""
    bounds = result["bounds"]
    if not bounds:
        return [part("audit_unbounded")]
    rows = []
    for one in bounds:
        text = error_text(one["value"]) if one["kind"] == "error" else f"{one['value']:.3g}"
        notes = [f"{note[:1].upper()}{note[1:]}." for note in one["notes"]]
        holds = ["Holds here: no attack may beat it."] if one["gates"] else []
        value = Cell(text=f"{text} {one['unit']}".strip())
        rows.append(Row(one["label"], (value,), " ".join([*holds, one["assumption"], *notes]), one["gates"]))
    parts = [table(Table("Bounds", ("value",), tuple(rows), corner="bound, and what it assumes"))]
    ratios = [one for one in bounds if one["kind"] == "ratio"]
    if ratios:
        size = math.prod(result["data"]["image_shape"])
        far = max(max(one["information"] for one in ratios), size * math.log(10) / 2) * 1.05
        steps = tuple(Point(far * i / 60, math.exp(-2 * far * i / 60 / size)) for i in range(61))
        marked = [
            Curve(
                one["label"].removeprefix("floor left by Theorem 1, from "), (Point(one["information"], one["value"]),)
            )
            for one in ratios
        ]
        drawn = line_figure(
            [Curve("exp(−2 I / d)", steps, bare=True), *marked],
            ("bound on the information I, nats", "floor, relative"), key="floor",
            title="How far the floor of Theorem 1 sinks with the information released",
        )  # fmt: skip
        caption = (
            "Theorem 1 as a ratio: if a feature carries at most I nats (of 1.44 bits) about an image of d values, the "
            "floor under every attacker's error is at least exp(−2 I / d) of what it would be if nothing were "
            "released. Marked: the bounds on I above."
        )
        parts.append(figure(drawn, caption))
    return parts
