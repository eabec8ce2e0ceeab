"""Has an attack's training come to rest? Judged on images it did not learn from."""

from collections.abc import Sequence

from sfumato.attacks.base import Fit

__all__ = ["judge_outcome"]

_WORTH_GOING_ON = 0.02


def judge_outcome(errors: Sequence[float], trivial: float) -> Fit:
    """Judge convergence on the held-out errors: did the last tenth of the epochs still gain?

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
    if best > (1 - _WORTH_GOING_ON) * trivial:
        return Fit(
            False,
            f"no better than predicting the mean image ({trivial:.4f}): either nothing leaks or the attack failed",
            best,
        )
    return Fit(True, f"the last {tail} epochs gained {max(gain, 0.0):.1%}", best)
