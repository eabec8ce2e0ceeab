"""The study on the digits: five folds over all of them, CEM against the noise-only curve at equal accuracy."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

from sfumato.studies.ablation import collect_variants
from sfumato.studies.equal_accuracy import T_QUANTILES, Seeds, compare, non_increasing
from sfumato.studies.experiment import FOLDS
from sfumato.studies.results import SeedResults, shared_attacks, smallest_error
from sfumato.studies.spec import Budget
from sfumato.studies.store import Store


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
