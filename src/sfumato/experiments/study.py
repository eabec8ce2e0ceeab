"""The longer study behind the demo: five folds over all digits, CEM against the noise-only curve at equal accuracy."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sfumato.errors import ConfigError
from sfumato.evidence import evidence
from sfumato.experiments.demo import digit_job
from sfumato.experiments.job import Job
from sfumato.experiments.pool import Done, elapsed, run_jobs
from sfumato.files import write_json

__all__ = ["compare_at_equal_accuracy", "equal_accuracy_error", "run_study", "within_curve"]

FOLDS = 5
NOISES = (0.025, 0.05, 0.1, 0.2, 0.4, 0.7)
POINTS = tuple((noise, lam) for noise in (0.025, 0.05, 0.1) for lam in (0.25, 0.5))
# Each fold is trained and attacked twice: one training's accuracy is too coarse to interpolate with.
REPEATS = 2
# 97.5 % quantile of Student's t with FOLDS - 1 = 4 degrees of freedom: the jackknife's interval.
_T = 2.776

Curve = list[tuple[float, float]]
"""`(accuracy, error)` per noise level, in order of increasing noise."""


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
        "unconverged": sum(not line["converged"] for line in lines),
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
    for (noise, lam), (log, se) in zip(keys, _jackknife(ratios, folds), strict=True):
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
                "beyond_curve": accuracy > _non_increasing([level for level, _ in curve])[0],
                "counted": within_curve(curve, accuracy),
            }
        )
    ((log, se),) = _jackknife(overall, folds)
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


def equal_accuracy_error(curve: Curve, accuracy: float) -> float:
    """The error of the noise-only curve at `accuracy`, interpolated linearly.

    More noise cannot help accuracy, so measured accuracies are first made non-increasing along the noise (isotonic
    regression by pooling adjacent violators); where several noise levels then share an accuracy the largest error
    counts, which favours noise alone. Above the curve's best accuracy its best end counts, which does so too; below its
    worst accuracy there is nothing to compare with, see `within_curve`.
    """
    pooled = _non_increasing([point[0] for point in curve])
    errors = [point[1] for point in curve]
    if accuracy >= pooled[0]:
        return max(error for level, error in zip(pooled, errors, strict=True) if level == pooled[0])
    for index in range(len(pooled) - 1, 0, -1):
        high, low = pooled[index - 1], pooled[index]
        if accuracy <= low:
            return errors[index]
        if low < accuracy <= high:
            share = (high - accuracy) / (high - low)
            return errors[index - 1] + share * (errors[index] - errors[index - 1])
    return errors[0]


def within_curve(curve: Curve, accuracy: float) -> bool:
    """Whether the noise-only curve reaches down to this accuracy, so that there is something to compare with."""
    return accuracy >= min(_non_increasing([point[0] for point in curve]))


def _non_increasing(values: Sequence[float]) -> list[float]:
    blocks: list[list[float]] = []
    for value in values:
        blocks.append([value, 1.0])
        while len(blocks) > 1 and blocks[-2][0] < blocks[-1][0]:
            mean, count = blocks.pop()
            before = blocks[-1]
            before[0] = (before[0] * before[1] + mean * count) / (before[1] + count)
            before[1] += count
    return [mean for mean, count in blocks for _ in range(int(count))]


def _jackknife(statistic: Callable[[Sequence[int]], list[float]], folds: Sequence[int]) -> list[tuple[float, float]]:
    """`(estimate, standard error)` of each component of the statistic."""
    whole = statistic(folds)
    parts = [statistic([fold for fold in folds if fold != left_out]) for left_out in folds]
    count = len(folds)
    result = []
    for index, value in enumerate(whole):
        column = [part[index] for part in parts]
        mean = statistics.fmean(column)
        result.append((value, math.sqrt((count - 1) / count * sum((entry - mean) ** 2 for entry in column))))
    return result


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
