"""The tables of an audit's page."""

from collections.abc import Mapping, Sequence
from typing import Any

from sfumato.report.averages import error_text
from sfumato.report.cells import Cell, Row, Table

__all__ = ["attack_table", "bound_rows", "probe_table", "query_table", "sweep_table", "weak_attacks"]

_HARDLY_BETTER = 0.98  # of the mean image's error
_ORDER = ("worst5", "mean", "worst")


def weak_attacks(result: Mapping[str, Any]) -> list[str]:
    """The attacks that did hardly better than answering with the mean image, where another one did."""
    reference = result["reference"]["test"]
    errors = {attack["name"]: attack["test"]["mse"]["mean"] for attack in result["attacks"]}
    weak = [name for name, error in errors.items() if error > _HARDLY_BETTER * reference]
    return weak if len(weak) < len(errors) else []


def attack_table(result: Mapping[str, Any], names: Sequence[str]) -> Table:
    """One row per attack, the strongest first: unseen images, worst 5 %, average and worst image; training images."""
    rows = []
    strongest = set(result["best"]["test"].values())
    for attack in result["attacks"]:
        if attack["name"] not in names:
            continue
        test, train = attack["test"], attack["train"]
        note = "not converged" if attack["converged"] is False else ""
        if test["images"] < result["data"]["reconstructed"]["test"]:
            note += ("; " if note else "") + f"on {test['images']} images"
            if same := attack["same_images"]:
                note += f", where {same['attack']} has {same['mse']:.4f}"
        cells = [
            *(Cell(test["psnr"][name], digits=1) for name in _ORDER),
            *(Cell(test["ssim"][name], digits=2) for name in _ORDER),
            *(Cell(test["mse"][name], spread=test["mse"]["error"] if name == "mean" else None) for name in _ORDER),
            Cell(train["mse"]["mean"]),
        ]
        rows.append(Row(attack["name"], tuple(cells), note=note, emphasis=attack["name"] in strongest))
    if strongest & set(names):
        any_one = result["best"]["per_image"]["summary"]
        cells = [Cell(any_one[kind][name], digits=digits) for kind, digits in (("psnr", 1), ("ssim", 2), ("mse", None))
                 for name in _ORDER]  # fmt: skip
        rows.append(Row("best for each image", (*cells, Cell()), note="an upper bound"))
        reference = result["reference"]
        known = (Cell(reference["test"]), Cell(), Cell(reference["train"]))
        rows.append(Row("mean image", (*[Cell()] * 7, *known), note="sees nothing"))
    heads = [f"{kind}{words}" for kind in ("PSNR", "SSIM", "MSE") for words in (", worst 5 %", "", ", worst")]
    return Table(
        "Attacks on unseen images",
        (*heads, "MSE, training images"),
        tuple(rows),
        notes=("Worst is worst for the person in the picture: what is reconstructed best. ±: standard error of the "
               "mean. In bold: the strongest by one of the measures.",),
        corner="attack",
    )  # fmt: skip


def query_table(sweeps: Sequence[Mapping[str, Any]]) -> Table:
    """One row per way to repeat an image, one column per number of queries; errors, and the best K's share of K = 1."""
    counts = sorted({point["queries"] for sweep in sweeps for point in sweep["points"]})
    rows = []
    for sweep in sweeps:
        by_count = {point["queries"]: point["mse"] for point in sweep["points"]}
        cells = [
            Cell(by_count[count]["mean"], spread=by_count[count]["error"]) if count in by_count else Cell()
            for count in counts
        ]
        best = min(one["mean"] for one in by_count.values())
        first = by_count[min(by_count)]["mean"]
        gained = Cell(round(1 - best / first, 4) if first > 0 else None, percent=True, digits=1)
        rows.append(Row(sweep["label"], (*cells, gained)))
    heads = tuple(f"K = {count}" for count in counts)
    note = (
        "Attacker's mean error on unseen images. ±: its standard error. Gained: by how much the error falls from one "
        "query to the best number of them."
    )
    return Table("Repeated queries", (*heads, "gained"), tuple(rows), notes=(note,), corner="the same image")


def sweep_table(title: str, sweeps: Sequence[Mapping[str, Any]]) -> Table:
    """One row per point of every sweep."""
    rows = []
    for sweep in sweeps:
        for point in sweep["points"]:
            cells = (
                Cell(point["mse"]["mean"], spread=point["mse"]["error"]),
                Cell(point["mse"]["worst5"]),
                Cell(point["psnr"]["mean"], digits=1),
                Cell(point["ssim"]["mean"], digits=2),
                Cell(text=f"{point['images']:,}"),
            )
            rows.append(Row(f"{sweep['label']}: {point['label']}", cells, note=point.get("note", "")))
    return Table(
        title, ("MSE", "MSE, worst 5 %", "PSNR", "SSIM", "images reconstructed"), tuple(rows), corner="attacker"
    )


def probe_table(probes: Sequence[Mapping[str, Any]]) -> Table:
    """What is read from the feature and from the reconstruction besides the image."""
    rows = tuple(
        Row(
            probe["label"],
            (
                Cell(probe["accuracy"], spread=probe["error"], percent=True, digits=1),
                Cell(probe["chance"], percent=True, digits=1),
            ),
            note=probe.get("note", ""),
        )
        for probe in probes
    )
    return Table("Attributes and identity", ("right", "by chance"), rows, corner="read from what leaves the device")


def bound_rows(bounds: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Per bound its value as shown, its assumption, its notes, and whether it gates."""
    shown = []
    for one in bounds:
        value = one["value"]
        text = error_text(value) if one["kind"] == "error" else f"{value:.3g}"
        shown.append({**one, "shown": f"{text} {one['unit']}".strip()})
    return shown
