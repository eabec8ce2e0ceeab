"""Sentences that say what a result shows, and no more than that."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sfumato.report.averages import Mean, error_text, percent_text

__all__ = ["Verdict", "demo_verdict", "study_verdict"]

_LEVEL = 0.05
_EQUAL_POINTS = 1.0

_FOLLOW = {
    ("gain", "lower"): (
        "Part of this may simply be paid for in accuracy: compare both at equal accuracy in the trade-off figure."
    ),
    ("gain", "higher"): "CEM is ahead on both counts.",
    ("level", "lower"): "CEM costs accuracy here and gains nothing notable.",
    ("level", "higher"): "CEM is more accurate here at about the same error.",
    ("loss", "lower"): "CEM is behind on both counts.",
    ("loss", "higher"): (
        "Accuracy and error pull in opposite directions: compare both at equal accuracy in the trade-off figure."
    ),
}
_OPENING = {"gain": "", "level": "CEM made no notable difference here: ", "loss": "CEM did not help here: "}


@dataclass(frozen=True)
class Verdict:
    """What a page says first.

    Attributes:
        headline: one sentence, and a second one where the first would mislead alone.
        notes: the numbers behind it and what weakens it.
    """

    headline: str
    notes: tuple[str, ...]


def demo_verdict(
    gain: Mapping[str, float], summary: Mapping[str, Mapping[str, Mean | None]], loose: Sequence[Any], total: int
) -> Verdict:
    """The demo's verdict: CEM against the same noise alone.

    Args:
        gain: `mse_ratio` and `accuracy_difference` (CEM minus noise, 0..1).
        summary: defence -> measure -> mean over seeds.
        loose: attacks that had not converged.
        total: number of attacks.
    """
    ratio, points = gain["mse_ratio"], 100 * gain["accuracy_difference"]
    kind = "level" if abs(ratio - 1) <= _LEVEL else "gain" if ratio > 1 else "loss"
    core = (
        f"the attacker's error on unseen digits is {_times(ratio)} times as large with CEM as with the same noise alone"
    )
    if round(abs(points), 6) <= _EQUAL_POINTS:
        headline = f"{_OPENING[kind]}at an accuracy within {_upper_tenth(points)} points, {core}."
    else:
        side = "lower" if points < 0 else "higher"
        amount = f"{abs(points):.{2 if abs(points) < 2 else 1}f}"
        headline = f"{_OPENING[kind]}{core}, at an accuracy {amount} points {side}. {_FOLLOW[kind, side]}"
    notes = [*_spread_notes(summary.get("noise"), summary.get("noise+cem"))]
    if loose:
        notes.append(
            f"{len(loose)} of {total} attacks had not converged: their errors are no evidence of safety. They are "
            "listed below."
        )
    return Verdict(_capital(headline), tuple(notes))


def study_verdict(study: Mapping[str, Any]) -> Verdict:
    """The longer study's verdict: CEM against noise alone at equal accuracy."""
    overall, points = study["overall"], study["points"]
    ratio, (low, high), folds = overall["ratio"], overall["ci"], overall["folds"]
    interval = f"95 % interval {_times(low)} to {_times(high)}, {folds} folds over all {overall['digits']:,} digits"
    if low > 1:
        headline = (
            f"At equal accuracy CEM leaves the attacker {_times(ratio)} times the error of noise alone ({interval})."
        )
    elif high < 1:
        headline = (
            f"CEM does worse than noise alone: at equal accuracy it leaves the attacker only {_times(ratio)} times the "
            f"error ({interval})."
        )
    else:
        headline = (
            f"No difference is shown: at equal accuracy CEM leaves the attacker {_times(ratio)} times the "
            f"error of noise alone, and the interval includes 1 ({interval})."
        )
    counted = [point for point in points if point.get("counted", True)]
    below = [point for point in counted if point["ratio"] < 1]
    if below:
        worst = max(point["below_curve_se"] for point in below)
        notes = [
            f"{len(below)} of {len(counted)} settings of CEM lie below the curve of noise alone, the worst by "
            f"{worst:.1f} standard errors."
        ]
    else:
        notes = [f"All {len(counted)} settings of CEM lie on or above the curve of noise alone."]
    beyond = sum(bool(point.get("beyond_curve")) for point in points)
    if beyond:
        notes.append(
            f"{beyond} of {len(points)} settings are more accurate than noise of any strength measured; they are "
            "compared with the most accurate end of that curve."
        )
    if len(counted) < len(points):
        notes.append(
            f"{len(points) - len(counted)} of {len(points)} settings are less accurate than the noisiest network "
            "without CEM; there is nothing to compare them with, and they are not counted."
        )
    if study.get("unconverged"):
        notes.append(
            f"{study['unconverged']} attacks had not converged: their errors are no evidence of safety, and a longer "
            "attack may change every ratio."
        )
    return Verdict(headline, tuple(notes))


def _times(ratio: float) -> str:
    """Two decimals below 2, one up to 100, none above."""
    return f"{ratio:.2f}" if ratio < 2 else f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"


def _spread_notes(noise: Mapping[str, Mean | None] | None, cem: Mapping[str, Mean | None] | None) -> list[str]:
    if noise is None or cem is None:
        return []
    errors = noise["mse_test"], cem["mse_test"]
    shares = noise["accuracy"], cem["accuracy"]
    if errors[0] is None or errors[1] is None or shares[0] is None or shares[1] is None:
        return []
    count = min(errors[0].count, errors[1].count)
    over = f"mean ± standard deviation over {count} seeds" if count > 1 else "one seed"
    notes = [
        f"Error (MSE) {_error(errors[1])} with CEM, {_error(errors[0])} with noise alone; "
        f"accuracy {_share(shares[1])} % and {_share(shares[0])} % ({over})."
    ]
    if errors[0].sd is None or errors[1].sd is None:
        notes.append("One seed only: nothing here shows how far the numbers vary by chance.")
    elif abs(errors[0].mean - errors[1].mean) <= errors[0].sd + errors[1].sd:
        notes.append("The difference in error is no larger than the spread over seeds: other seeds may reverse it.")
    return notes


def _error(value: Mean) -> str:
    spread = "" if value.sd is None else f" ± {error_text(value.sd, value.mean)}"
    return error_text(value.mean) + spread


def _share(value: Mean) -> str:
    spread = "" if value.sd is None else f" ± {percent_text(value.sd)}"
    return percent_text(value.mean) + spread


def _upper_tenth(points: float) -> str:
    """The difference rounded up to a tenth, so that "within" stays true."""
    return f"{max(1, math.ceil(round(abs(points), 6) * 10)) / 10:.1f}"


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]
