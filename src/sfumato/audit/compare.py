"""Several audits side by side: accuracy against the worst attack, and who dominates whom."""

import math
from collections.abc import Sequence
from typing import Any

from sfumato.audit.measure import WORST_SHARE, counted
from sfumato.audit.schema import FORMAT
from sfumato.errors import ConfigError

_ERRORS = 2.0


def compare(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Put audits side by side.

    A dominates B if A is at least as accurate and at least as hard to reconstruct, on average and for the worst-served
    5 %, and better in one of the three, each time by more than two standard errors of the difference. The strongest
    attack of each audit counts, whichever it is. Where an accuracy is missing, errors alone decide.

    Returns:
        `subjects` (name, defense, setting, accuracy and its error, mse_mean and its error, mse_worst5, attack,
        converged, data, dominates, dominated_by), `caveats`, `headline`.

    Raises:
        ConfigError: one of them is of a model of texts.
    """
    if texts := [result["target"]["name"] for result in results if "tokens" in result]:
        raise ConfigError(f"{texts[0]} is a model of texts, which is not compared with others; audit it alone")
    subjects = [_line(result) for result in results]
    names = [one["name"] for one in subjects]
    for index, one in enumerate(subjects):
        if names.count(one["name"]) > 1:
            one["name"] = f"{one['name']} ({index + 1})"
    for one in subjects:
        one["dominates"] = [other["name"] for other in subjects if other is not one and _dominates(one, other)]
    for one in subjects:
        one["dominated_by"] = [other["name"] for other in subjects if one["name"] in other["dominates"]]
    return {
        "format": FORMAT,
        "subjects": subjects,
        "caveats": _caveats(results, subjects),
        "headline": _headline(subjects),
        "evidence": results[0]["evidence"],
        "seconds": sum(result["budget"]["seconds"] for result in results),
    }


def _line(result: dict[str, Any]) -> dict[str, Any]:
    best = next(one for one in result["attacks"] if one["name"] == result["best"]["test"]["mse"])
    every = counted(result["attacks"])
    share, images = result["accuracy"], result["data"]["test_images"]
    target = result["target"]
    return {
        "name": target["name"],
        "defense": target["defense"] or target["name"],
        "setting": target["setting"],
        "accuracy": share,
        "accuracy_error": None if share is None else math.sqrt(share * (1 - share) / images),
        "mse_mean": best["test"]["mse"]["mean"],
        "mse_error": best["test"]["mse"]["error"],
        "mse_worst5": min(one["test"]["mse"]["worst5"] for one in every),
        "psnr_mean": max(one["test"]["psnr"]["mean"] for one in every),
        "ssim_mean": max(one["test"]["ssim"]["mean"] for one in every),
        "attack": best["name"],
        "converged": best["converged"],
        "reference": result["reference"]["test"],
        "data": result["data"]["fingerprint"]["test"],
        "minutes": result["budget"]["minutes"],
    }


def _dominates(a: dict[str, Any], b: dict[str, Any]) -> bool:
    error = math.hypot(a["mse_error"], b["mse_error"])
    pairs = [(a["mse_mean"], b["mse_mean"], error)]
    # A mean over a twentieth of the images is noisier than that over all of them by about the root of 20.
    pairs.append((a["mse_worst5"], b["mse_worst5"], error * math.sqrt(1 / WORST_SHARE)))
    if a["accuracy"] is not None and b["accuracy"] is not None:
        pairs.append((a["accuracy"], b["accuracy"], math.hypot(a["accuracy_error"], b["accuracy_error"])))
    level = all(mine >= theirs - _ERRORS * error for mine, theirs, error in pairs)
    return level and any(mine > theirs + _ERRORS * error for mine, theirs, error in pairs)


def _caveats(results: Sequence[dict[str, Any]], subjects: Sequence[dict[str, Any]]) -> list[str]:
    notes = []
    if len({one["data"] for one in subjects}) > 1:
        notes.append("The audits used different test images: their errors cannot be compared.")
    if len({one["minutes"] for one in subjects}) > 1:
        notes.append("The audits had different budgets: more time makes an attack stronger.")
    if any(one["accuracy"] is None for one in subjects):
        notes.append("Where an accuracy is missing, errors alone decide who dominates whom.")
    if loose := [one["name"] for one in subjects if one["converged"] is False]:
        notes.append(f"The strongest attack had not converged on {', '.join(loose)}: those errors are no evidence.")
    suites = {tuple(attack["name"] for attack in result["attacks"]) for result in results}
    if len(suites) > 1:
        notes.append("Not every attack ran on every target; the strongest that ran counts.")
    return notes


def _headline(subjects: Sequence[dict[str, Any]]) -> str:
    free = [one["name"] for one in subjects if not one["dominated_by"]]
    if len(free) == len(subjects):
        return "None dominates another: each is better in something, or the differences are within chance."
    lost = [f"{one['name']} (by {', '.join(one['dominated_by'])})" for one in subjects if one["dominated_by"]]
    return f"Dominated: {'; '.join(lost)}. Not dominated: {', '.join(free)}."
