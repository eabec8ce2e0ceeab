"""Consistency: no attack beats a bound whose assumptions hold, or one of the two has a bug."""

from collections.abc import Sequence
from typing import Any

from sfumato.attacks import Leakage

__all__ = ["check_consistency"]

_ERRORS = 3.0
_BUG = "whose assumptions hold here: the attack or the bound has a bug, and this report proves nothing"


def check_consistency(
    attacks: Sequence[dict[str, Any]], bounds: Sequence[dict[str, Any]], leakage: Leakage
) -> dict[str, Any]:
    """Compare every single-query attack's mean test error with every bound that gates, and identification with its
    certificates.

    Returns:
        `checked` (names of the bounds that gate, and of the certificates) and `violations`, each with attack, bound,
        what was measured, its standard error, the bound's value, and a sentence.
    """
    gating = [floor for floor in bounds if floor["gates"] and floor["kind"] == "error"]
    certificates = {
        name: value
        for name in ("identified_at_most", "clipped_at_most")
        if (value := getattr(leakage, name)) is not None
    }
    violations = [
        _violation(
            attack["name"], floor["name"], mse["mean"], mse["error"], floor["value"],
            f"the mean test error of the {attack['name']} attack, {mse['mean']:.5f} ± {mse['error']:.5f}, lies below "
            f"the bound '{floor['label']}', {floor['value']:.5f}",
        )
        for floor in gating
        for attack in attacks
        for mse in [attack["test"]["mse"]]
        if mse["mean"] + _ERRORS * mse["error"] < floor["value"]
    ]  # fmt: skip
    violations += [
        _violation(
            "identification", name, leakage.identified, leakage.identified_error, value,
            f"the attacker who names images is right for {leakage.identified:.3%} ± {leakage.identified_error:.3%} of "
            f"{leakage.candidates}, above the certificate '{name}', {value:.3%}",
        )
        for name, value in certificates.items()
        if leakage.identified - _ERRORS * leakage.identified_error > value
    ]  # fmt: skip
    return {"checked": [*(floor["name"] for floor in gating), *certificates], "violations": violations}


def _violation(attack: str, bound: str, measured: float, error: float, value: float, words: str) -> dict[str, Any]:
    return {
        "attack": attack,
        "bound": bound,
        "measured": measured,
        "error": error,
        "value": value,
        "sentence": f"{words}, {_BUG}",
    }
