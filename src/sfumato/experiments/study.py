"""The longer study behind the demo: five folds over all digits, CEM against the noise-only curve at equal accuracy."""

import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sfumato.errors import ConfigError
from sfumato.evidence import evidence
from sfumato.experiments.demo import digit_job
from sfumato.experiments.equal_accuracy import (
    T_QUANTILES,
    Curve,
    equal_accuracy_error,
    jackknife,
    non_increasing,
    within_curve,
)
from sfumato.experiments.job import Job
from sfumato.experiments.pool import Done, elapsed, run_jobs
from sfumato.files import write_json

__all__ = ["compare_at_equal_accuracy", "run_study"]

FOLDS = 5
NOISES = (0.025, 0.05, 0.1, 0.2, 0.4, 0.7)
POINTS = tuple((noise, lam) for noise in (0.025, 0.05, 0.1) for lam in (0.25, 0.5))
# Each fold is trained and attacked twice: one training's accuracy is too coarse to interpolate with.
REPEATS = 2
_T = T_QUANTILES[FOLDS - 1]
_OF_A_RUN = (
    *("defense", "noise_std", "lam", "fold", "seed", "accuracy", "mse_test", "strongest", "identified", "information"),
    "attacks",
)


def run_study(folder: Path, *, done: Done | None = None) -> dict[str, Any]:
    """Run what is missing of all folds and write `study.json`."""
    began = time.monotonic()
    points = [("noise", noise, 0.0) for noise in NOISES] + [("noise+cem", noise, lam) for noise, lam in POINTS]
    jobs = [
        _job(defense, fold, repeat, noise, lam)
        for repeat in range(REPEATS)
        for fold in range(FOLDS)
        for defense, noise, lam in points
    ]
    lines = run_jobs(jobs, folder / "jobs", done=done)
    study = compare_at_equal_accuracy(lines)
    study |= {
        "seconds": elapsed(began, lines),
        "runs": [{name: line[name] for name in _OF_A_RUN} for line in lines],
        "evidence": evidence("cpu") | {"threads": 1},
        "train_config": lines[0]["train_config"],
        "attack_config": lines[0]["attack_config"],
    }
    write_json(folder / "study.json", study)
    return study


def _job(defense: str, fold: int, repeat: int, noise: float, lam: float) -> Job:
    job = digit_job(defense, seed=fold + FOLDS * repeat, noise_std=noise, lam=lam or 1.0, fold=fold)
    # A lighter encoder than the demo's, whose feature of 2 x 4 x 4 = 32 numbers is smaller than the image of 64 pixels:
    # here noise costs accuracy, so that there is a curve to compare with.
    return replace(job, train=replace(job.train, cut=3, bottleneck=2))


def compare_at_equal_accuracy(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """CEM's error over the noise-only error at the same accuracy, with jackknife intervals over folds.

    Accuracies and errors are averaged over folds first, since one fold's accuracy is too coarse to interpolate with; a
    fold may occur several times, with several seeds.
    The standard error of the log ratio is the delete-one-fold jackknife's, its 95 % interval uses Student's t.
    """
    folds = sorted({line["fold"] for line in lines})
    keys = sorted({(line["noise_std"], line["lam"]) for line in lines if line["defense"] == "noise+cem"})

    def ratios(kept: Sequence[int]) -> list[float]:
        curve = _curve(lines, kept)
        logs = []
        for noise, lam in keys:
            accuracy, error = _mean(lines, "noise+cem", noise, lam, kept)
            logs.append(math.log(error / equal_accuracy_error(curve, accuracy)))
        return logs

    curve = _curve(lines, folds)
    counted = [
        index
        for index, (noise, lam) in enumerate(keys)
        if within_curve(curve, _mean(lines, "noise+cem", noise, lam, folds)[0])
    ]
    if not counted:
        raise ConfigError(
            "every setting of CEM is less accurate than the noisiest network; add more noise to the curve"
        )

    def overall(kept: Sequence[int]) -> list[float]:
        logs = ratios(kept)
        return [statistics.fmean(logs[index] for index in counted)]

    points = []
    for (noise, lam), (log, se) in zip(keys, jackknife(ratios, folds), strict=True):
        accuracy, _ = _mean(lines, "noise+cem", noise, lam, folds)
        points.append(
            {
                "defense": "noise+cem",
                "noise_std": noise,
                "lam": lam,
                **_spread(lines, "noise+cem", noise, lam),
                "curve_mse": equal_accuracy_error(curve, accuracy),
                "ratio": math.exp(log),
                "ratio_ci": [math.exp(log - _T * se), math.exp(log + _T * se)],
                "below_curve_se": max(0.0, -log / se) if se > 0 else 0.0,
                "beyond_curve": accuracy > non_increasing([level for level, _ in curve])[0],
                "counted": within_curve(curve, accuracy),
            }
        )
    ((log, se),) = jackknife(overall, folds)
    return {
        "points": points,
        "noise_curve": [{"noise_std": noise, **_spread(lines, "noise", noise, 0.0)} for noise in _noises(lines)],
        "overall": {
            "ratio": math.exp(log),
            "ci": [math.exp(log - _T * se), math.exp(log + _T * se)],
            "folds": len(folds),
            "digits": 1797,
            "worst_below_curve_se": max(points[index]["below_curve_se"] for index in counted),
            "settings": len(counted),
        },
    }


def _select(lines: Sequence[dict[str, Any]], defense: str, noise: float, lam: float) -> list[dict[str, Any]]:
    return [
        line
        for line in lines
        if line["defense"] == defense and line["noise_std"] == noise and (defense == "noise" or line["lam"] == lam)
    ]


def _mean(
    lines: Sequence[dict[str, Any]], defense: str, noise: float, lam: float, kept: Sequence[int]
) -> tuple[float, float]:
    own = [line for line in _select(lines, defense, noise, lam) if line["fold"] in kept]
    return statistics.fmean(line["accuracy"] for line in own), statistics.fmean(line["mse_test"] for line in own)


def _spread(lines: Sequence[dict[str, Any]], defense: str, noise: float, lam: float) -> dict[str, float]:
    own = _select(lines, defense, noise, lam)
    spread = {}
    for name, key in (("accuracy", "accuracy"), ("mse_test", "mse")):
        values = [
            statistics.fmean(line[name] for line in own if line["fold"] == fold)
            for fold in sorted({line["fold"] for line in own})
        ]
        spread[name] = statistics.fmean(values)
        spread[f"{key}_se"] = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return spread


def _noises(lines: Sequence[dict[str, Any]]) -> list[float]:
    return sorted({line["noise_std"] for line in lines if line["defense"] == "noise"})


def _curve(lines: Sequence[dict[str, Any]], kept: Sequence[int]) -> Curve:
    return [_mean(lines, "noise", noise, 0.0, kept) for noise in _noises(lines)]
