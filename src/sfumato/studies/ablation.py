"""The ablation: each setting of CEM moved away from its default, every variant a curve over lambda."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sfumato.report.averages import Mean
from sfumato.report.cells import Cell, Row, Table
from sfumato.report.chart import Curve
from sfumato.report.drawn import Drawn
from sfumato.report.figures import trade_off
from sfumato.studies.curves import trade_off_points
from sfumato.studies.equal_accuracy import Comparison, compare
from sfumato.studies.plan import level_experiments, seeds_of, variant_experiments
from sfumato.studies.results import SeedResults, collect, seeds_note, shared_attacks
from sfumato.studies.spec import Budget
from sfumato.studies.store import Store


@dataclass(frozen=True)
class Variant:
    """One variant, which sets one axis to what its label says, against noise alone at equal accuracy.

    Attributes:
        results: its points, by lambda.
        over_noise: its error over that of noise alone at the same accuracy, averaged over its comparable points; None
            where it has none.
        over_default: that ratio over the default's, the seeds paired.
        comparable: points within the accuracies of the noise curve.
    """

    axis: str
    label: str
    results: tuple[SeedResults, ...]
    over_noise: Comparison | None = None
    over_default: Comparison | None = None
    comparable: int = 0


def collect_variants(
    spec: dict[str, Any], budget: Budget, store: Store
) -> tuple[list[SeedResults], list[list[SeedResults]]]:
    """Noise alone and every variant's points, as far as they are measured."""
    seeds = seeds_of(spec, budget)
    curve = collect([one for seed in seeds for one in level_experiments(spec, budget, seed)], store)
    return curve, [
        collect([one for seed in seeds for one in variant_experiments(spec, budget, variant, seed)], store)
        for variant in spec["variants"]
    ]


def measure_variants(spec: dict[str, Any], budget: Budget, store: Store) -> tuple[list[SeedResults], list[Variant]]:
    """The noise curve and all variants, as far as they are measured."""
    curve, points = collect_variants(spec, budget, store)
    named = zip(spec["variants"], points, strict=True)
    variants = [Variant(variant["axis"], variant["label"], tuple(results)) for variant, results in named]
    return curve, [_judged(variant, variants[0], curve) for variant in variants]


def ablation_table(spec: dict[str, Any], variants: Sequence[Variant], remarks: Sequence[str]) -> Table:
    """One line per variant: what it gains over noise alone, and over the default."""
    names = shared_attacks(point for one in variants for point in one.results)
    lines = [
        Row(
            f"{one.axis}: {one.label}",
            (
                _range([point.figure("accuracy") for point in one.results], percent=True),
                _range([point.error(names) for point in one.results]),
                *_ratio(one.over_noise),
                *_ratio(one.over_default),
            ),
            note=f"{one.comparable} of {len(one.results)} points comparable, {seeds_note(one.results[0]) or '-'}",
        )
        for one in variants
    ]
    columns = ("accuracy", "MSE, test", "over noise alone", "95 %", "over the default", "95 %, paired")
    notes = (
        "Accuracy and error: from the smallest to the largest lambda, averaged over seeds. Over noise alone: the error "
        "at equal accuracy, geometric mean over the comparable points; intervals by the delete-one-seed jackknife.",
        *([f"The error is that of the strongest of: {', '.join(names)}."] if names else []),
        *remarks,
    )
    return Table(spec["title"], columns, tuple(lines), notes, corner="variant")


def ablation_figures(curve: Sequence[SeedResults], variants: Sequence[Variant]) -> list[tuple[str, Drawn]]:
    """One (caption, SVG) per axis: noise alone, the default, and the variants of this setting."""
    figures = []
    default = variants[0]
    names = shared_attacks([*curve, *(point for one in variants for point in one.results)])
    noise = trade_off_points(curve, names, lambda point: f"σ {point.experiment.train.noise_std:g}")
    for axis in dict.fromkeys(one.axis for one in variants[1:]):
        drawn = [Curve("noise alone", noise, name="noise alone", variant=0)]
        for label, one in [("default", default), *((one.label, one) for one in variants if one.axis == axis)]:
            points = trade_off_points(one.results, names, lambda point: f"λ {point.experiment.train.lam:g}")
            drawn.append(Curve(label, points, name=label, variant=1))
        drawn = [one for one in drawn if one.points]
        if len(drawn) > 2:
            svg = trade_off(drawn, key=f"ablation-{axis.replace(' ', '-')}", errors="standard deviation over seeds")
            figures.append((f"{axis}\nEach curve runs along lambda; up and to the right is better.", svg))
    return figures


def _judged(variant: Variant, default: Variant, curve: Sequence[SeedResults]) -> Variant:
    names = shared_attacks([*curve, *variant.results, *default.results])
    levels = [level.by_seed(names) for level in curve]

    def comparable(of: Variant) -> list[dict[int, tuple[float, float]]]:
        points = [point.by_seed(names) for point in of.results]
        return [point for point in points if (alone := compare(levels, point)) is not None and alone.within]

    points = comparable(variant)
    if not points:
        return variant
    others = comparable(default) if variant.axis != default.axis else []
    over_default = compare(levels, *points, against=others) if others else None
    over_noise = compare(levels, *points)
    return Variant(variant.axis, variant.label, variant.results, over_noise, over_default, len(points))


def _range(figures: Sequence[Mean | None], *, percent: bool = False) -> Cell:
    means = [figure.mean for figure in figures if figure is not None]
    if not means:
        return Cell()
    first, last = (Cell(value, percent=percent).shown for value in (means[0], means[-1]))
    return Cell(text=f"{first} to {last}")


def _ratio(found: Comparison | None) -> tuple[Cell, Cell]:
    ends = None if found is None else found.interval
    return (
        Cell(None if found is None else found.effect, digits=2),
        Cell(text="–" if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}"),
    )
