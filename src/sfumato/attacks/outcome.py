"""Has an attack's training come to rest? Judged on images it did not learn from."""

from collections.abc import Sequence

from sfumato.attacks.base import Fit

__all__ = ["judge_outcome"]

_WORTH_GOING_ON = 0.02
_STILL_FALLING = 0.1  # gained by the second quarter: where the learning rate is annealed, the end looks calm anyway
_QUARTERS = 8  # epochs from which on a quarter says something


def judge_outcome(errors: Sequence[float], trivial: float) -> Fit:
    """Judge convergence on the held-out errors: did the last tenth of the epochs still gain, or the second quarter?

    A learning rate that is annealed to 0 brings every training to rest, also one that is far too short. While the rate
    is still high, in the first half, that cannot be: an error that the second quarter of the epochs still lowered by a
    tenth would have gone on falling in a longer training.

    Args:
        errors: held-out error after every epoch, at least one.
        trivial: held-out error of answering with the mean image.
    """
    best = min(errors)
    tail = max(1, len(errors) // 10)
    before = min(errors[:-tail], default=float("inf"))
    gain = (before - best) / before if before < float("inf") else 1.0
    if gain > _WORTH_GOING_ON:
        return Fit(False, f"the last {tail} epochs still gained {gain:.0%}; attack for more epochs", best)
    half, quarter = len(errors) // 2, len(errors) // 4
    early = 1.0 - min(errors[:half]) / min(errors[:quarter]) if len(errors) >= _QUARTERS else 0.0
    if early > _STILL_FALLING:
        return Fit(
            False,
            f"the second quarter of the {len(errors)} epochs still gained {early:.0%}, and only the falling learning "
            "rate ended that; attack for more epochs",
            best,
        )
    if best > (1 - _WORTH_GOING_ON) * trivial:
        return Fit(
            False,
            f"no better than predicting the mean image ({trivial:.4f}): either nothing leaks or the attack failed",
            best,
        )
    return Fit(True, f"the last {tail} epochs gained {max(gain, 0.0):.1%}", best)
