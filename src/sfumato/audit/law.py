"""The law: no attack beats a bound whose assumptions hold, or one of the two has a bug."""

from collections.abc import Sequence
from typing import Any

__all__ = ["check_law"]

_ERRORS = 3.0


def check_law(attacks: Sequence[dict[str, Any]], floors: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Compare the mean test error of every single-query attack with every bound that gates.

    Returns:
        `checked` (names of the bounds that gate) and `violations`, each with attack, bound, both values, the standard
        error and a sentence.
    """
    gating = [floor for floor in floors if floor["gates"] and floor["kind"] == "error"]
    violations = []
    for floor in gating:
        for attack in attacks:
            mse = attack["test"]["mse"]
            if mse["mean"] + _ERRORS * mse["error"] < floor["value"]:
                violations.append(
                    {
                        "attack": attack["name"],
                        "bound": floor["name"],
                        "mse": mse["mean"],
                        "error": mse["error"],
                        "value": floor["value"],
                        "sentence": (
                            f"the mean test error of the {attack['name']} attack, {mse['mean']:.5f} ± "
                            f"{mse['error']:.5f}, lies below the bound '{floor['label']}', {floor['value']:.5f}, whose "
                            "assumptions hold here: the attack or the bound has a bug, and this report proves nothing"
                        ),
                    }
                )
    return {"checked": [floor["name"] for floor in gating], "violations": violations}
