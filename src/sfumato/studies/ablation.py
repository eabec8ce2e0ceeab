"""The ablation and the study on the digits: variants of CEM against noise alone at equal accuracy."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from sfumato.report.averages import Mean
from sfumato.report.chart import Curve
from sfumato.report.drawn import Drawn
from sfumato.report.figures import trade_off
from sfumato.report.tables import Cell, Row, Table
from sfumato.studies.engine import Store
from sfumato.studies.equal_accuracy import T_QUANTILES, Comparison, Seeds, compare, non_increasing
from sfumato.studies.experiment import FOLDS
from sfumato.studies.plan import Budget, level_experiments, seeds_of, variant_experiments
from sfumato.studies.results import SeedResults, collect, seeds_note, shared_attacks, smallest_error, trade_off_points


def digits_study(spec: dict[str, Any], budget: Budget, store: Store) -> dict[str, Any] | None:
    """What `report.study` shows, from what the store holds; None while there is too little to compare."""
    levels, variants = collect_variants(spec, budget, store)
    levels, points = ([one for one in many if one.results] for many in (levels, chain.from_iterable(variants)))
    names = shared_attacks([*levels, *points])
    study = compare_over_folds(
        [(one.experiment.train.noise_std, _by_fold(one, names)) for one in levels],
        [(one.experiment.train.noise_std, one.experiment.train.lam, _by_fold(one, names)) for one in points],
    )
    if study is None:
        return None
    runs = [(one.experiment, result) for one in [*levels, *points] for result in one.results.values()]
    experiment, result = runs[0]
    return study | {
        "seconds": round(sum(result["seconds"] + result["attack_seconds"] for _, result in runs), 1),
        "runs": [_run(result, names) for _, result in runs],
        "evidence": result["evidence"],
        "train_config": experiment.train.as_dict(),
        "attack_config": asdict(experiment.attacks[0]),
    }


def compare_over_folds(
    levels: Sequence[tuple[float, Seeds]], points: Sequence[tuple[float, float, Seeds]]
) -> dict[str, Any] | None:
    """CEM's error over the noise-only error at the same accuracy, with jackknife intervals over folds.

    Accuracies and errors are averaged over folds first, since one fold's accuracy is too coarse to interpolate with.
    The standard error of the log ratio is the delete-one-fold jackknife's, its 95 % interval uses Student's t.
    """
    curve, counted = [values for _, values in levels], []
    rows: list[dict[str, Any]] = []
    for noise, lam, values in points:
        found = compare(curve, values)
        if found is None or found.interval is None:
            continue
        low, high = found.interval
        error = math.log(high / low) / 2 / T_QUANTILES[found.seeds - 1]
        levels_of_accuracy = [statistics.fmean(accuracy for accuracy, _ in level.values()) for level in curve]
        rows.append(
            {
                "defense": "noise+cem",
                "noise_std": noise,
                "lam": lam,
                **_spread(values),
                "curve_mse": found.curve_value,
                "ratio": found.effect,
                "ratio_ci": [low, high],
                "below_curve_se": max(0.0, -math.log(found.effect) / error) if error > 0 else 0.0,
                "beyond_curve": found.accuracy > non_increasing(levels_of_accuracy)[0],
                "counted": found.within,
            }
        )
        if found.within:
            counted.append(values)
    overall = compare(curve, *counted)
    if overall is None or overall.interval is None:
        return None
    return {
        "points": rows,
        "noise_curve": [{"noise_std": noise, **_spread(values)} for noise, values in levels],
        "overall": {
            "ratio": overall.effect,
            "ci": list(overall.interval),
            "folds": overall.seeds,
            "digits": 1797,
            "worst_below_curve_se": max(row["below_curve_se"] for row in rows if row["counted"]),
            "settings": len(counted),
        },
    }


def _by_fold(one: SeedResults, names: Sequence[str]) -> dict[int, tuple[float, float]]:
    """Accuracy and error of each fold, averaged over the seeds that left it out."""
    folds: dict[int, list[tuple[float, float]]] = {}
    for seed, values in one.by_seed(names).items():
        folds.setdefault(seed % FOLDS, []).append(values)
    return {
        fold: (statistics.fmean(accuracy for accuracy, _ in own), statistics.fmean(error for _, error in own))
        for fold, own in folds.items()
    }


def _spread(values: Seeds) -> dict[str, float]:
    """Mean over folds and its standard error, of accuracy and error."""
    found = {}
    for index, name, key in ((0, "accuracy", "accuracy"), (1, "mse_test", "mse")):
        column = [pair[index] for pair in values.values()]
        found[name] = statistics.fmean(column)
        found[f"{key}_se"] = statistics.stdev(column) / math.sqrt(len(column)) if len(column) > 1 else 0.0
    return found


def _run(result: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    kept = {name: result[name] for name in ("noise_std", "lam", "seed", "accuracy", "strongest", "attacks")}
    leakage = {name: result["leakage"][name] for name in ("identified", "information")}
    defense = "noise+cem" if result["cem"] else "noise"
    return (
        {"defense": defense, "fold": result["seed"] % FOLDS, "mse_test": smallest_error(result, names)} | kept | leakage
    )


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
