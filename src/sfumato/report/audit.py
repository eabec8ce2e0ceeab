"""The page of `sfumato audit`: what was reconstructed, what is provable, what was not tested, and how to read it."""

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.report.audit_evidence import evidence_of
from sfumato.report.audit_page import values_of, write_audit_page
from sfumato.report.averages import error_text, percent_text
from sfumato.report.chart import Curve, Point
from sfumato.report.figures import line_figure
from sfumato.report.page import CONVERGED, Section, figure, part, table
from sfumato.report.pictures import png_data_uri
from sfumato.report.style import Style, styles
from sfumato.report.tables import Cell, Row, Table

Results = Sequence[Mapping[str, Any]]

_HARDLY_BETTER = 0.98  # of the mean image's error
_GUESSED = "What could have been sent: images drawn at random, given what left the device; where they agree, it knows"
_UNBOUNDED = (
    "Nothing: without noise on the wire the information in a feature is unlimited, and so no error can be guaranteed."
)


def write_audit_report(
    path: Path, result: Mapping[str, Any], pictures: Mapping[str, tuple[Tensor, Mapping[str, Tensor]]]
) -> None:
    """Write an audit as one HTML file that needs nothing else: no network, no scripts.

    Args:
        path: of the page.
        result: as in `audit.json`.
        pictures: `typical` and `worst`: originals (n, C, H, W) in [0, 1], and per attack the same images reconstructed;
            `samples`: originals, and by name what was drawn for each.

    Raises:
        FeatureError: the pictures are no images.
        StorageError: the file could not be written.
    """
    target, data, reference = result["target"], result["data"], result["reference"]
    attacks = sorted(result["attacks"], key=lambda one: one["test"]["mse"]["mean"])
    looks, names = styles(one["name"] for one in attacks), [one["name"] for one in attacks]
    weak = [one["name"] for one in attacks if one["test"]["mse"]["mean"] > _HARDLY_BETTER * reference["test"]]
    weak = weak if len(weak) < len(names) else []
    shown = [name for name in names if name not in weak]
    loose = [f"{one['name']}: {one['reason']}" for one in attacks if one["converged"] is False]
    tried, probes = data["reconstructed"]["test"], result["probes"]
    standards = [(f"{one['standard']}: {one['clause']}.", one["finding"]) for one in evidence_of(result)]
    headings = {"worst": "Worst: the unseen images that are reconstructed best",
                "typical": "Typical: unseen images drawn at random"}  # fmt: skip
    sections = [
        Section("What was attacked", [
            part("split", sent=values_of(target), noise=f"noise σ {target['channel']['noise_std']:.3g}"),
            part("audit_words"),
        ]),
        Section("Which image was sent", [part("audit_sent", leakage=result["leakage"])]),
        Section("What the attacker reconstructs", [
            *(part("strips", strips=_strips(*pictures[name], attacks, shown, looks), heading=heading)
              for name, heading in headings.items() if name in pictures),
            *([part("strips", strips=_samples(*pictures["samples"]), heading=_GUESSED)]
              if "samples" in pictures else []),
            part("audit_strips", reference=error_text(reference["test"])),
        ]),
        Section("Every attack, in numbers", [
            table(_attack_table(result, attacks, shown, tried)),
            *([part("folded", summary="Hardly better than the mean image: " + ", ".join(weak),
                    body=table(_attack_table(result, attacks, weak, tried)))] if weak else []),
            part("para", text=_shares(result["best"]["per_image"]["counts"])),
        ], wide=True),
        Section("Had the attacks converged?", [
            part("unconverged", heading=f"{len(loose)} of {len(attacks)} attacks had not converged", reasons=loose)
            if loose else part("para", text=f"Every attack {CONVERGED}"),
            *_convergence(attacks, looks),
            part("folded", summary="What each attack was given",
                 body=part("listed", pairs=[_given(one) for one in attacks])),
        ]),
        *_sweeps(result),
        Section("What else can be read", [table(_probe_table(probes))]) if probes else None,
        Section("What is provable", _provable(result["bounds"], math.prod(data["image_shape"]))),
        Section("Evidence for the file", [part("folded", summary="The findings in the words of the standards; also in "
                "evidence.md and evidence.json", body=part("listed", pairs=standards))]),
    ]  # fmt: skip
    facts = {
        "images": f"{data['name']}: {data['train_images']:,} of the attacker's, {data['test_images']:,} unseen, of "
        f"which {tried:,} were reconstructed; {'×'.join(map(str, data['image_shape']))}",
        "data": data["caveat"],
    }
    write_audit_page(path, result, sections, facts, skipped=[("", one["reason"]) for one in data["skipped"]])


def _given(attack: Mapping[str, Any]) -> tuple[str, str]:
    epochs = f", {len(attack['history'])} epochs" if len(attack["history"]) > 1 else ""
    reason = f"; {attack['reason']}" if attack["reason"] else ""
    return f"{attack['name']}:", f"{attack['images']:,} images{epochs}, {attack['seconds']:.0f} s{reason}"


def _shares(counts: Mapping[str, int]) -> str:
    """Per attack how many images it reconstructs best, and as a share."""
    total, order = sum(counts.values()), sorted(counts, key=lambda name: -counts[name])
    shares = [f"{name} {counts[name]:,} ({percent_text(counts[name] / total)} %)" for name in order if counts[name]]
    return (
        f"Images that each reconstructs best: {', '.join(shares)}. An attacker cannot know which of its attacks did "
        "best on an image it has not got, so the row “best for each image” is a limit to what they can do together."
    )


def _strips(
    originals: Tensor,
    reconstructed: Mapping[str, Tensor],
    attacks: Results,
    shown: Collection[str],
    looks: Mapping[str, Style],
) -> list[dict[str, Any]]:
    """The originals, then what the attacks made of them, the strongest first."""
    strips = [_strip("original", originals, "The originals")]
    for name, test in ((one["name"], one["test"]) for one in attacks if one["name"] in shown):
        if name in reconstructed:
            figures = f"MSE\u00a0{error_text(test['mse']['mean'])}, SSIM\u00a0{test['ssim']['mean']:.2f}"
            alt = f"The same images as the {name} attack reconstructed them ({figures} on average)"
            strips.append(_strip(name, reconstructed[name], alt, figures, looks[name].slot))
    return strips


def _strip(label: str, images: Tensor, alt: str, figures: str = "", slot: int | None = None) -> dict[str, Any]:
    return {"slot": slot, "label": label, "uri": png_data_uri(images), "figures": figures, "alt": alt}


def _samples(originals: Tensor, drawn: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """The originals, then images that could just as well have been sent."""
    alt = "An image for each of the originals, drawn by the posterior attack"
    rows = [_strip(name, images, alt) for name, images in drawn.items()]
    return [_strip("original", originals, "The originals"), *rows]


def _attack_table(result: Mapping[str, Any], attacks: Results, names: Collection[str], tried: int) -> Table:
    """One row per attack: unseen images, worst 5 %, average and worst image; training images on average."""
    kinds, order = {"psnr": ("PSNR, dB", 1), "ssim": ("SSIM", 2), "mse": ("MSE", None)}, ("worst5", "mean", "worst")

    def measures(of: Mapping[str, Any]) -> list[Cell]:
        return [
            Cell(of[kind][name], of[kind]["error"] if kind + name == "msemean" else None, digits=digits)
            for kind, (_, digits) in kinds.items()
            for name in order
        ]

    rows, strongest = [], set(result["best"]["test"].values())
    for attack in (one for one in attacks if one["name"] in names):
        notes, same = ["not converged"] * (attack["converged"] is False), attack.get("same_images")
        if attack["test"]["images"] < tried:
            also = f", where {same['attack']} has {same['mse']:.4f}" if same else ""
            notes.append(f"on {attack['test']['images']} images{also}")
        cells = (*measures(attack["test"]), Cell(attack["train"]["mse"]["mean"]))
        rows.append(Row(attack["name"], cells, "; ".join(notes), attack["name"] in strongest))
    if strongest & set(names):
        blank, reference = [Cell()] * 7, result["reference"]
        best = measures(result["best"]["per_image"]["summary"])
        rows.append(Row("best for each image", (*best, Cell()), "an upper bound"))
        blind = (*blank, Cell(reference["test"]), Cell(), Cell(reference["train"]))
        rows.append(Row("mean image", blind, "sees nothing"))
    heads = [f"{kind}{end}" for kind, _ in kinds.values() for end in (", worst 5\u00a0%", "", ", worst")]
    note = "±: standard error of the mean. In bold: the strongest by one of the measures."
    columns = (*heads, "MSE, training images")
    return Table("Attacks on unseen images", columns, tuple(rows), (note,), corner="attack")


def _probe_table(probes: Results) -> Table:
    """What is read from the feature and from the reconstruction besides the image."""
    rows = [
        Row(one["label"], (Cell(one["accuracy"], one["error"], percent=True, digits=1),
                           Cell(one["chance"], percent=True, digits=1)))
        for one in probes
    ]  # fmt: skip
    note = (
        "A classifier was trained on the attacker's images to read each property from the feature or from the "
        "reconstruction, and tried on unseen images."
    )
    corner = "read from what leaves the device"
    return Table("Attributes and identity", ("right", "by chance"), tuple(rows), (note,), corner=corner)


def _convergence(attacks: Results, looks: Mapping[str, Style]) -> list[Any]:
    """Held-out error over the epochs, of the attacks that train."""
    curves = []
    for name, history in ((one["name"], one["history"]) for one in attacks if len(one["history"]) > 1):
        points = (Point(100 * (one["epoch"] + 1) / len(history), one["held_out_mse"]) for one in history)
        curves.append(Curve(name, tuple(points), bare=True))
    if not curves:
        return []
    flat = {one["name"]: one["held_out_mse"] for one in attacks if len(one["history"]) <= 1 and one["held_out_mse"]}
    best = min(flat, key=lambda name: flat[name], default="")
    drawn = line_figure(
        curves,
        ("share of the training, %", "held-out error (MSE)"),
        key="convergence",
        title="Error on images that an attack did not learn from, while it trains",
        log_y=True,
        references={f"{best}, in closed form": flat[best]} if flat else {},
        looks=looks,
    )
    caption = (
        "Error on images of the attacker's own set that it did not learn from. A line that still falls at its end "
        "belongs to an attack that more time would make stronger. Dotted: the best attack in closed form, which a "
        "trained attack should beat."
    )
    return [figure(drawn, caption)]


def _sweeps(result: Mapping[str, Any]) -> list[Section]:
    """Repeated queries first, then what the attacker knows: a figure where there is a scale, and a table."""
    sections, queries, knowledge = [], result["queries"], result["knowledge"]
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
    if knowledge:
        rows = [
            Row(
                f"{sweep['label']}: {point['label']}",
                (Cell(point["mse"]["mean"], spread=point["mse"]["error"]), Cell(point["mse"]["worst5"]),
                 Cell(point["psnr"]["mean"], digits=1), Cell(point["ssim"]["mean"], digits=2),
                 Cell(text=f"{point['images']:,}")),
            )
            for sweep in knowledge for point in sweep["points"]
        ]  # fmt: skip
        columns = ("MSE", "MSE, worst 5 %", "PSNR, dB", "SSIM", "images reconstructed")
        shown = table(Table("Attacker's knowledge", columns, tuple(rows), corner="attacker"))
        sections.append(Section("An attacker who knows less, or something wrong", [shown, *_notes(knowledge)]))
    return sections


def _notes(sweeps: Results) -> list[Any]:
    return [part("hint", text=one["note"]) for one in sweeps if one["note"]]


def _query_table(sweeps: Results) -> Table:
    """One row per way to repeat an image, one column per number of queries; errors, and the best K's share of K = 1."""
    counts, rows = sorted({point["queries"] for sweep in sweeps for point in sweep["points"]}), []
    for sweep in sweeps:
        errors = {point["queries"]: point["mse"] for point in sweep["points"]}
        cells = [Cell(errors[count]["mean"], errors[count]["error"]) if count in errors else Cell() for count in counts]
        best, first = min(one["mean"] for one in errors.values()), errors[min(errors)]["mean"]
        gained = Cell(round(1 - best / first, 4) if first > 0 else None, percent=True, digits=1)
        rows.append(Row(sweep["label"], (*cells, gained)))
    note = (
        "Mean error when an image is sent K times, ± its standard error; gained: by how much it falls from one query."
    )
    heads = (*(f"K = {count}" for count in counts), "gained")
    return Table("Repeated queries", heads, tuple(rows), notes=(note,), corner="the same image")


def _provable(bounds: Results, size: int) -> list[Any]:
    """Every bound with its assumption, and how exp(-2 I / d) falls with I, with the bounds on I marked."""
    if not bounds:
        return [part("para", text=_UNBOUNDED)]
    rows = []
    for one in bounds:
        text = error_text(one["value"]) if one["kind"] == "error" else f"{one['value']:.3g}"
        notes = [f"{note[:1].upper()}{note[1:]}." for note in one["notes"]]
        holds = ["Holds here: no attack may beat it."] if one["gates"] else []
        value = Cell(text=f"{text} {one['unit']}".strip())
        rows.append(Row(one["label"], (value,), " ".join([*holds, one["assumption"], *notes]), one["gates"]))
    parts = [table(Table("Bounds", ("value",), tuple(rows), corner="bound, and what it assumes"))]
    if ratios := [one for one in bounds if one["kind"] == "ratio"]:
        far = max(max(one["information"] for one in ratios), size * math.log(10) / 2) * 1.05
        steps = tuple(Point(far * i / 60, math.exp(-2 * far * i / 60 / size)) for i in range(61))
        marked = [
            Curve(
                one["label"].removeprefix("floor left by Theorem 1, from "), (Point(one["information"], one["value"]),)
            )
            for one in ratios
        ]
        drawn = line_figure(
            [Curve("exp(−2 I / d)", steps, bare=True), *marked], ("information bound I, nats", "floor, relative"),
            key="floor", title="How far the floor of Theorem 1 sinks with the information released",
        )  # fmt: skip
        caption = (
            "Theorem 1 as a ratio: if a feature carries at most I nats (of 1.44 bits) about an image of d values, the "
            "floor under every attacker's error is at least exp(−2 I / d) of what it would be if nothing were "
            "released. Marked: the bounds on I above."
        )
        parts.append(figure(drawn, caption))
    return parts
