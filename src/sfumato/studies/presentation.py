"""A table or figure from the store to the files that people read: Markdown, CSV, LaTeX, HTML."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from sfumato.files import write_text
from sfumato.report.pictures import labelled_rows
from sfumato.report.reproduction import Presentation, write_reproduction_page
from sfumato.report.style import label
from sfumato.report.tables import to_csv, to_latex, to_markdown
from sfumato.studies.comparison import comparison_table
from sfumato.studies.curves import draw, gains_table, points_table
from sfumato.studies.efficiency import TimingTrial, efficiency_table
from sfumato.studies.engine import Store
from sfumato.studies.experiment import read_strip
from sfumato.studies.plan import Budget, RowSpec
from sfumato.studies.results import SeedResults, collect, remarks
from sfumato.studies.variants import (
    Variants,
    ablation_figures,
    ablation_table,
    leaderboard_figures,
    leaderboard_table,
)

_SHOWN_SEED = 0


def present(spec: dict[str, Any], budget: Budget, rows: dict[str, RowSpec], store: Store) -> Presentation:
    """Everything that a table or figure shows, from what the store holds."""
    shown = Presentation(spec["name"], spec["title"])
    if spec["kind"] == "efficiency":
        if (measured := store.read(TimingTrial(budget).key)) is not None:
            shown.tables.append(efficiency_table(spec, measured))
            shown.evidence = measured["evidence"]
        return shown
    found = collect(spec, budget, rows, store)
    every = [one for _, settings in found for one in settings]
    if results := [result for one in every for result in one.results.values()]:
        shown.seconds = sum(result["seconds"] + result["attack_seconds"] for result in results)
        shown.evidence = results[0]["evidence"]
    if spec["kind"] == "comparison":
        shown.tables.append(comparison_table(spec, budget, rows, found))
    elif "variants" in spec:
        variants, notes = Variants(spec, found), remarks(spec, budget, every)
        board = spec["kind"] == "leaderboard"
        shown.tables.append((leaderboard_table if board else ablation_table)(spec, variants, notes))
        shown.figures += (leaderboard_figures if board else ablation_figures)(spec, variants)
    elif "curves" in spec:
        shown.tables.append(points_table(spec, found, remarks(spec, budget, every)))
        if (figure := draw(spec, found)) is not None:
            shown.figures.append(figure)
        if spec["kind"] == "curves" and (gains := gains_table(found, rows)) is not None:
            shown.tables.append(gains)
    if spec["kind"] in ("comparison", "pictures"):
        shown.pictures += _pictures(every, store)
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
        notes = shown.tables[0].notes[:1] if shown.tables else (f"Budget {budget.title}.",)
        write_reproduction_page(paths[-1], replace(shown, title=f"{shown.title}, budget {budget.name}", notes=notes))
    return paths


def _pictures(settings: Sequence[SeedResults], store: Store) -> list[tuple[str, bytes]]:
    shown: dict[str, Tensor] = {}
    for one in settings:
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
