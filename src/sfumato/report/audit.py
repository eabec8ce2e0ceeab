"""The page of `sfumato audit`: what was reconstructed, what is provable, what was not tested, and how to read it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.report.audit_evidence import evidence_of
from sfumato.report.audit_tables import (
    attack_table,
    bound_rows,
    probe_table,
    query_table,
    sweep_table,
    weak_attacks,
)
from sfumato.report.averages import error_text, percent_text
from sfumato.report.lines import Line, line_figure
from sfumato.report.page import write_page
from sfumato.report.palette import styles
from sfumato.report.pictures import png_data_uri
from sfumato.report.tables import to_html

__all__ = ["write_audit_report"]

Pictures = Mapping[str, tuple[Tensor, Mapping[str, Tensor]]]


def write_audit_report(path: Path, result: Mapping[str, Any], pictures: Pictures) -> None:
    """Write an audit as one HTML file that needs nothing else: no network, no scripts.

    Args:
        path: of the page.
        result: as in `audit.json`.
        pictures: `typical` and `worst`: originals (n, C, H, W) in [0, 1], and per attack the same images reconstructed.

    Raises:
        FeatureError: the pictures are no images.
        StorageError: the file could not be written.
    """
    attacks = result["attacks"]
    looks = styles(attack["name"] for attack in attacks)
    weak = weak_attacks(result)
    shown = [attack["name"] for attack in attacks if attack["name"] not in weak]
    write_page(
        path,
        "audit.html.j2",
        title=f"Audit of {result['target']['name']}",
        verdict=result["verdict"],
        leakage_percent=lambda share: f"{100 * share:.3g} %",
        result=result,
        looks=looks,
        pictures=[
            (name, _strips(*pictures[name], attacks, shown)) for name in ("worst", "typical") if name in pictures
        ],
        standards=evidence_of(result),
        attack_table=to_html(attack_table(result, shown)),
        weak=weak,
        weak_table=to_html(attack_table(result, weak)) if weak else None,
        any_one=_any_one(result["best"]["per_image"]),
        convergence=_convergence(attacks),
        sweeps=_sweeps(result),
        probes=to_html(probe_table(result["probes"])) if result["probes"] else None,
        bounds=bound_rows(result["bounds"]),
        floor=_floor_curve(result),
        reference=error_text(result["reference"]["test"]),
        accuracy=None if result["accuracy"] is None else percent_text(result["accuracy"]),
        loose=[attack for attack in attacks if attack["converged"] is False],
        seconds=result["budget"]["seconds"],
        evidence=result["evidence"],
    )


def _strips(
    originals: Tensor,
    reconstructed: Mapping[str, Tensor],
    attacks: Sequence[Mapping[str, Any]],
    shown: Sequence[str],
) -> list[dict[str, str]]:
    """The originals, then what the attacks made of them, the strongest first."""
    strips = [{"name": "", "label": "original", "uri": png_data_uri(originals), "alt": "The originals", "figures": ""}]
    for attack in attacks:
        name, test = attack["name"], attack["test"]
        if name not in reconstructed or name not in shown:
            continue
        images = reconstructed[name]
        figures = f"MSE\u00a0{error_text(test['mse']['mean'])}, SSIM\u00a0{test['ssim']['mean']:.2f}"
        strips.append(
            {
                "name": name,
                "label": name,
                "uri": png_data_uri(images),
                "figures": figures,
                "alt": f"The same {len(images)} images as the {name} attack reconstructed them ({figures} on average)",
            }
        )
    return strips


def _any_one(per_image: Mapping[str, Any]) -> list[tuple[str, int, str]]:
    """Per attack how many images it reconstructs best, and as a share."""
    counts = per_image["counts"]
    total = sum(counts.values())
    ordered = sorted(counts.items(), key=lambda pair: -pair[1])
    return [(name, count, percent_text(count / total)) for name, count in ordered if count]


def _convergence(attacks: Sequence[Mapping[str, Any]]) -> str | None:
    """Held-out error over the epochs, of the attacks that train."""
    lines = [
        Line(
            attack["name"],
            [100 * (line["epoch"] + 1) / len(attack["history"]) for line in attack["history"]],
            [line["held_out_mse"] for line in attack["history"]],
            marks=False,
        )
        for attack in attacks
        if len(attack["history"]) > 1
    ]
    if not lines:
        return None
    flat = {
        attack["name"]: attack["held_out_mse"]
        for attack in attacks
        if len(attack["history"]) <= 1 and attack["held_out_mse"] is not None
    }
    name = min(flat, key=lambda one: flat[one]) if flat else ""
    lowest = {f"{name}, in closed form": flat[name]} if flat else {}
    return line_figure(
        lines,
        x_label="share of the training, %",
        y_label="error on held-out images",
        key="convergence",
        title="Error on images that an attack did not learn from, while it trains",
        log_y=True,
        references=lowest,
        looks=styles(attack["name"] for attack in attacks),
    )


def _sweeps(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Repeated queries first, then what the attacker knows: a figure where there is a scale, and a table."""
    found: list[dict[str, Any]] = []
    queries = result["queries"]
    if queries:
        lines = [
            Line(
                one["label"],
                [point["queries"] for point in one["points"]],
                [point["mse"]["mean"] for point in one["points"]],
                [point["mse"]["error"] for point in one["points"]],
            )
            for one in queries
        ]
        figure = line_figure(
            lines,
            x_label="queries of one image, K",
            y_label="attacker's error (MSE)",
            key="queries",
            title="Error against the number of queries of one image",
            log_x=True,
        )
        found.append(
            {
                "heading": "The same image more than once",
                "figure": figure,
                "table": to_html(query_table(queries)),
                "notes": [one["note"] for one in queries if one.get("note")],
            }
        )
    if result["knowledge"]:
        found.append(
            {
                "heading": "An attacker who knows less, or something wrong",
                "figure": None,
                "table": to_html(sweep_table("Attacker's knowledge", result["knowledge"])),
                "notes": [one["note"] for one in result["knowledge"] if one.get("note")],
            }
        )
    return found


def _floor_curve(result: Mapping[str, Any]) -> str | None:
    """exp(-2 I / d) over I, with the bounds on I marked."""
    ratios = [one for one in result["bounds"] if one["kind"] == "ratio"]
    if not ratios:
        return None
    values = 1
    for side in result["data"]["image_shape"]:
        values *= side
    from math import exp, log

    far = max(max(one["information"] for one in ratios), values * log(10) / 2) * 1.05
    steps = [far * step / 60 for step in range(61)]
    lines = [Line("exp(−2 I / d)", steps, [exp(-2 * nats / values) for nats in steps], marks=False)]
    lines += [
        Line(one["label"].removeprefix("floor left by Theorem 1, from "), [one["information"]], [one["value"]])
        for one in ratios
    ]
    return line_figure(
        lines,
        x_label="bound on the information in a feature, nats",
        y_label="floor, relative",
        key="floor",
        title="How far the floor of Theorem 1 sinks with the information released",
        height=3.4,
    )
