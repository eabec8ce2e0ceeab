"""Comparing at equal accuracy: interpolation along the curve of the baseline, and the jackknife for its error."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Curve = Sequence[tuple[float, float]]
"""`(accuracy, error)` per noise level, in order of increasing noise."""

# 97.5 % quantiles of Student's t by degrees of freedom: the jackknife's 95 % interval over so many groups less one.
T_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}

Seeds = Mapping[int, tuple[float, float]]
"""`(accuracy, measure)` of one setting by seed."""


@dataclass(frozen=True)
class Comparison:
    """One setting, or several on average, against the curve of a baseline, each at its own accuracy.

    Attributes:
        accuracy, value: of the setting, averaged over seeds.
        curve_value: of the curve at that accuracy.
        effect: value / curve_value, averaged as a logarithm; or value - curve_value.
        interval: 95 % of the effect, delete-one-seed jackknife with Student's t; None with one seed.
        seeds: that the settings and all points of the curve have.
        within: whether the curve reaches down to this accuracy, so that there is something to compare with.
    """

    accuracy: float
    value: float
    curve_value: float
    effect: float
    interval: tuple[float, float] | None
    seeds: int
    within: bool


def compare(
    curve: Sequence[Seeds], *settings: Seeds, against: Sequence[Seeds] = (), higher_protects: bool = True
) -> Comparison | None:
    """Compare settings with a curve; None where the curve has fewer than two levels or no seed is in all of them.

    Args:
        curve: the baseline's levels, in order of increasing noise.
        settings: what is compared; the effects of several are averaged (as logarithms).
        against: other settings; the effect is then that of the settings over theirs, seed by seed.
        higher_protects: True for an error, which is compared as a ratio; False for a share of images identified,
            which is compared as a difference. Wherever the curve leaves a choice, the baseline gets the better one.

    >>> noise = [{0: (0.98, 0.010)}, {0: (0.96, 0.020)}, {0: (0.90, 0.030)}]
    >>> round(compare(noise, {0: (0.97, 0.030)}).effect, 6)
    2.0
    """
    if len(curve) < 2 or not settings:
        return None
    seeds = sorted(set.intersection(*(set(one) for one in (*curve, *settings, *against))))
    if not seeds:
        return None
    sign = 1.0 if higher_protects else -1.0

    def averaged(setting: Seeds, kept: Sequence[int]) -> tuple[float, float, float]:
        accuracy, value = _means(setting, kept)
        levels = [(share, sign * error) for share, error in (_means(level, kept) for level in curve)]
        return accuracy, value, sign * equal_accuracy_error(levels, accuracy)

    def mean_effect(group: Sequence[Seeds], kept: Sequence[int]) -> float:
        effects = []
        for _, value, expected in (averaged(one, kept) for one in group):
            effects.append(math.log(value / expected) if higher_protects else value - expected)
        return statistics.fmean(effects)

    def effect(kept: Sequence[int]) -> float:
        return mean_effect(settings, kept) - (mean_effect(against, kept) if against else 0.0)

    accuracy, value, expected = map(statistics.fmean, zip(*(averaged(one, seeds) for one in settings), strict=True))
    ends = jackknife_interval(effect, seeds)
    lowest = min(non_increasing([_means(level, seeds)[0] for level in curve]))
    shown = math.exp if higher_protects else float
    return Comparison(
        accuracy,
        value,
        expected,
        shown(effect(seeds)),
        None if ends is None else (shown(ends[0]), shown(ends[1])),
        len(seeds),
        all(_means(one, seeds)[0] >= lowest for one in settings),
    )


def _means(of: Seeds, kept: Sequence[int]) -> tuple[float, float]:
    return statistics.fmean(of[seed][0] for seed in kept), statistics.fmean(of[seed][1] for seed in kept)


def equal_accuracy_error(curve: Curve, accuracy: float) -> float:
    """The error of the noise-only curve at `accuracy`, interpolated linearly.

    More noise cannot help accuracy, so measured accuracies are first made non-increasing along the noise (isotonic
    regression by pooling adjacent violators); where several noise levels then share an accuracy the largest error
    counts, which favours noise alone. Above the curve's best accuracy its best end counts, which does so too; below its
    worst accuracy there is nothing to compare with, see `Comparison.within`.
    """
    pooled = non_increasing([point[0] for point in curve])
    errors = [point[1] for point in curve]
    if accuracy >= pooled[0]:
        return max(error for level, error in zip(pooled, errors, strict=True) if level == pooled[0])
    index = max(place for place, level in enumerate(pooled) if level >= accuracy)  # the last level that is as accurate
    if index == len(pooled) - 1:
        return errors[index]
    share = (pooled[index] - accuracy) / (pooled[index] - pooled[index + 1])
    return errors[index] + share * (errors[index + 1] - errors[index])


def non_increasing(values: Sequence[float], weights: Sequence[float] | None = None) -> list[float]:
    """The non-increasing sequence with the smallest weighted squared distance (isotonic regression).

    Adjacent values in the wrong order are pooled; equal weights where none are given.

    >>> non_increasing([3.0, 1.0, 2.0, 0.0])
    [3.0, 1.5, 1.5, 0.0]
    """
    blocks: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights or [1.0] * len(values), strict=True):
        mean, total, count = value, float(weight), 1
        while blocks and blocks[-1][0] < mean:
            before, heavy, length = blocks.pop()
            mean = (before * heavy + mean * total) / (heavy + total)
            total, count = heavy + total, length + count
        blocks.append((mean, total, count))
    return [mean for mean, _, count in blocks for _ in range(count)]


def jackknife_interval(
    statistic: Callable[[Sequence[int]], float], groups: Sequence[int]
) -> tuple[float, float] | None:
    """95 % of a statistic of groups, leaving one group out at a time; None where there are too few, or too many."""
    count = len(groups)
    if not 2 <= count <= len(T_QUANTILES) + 1:
        return None
    parts = [statistic([group for group in groups if group != left_out]) for left_out in groups]
    mean = statistics.fmean(parts)
    half = T_QUANTILES[count - 1] * math.sqrt((count - 1) / count * sum((part - mean) ** 2 for part in parts))
    value = statistic(groups)
    return value - half, value + half
