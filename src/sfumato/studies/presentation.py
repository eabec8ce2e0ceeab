"""A table or figure from the store to the files that people read: Markdown, CSV, LaTeX, HTML."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.files import write_text
from sfumato.provenance import evidence
from sfumato.report.pictures import labelled_rows
from sfumato.report.reproduction import write_reproduction_page
from sfumato.report.style import label
from sfumato.report.tables import Table, to_csv, to_latex, to_markdown
from sfumato.studies.comparison import circumstances, comparison_table, gains_table, progress, remarks
from sfumato.studies.efficiency import TimingTrial, efficiency_table
from sfumato.studies.engine import Store
from sfumato.studies.experiment import read_strip
from sfumato.studies.plan import Budget, RowSpec, experiments_of
from sfumato.studies.results import collect, collect_curves, draw, points_table
from sfumato.studies.variants import (
    Variants,
    ablation_figures,
    ablation_table,
    leaderboard_figures,
    leaderboard_table,
)

_SHOWN_SEED = 0


@dataclass
class Presentation:
    """What a table or figure shows: figures as (caption, SVG), pictures as (caption, PNG).

    The seconds are those of all experiments together, the evidence that of the first; the table's notes name every
    device.
    """

    name: str
    title: str
    tables: list[Table] = field(default_factory=list)
    figures: list[tuple[str, str]] = field(default_factory=list)
    pictures: list[tuple[str, bytes]] = field(default_factory=list)
    seconds: float = 0.0
    evidence: dict[str, Any] = field(default_factory=lambda: evidence("cpu"))

    def markdown(self) -> str:
        """All tables."""
        return "\n\n".join(to_markdown(table) for table in self.tables)


def present(spec: dict[str, Any], budget: Budget, rows: dict[str, RowSpec], store: Store) -> Presentation:
    """Everything that a table or figure shows, from what the store holds."""
    shown = Presentation(spec["name"], spec["title"])
    if spec["kind"] == "efficiency":
        if (measured := store.read(TimingTrial(budget).key)) is not None:
            shown.tables.append(efficiency_table(spec, measured))
            shown.evidence = measured["evidence"]
        return shown
    experiments = experiments_of(spec, budget, rows)
    results = [result for one in experiments if (result := store.read(one.key)) is not None]
    shown.seconds = sum(result["seconds"] + result["attack_seconds"] for result in results)
    if results:
        shown.evidence = results[0]["evidence"]
    if spec["kind"] == "comparison":
        shown.tables.append(comparison_table(spec, budget, rows, store))
        shown.pictures += _pictures(spec, budget, rows, store)
    elif "variants" in spec:
        found = Variants(spec, budget, rows, store)
        notes = [f"Budget {budget.name}, {found.work}: {progress(spec, budget, found.every)}."]
        notes += circumstances(found.every)
        if spec["kind"] == "leaderboard":
            shown.tables.append(leaderboard_table(spec, found, notes))
            shown.figures += leaderboard_figures(spec, found)
        else:
            shown.tables.append(ablation_table(spec, found, notes))
            shown.figures += ablation_figures(found)
    elif spec["kind"] == "pictures":
        shown.pictures += _pictures(spec, budget, rows, store)
    else:
        curves = collect_curves(spec, budget, rows, store)
        notes = remarks(spec, budget, [one for _, results in curves for one in results])
        shown.tables.append(points_table(spec, curves, notes))
        if (figure := draw(spec, curves)) is not None:
            shown.figures.append(figure)
        if spec["kind"] == "curves" and (gains := gains_table(curves, rows)) is not None:
            shown.tables.append(gains)
    return shown


def save(shown: Presentation, folder: Path, budget: Budget) -> list[Path]:
    """Write the files that people read; give their paths."""
    base = f"{shown.name}-{budget.name}"
    paths: list[Path] = []
    for number, table in enumerate(shown.tables):
        stem = base if number == 0 else f"{base}-equal-accuracy"
        for suffix, render in (("md", to_markdown), ("csv", to_csv), ("tex", to_latex)):
            paths.append(folder / f"{stem}.{suffix}")
            write_text(paths[-1], render(table))
    if shown.tables or shown.figures or shown.pictures:
        paths.append(folder / f"{base}.html")
        write_reproduction_page(
            paths[-1],
            title=f"{shown.title}, budget {budget.name}",
            tables=shown.tables,
            figures=shown.figures,
            pictures=shown.pictures,
            notes=shown.tables[0].notes[:1] if shown.tables else (f"Budget {budget.title}.",),
            evidence=shown.evidence,
            seconds=shown.seconds,
        )
    return paths


def _pictures(spec: dict[str, Any], budget: Budget, rows: dict[str, RowSpec], store: Store) -> list[tuple[str, bytes]]:
    shown: dict[str, Tensor] = {}
    for one in collect(experiments_of(spec, budget, rows, seeds=[_SHOWN_SEED]), store):
        result = one.results.get(_SHOWN_SEED)
        strip = read_strip(store.folder / f"{one.experiment.key}.png") if result is not None else None
        if result is None or strip is None:
            continue
        first = strip.pop("original")
        originals = shown.setdefault("original", first)
        if first.shape != originals.shape or not bool((first == originals).all()):
            continue  # of another test set: it has no place under these originals
        name = one.experiment.row + ("+cem" if one.experiment.train.cem else "")
        for attack, images in strip.items():
            shown[f"{label(name)}\n{attack}, MSE {result['attacks'][attack]['test']['mse']:.4f}"] = images
    if not shown:
        return []
    caption = (
        "What the attacks reconstruct\n"
        f"Unseen images of seed {_SHOWN_SEED}, the first eight of the test set, not chosen."
    )
    return [(caption, labelled_rows(shown))]
