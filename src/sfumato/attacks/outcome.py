"""Has an attack's training come to rest? One rule, for attacks that have just run and for those of stored results."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from sfumato.attacks.base import Fit

__all__ = ["NOT_JUDGED", "Convergence", "Stored", "all_converged", "judge_outcome", "judge_stored"]

NOT_JUDGED = "convergence not judged (older rule)"
"""What is said of a stored attack that kept no history of its training."""

_WORTH_GOING_ON = 0.02
_STILL_FALLING = 0.1  # gained by the second quarter: where the learning rate is annealed, the end looks calm anyway
_QUARTERS = 8  # epochs from which on a quarter says something
_WORSE = 0.05  # than an attack in closed form: a trained one that is left behind by more has not learned what there is


class Convergence(NamedTuple):
    """Whether an attack had come to rest; `converged` is None where nothing was stored to judge by."""

    converged: bool | None
    reason: str


@dataclass(frozen=True)
class Stored:
    """What a result keeps of one attack, as far as convergence goes.

    Attributes:
        error: mean squared error on unseen images.
        history: held-out error after every epoch; empty for an attack that does not train in epochs, None where the
            result is older than histories.
        trivial: held-out error of answering with the mean image.
        converged, reason: the verdict of the day, which stays that of attacks without epochs.
        closed_form: whether the attack is solved in seconds, so that a trained one has no excuse for a larger error.
        weaker: whether the attack has the excuse that it knows less (`Attack.weaker`).
    """

    error: float
    history: Sequence[float] | None
    trivial: float | None
    converged: bool | None
    reason: str
    closed_form: bool = False
    weaker: bool = False


def judge_outcome(errors: Sequence[float], trivial: float) -> Fit:
    """Judge convergence on the held-out errors: did the last tenth of the epochs still gain, or the second quarter?

    A learning rate that is annealed to 0 brings every training to rest, also one that is far too short. While the rate
    is still high, in the first half, that cannot be: an error that the second quarter of the epochs still lowered by a
    tenth would have gone on falling in a longer training.

    Args:
        errors: held-out error after every epoch, at least one.
        trivial: held-out error of answering with the mean image.

    >>> judge_outcome([0.08] + 15 * [0.03], trivial=0.07).converged
    True
    >>> judge_outcome([0.08, 0.05, 0.03, 0.02], trivial=0.07).reason
    'the last 1 epochs still gained 33%; attack for more epochs'
    """
    best = min(errors)
    tail = max(1, len(errors) // 10)
    before = min(errors[:-tail], default=float("inf"))
    gain = (before - best) / before if before < float("inf") else 1.0
    if gain > _WORTH_GOING_ON:
        reason = f"the last {tail} epochs still gained {gain:.0%}; attack for more epochs"
        return Fit(False, reason, best, trivial)
    if len(errors) < _QUARTERS:  # an attack that begins with what a linear one reads may stand still at first
        return Fit(False, f"{len(errors)} epochs show nothing; attack for more epochs", best, trivial)
    half, quarter = len(errors) // 2, len(errors) // 4
    early = 1.0 - min(errors[:half]) / min(errors[:quarter])
    if early > _STILL_FALLING:
        reason = (
            f"the second quarter of the {len(errors)} epochs still gained {early:.0%}, and only the falling learning "
            "rate ended that; attack for more epochs"
        )
        return Fit(False, reason, best, trivial)
    if best > (1 - _WORTH_GOING_ON) * trivial:
        reason = f"no better than predicting the mean image ({trivial:.4f}): either nothing leaks or the attack failed"
        return Fit(False, reason, best, trivial)
    return Fit(True, f"the last {tail} epochs gained {max(gain, 0.0):.1%}", best, trivial)


def judge_stored(attacks: Mapping[str, Stored]) -> dict[str, Convergence]:
    """Today's verdict on the attacks of one suite, whenever they ran.

    A trained attack has not converged if its history says so, or if an attack in closed form, which takes seconds,
    leaves it behind by more than 5 % on the same unseen images.

    Args:
        attacks: by name, all on the same victim and the same images.

    >>> flat = Stored(0.03, [0.08] + 15 * [0.03], 0.07, True, "")
    >>> nearest = Stored(0.02, [], None, True, "8 neighbours", closed_form=True)
    >>> judge_stored({"decoder": flat, "nearest": nearest})["decoder"].reason
    'its error is 1.50 times that of the nearest baseline, which takes seconds'
    >>> judge_stored({"decoder": Stored(0.03, None, None, True, "the last 3 epochs gained 0.1%")})["decoder"]
    Convergence(converged=None, reason='convergence not judged (older rule)')
    """
    simple = {name: one.error for name, one in attacks.items() if one.closed_form}
    best = min(simple, key=lambda name: simple[name], default=None)
    found = {}
    for name, one in attacks.items():
        if one.history is None or (one.history and one.trivial is None):
            found[name] = Convergence(None, NOT_JUDGED)
        elif not one.history:
            found[name] = Convergence(one.converged, one.reason)
        else:
            assert one.trivial is not None
            fit = judge_outcome(one.history, one.trivial)
            found[name] = Convergence(fit.converged, fit.reason)
            if best is not None and not one.weaker and one.error > (1 + _WORSE) * simple[best]:
                ratio = one.error / max(simple[best], 1e-12)
                reason = f"its error is {ratio:.2f} times that of the {best} baseline, which takes seconds"
                found[name] = Convergence(False, reason)
    return found


def all_converged(verdicts: Iterable[Convergence]) -> Convergence:
    """One verdict on several attacks: the first that had not converged, else the first that nobody can judge."""
    found = list(verdicts)
    for wanted in (False, None):
        for one in found:
            if one.converged is wanted:
                return one
    return Convergence(True, found[0].reason if len(found) == 1 else "every attack had converged")
