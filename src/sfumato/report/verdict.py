"""Sentences that say what a result shows, and no more than that."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sfumato.attacks import NOT_JUDGED, Convergence
from sfumato.report.averages import error_text, percent_text


@dataclass(frozen=True)
class Verdict:
    """What a page says first: a sentence or two, then the numbers behind it and what weakens it."""

    headline: str
    notes: tuple[str, ...]


def demo_verdict(compared: Mapping[str, Any] | None, verdicts: Sequence[Convergence], *, images: int | None) -> Verdict:
    """The demo's verdict: CEM against noise alone at equal accuracy, by the attacker's error and by identification."""
    notes = convergence_notes(verdicts)
    if compared is None:
        return Verdict("There is no curve of noise alone to compare CEM with at equal accuracy.", notes)
    error, known = compared["error"], compared["identified"]
    if not error["within"]:
        below = f"Nothing to compare: CEM's accuracy of {percent_text(error['accuracy'])} % lies below that of noise"
        return Verdict(f"{below} alone at every level measured.", notes)
    first, second, times = _effect(error, 1.0), _effect(known, 0.0), _times(error["effect"])
    among = "the digit" if images is None else f"the digit among {images}"
    shares = f"{percent_text(known['value'])} % of cases, with noise alone in {percent_text(known['curve_value'])} %"
    if first is None and second is None:
        return Verdict(
            f"At equal accuracy noise alone does as well: CEM leaves the attacker {times} times its error, and {among} "
            f"is identified in {shares}.",
            (_intervals(error, known), *notes),
        )
    errors = {
        True: f"CEM leaves the attacker {times} times the error of noise alone",
        False: f"CEM leaves the attacker only {times} times the error of noise alone",
        None: f"noise alone leaves the attacker as large an error as CEM ({times} times)",
    }[first]
    joint = "and" if (first, second) in ((True, False), (False, True)) else "but"
    end = ", which is no difference." if second is None else "."
    headline = f"At equal accuracy {errors}, {joint} {among} is identified in {shares}{end}"
    return Verdict(headline, (_intervals(error, known), *notes))


def _effect(compared: Mapping[str, Any], neutral: float) -> bool | None:
    """Whether the effect lies above what no difference would give, or below; None where its interval holds that."""
    low, high = compared["interval"] or (neutral, neutral)
    return True if low > neutral else False if high < neutral else None


def _intervals(error: Mapping[str, Any], known: Mapping[str, Any]) -> str:
    text = (
        f"At {percent_text(error['accuracy'])} % accuracy: error (MSE) {error_text(error['value'])} with CEM, "
        f"{error_text(error['curve_value'])} interpolated along noise alone"
    )
    if error["interval"] is None:
        return f"{text}. One seed only: nothing here shows how far the numbers vary by chance."
    (low, high), (least, most) = error["interval"], (100 * end for end in known["interval"])
    return (
        f"{text}; 95 % interval of the ratio {_times(low)} to {_times(high)}, of the difference in identification "
        f"{least:+.1f} to {most:+.1f} points ({error['seeds']} seeds)."
    )


def convergence_notes(verdicts: Sequence[Convergence]) -> tuple[str, ...]:
    """Sentences on results whose attacks had not converged, or cannot be judged; none where all had."""
    loose, unknown = (sum(one.converged is found for one in verdicts) for found in (False, None))
    end, count, notes = "errors are no evidence of safety.", len(verdicts), []
    if loose:
        notes.append(f"In {loose} of {count} runs an attack had not converged: their {end}")
    if unknown:
        notes.append(f"{unknown} of {count} runs: {NOT_JUDGED}. Their {end}")
    return tuple(notes)


def _times(ratio: float) -> str:
    """Two decimals below 2, one up to 100, none above."""
    return f"{ratio:.2f}" if ratio < 2 else f"{ratio:.1f}" if ratio < 100 else f"{ratio:.0f}"
